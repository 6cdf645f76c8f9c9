"""Pasqal Cloud's handlers of batches and jobs."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

from starlette.requests import Request
from starlette.responses import Response

from qrmi_workflows.emulator.device import Device
from qrmi_workflows.emulator.dialects.base import (
    Dialect,
    JSONResponse,
    RefusalError,
    required_field,
    string_list,
)
from qrmi_workflows.emulator.dialects.pasqal import (
    MAX_RUNS,
    STATUS,
    batch_document,
    job_document,
    job_request,
    read_body,
    read_body_object,
    sequence_text,
)
from qrmi_workflows.emulator.dialects.pasqal_filters import (
    BATCH_FILTERS,
    JOB_FILTERS,
    read_filters,
    read_page,
)
from qrmi_workflows.emulator.store import Batch, Task

__all__ = ["BatchHandlers", "success"]


class BatchHandlers(Dialect):
    """The handlers of batches and jobs; `PasqalCloud` adds accounts, results and devices."""

    @abstractmethod
    def authorize(self, request: Request) -> None:
        """Refuse a request without a valid access token."""

    # Batches

    async def _create_batch(self, request: Request) -> Response:
        self.authorize(request)
        body = await read_body_object(request)
        if body.get("project_id") != self.secrets["project_id"]:
            raise RefusalError(403, f"No access to project {body.get('project_id')!r}.")
        sequence = body.get("sequence_builder")
        device = self._requested_device(body, sequence)
        if sequence is not None:
            quoted = device.settings.server.quoted_programs
            sequence = sequence_text(sequence, "sequence_builder", quoted=quoted)
        batch = Batch(
            id=str(uuid4()),
            qpu=device.name,
            created=self.fleet.clock.now(),
            details={
                "sequence": sequence,
                "open": bool(body.get("open")),
                "tags": string_list(body.get("tags"), "tags") or None,
            },
        )
        tasks, requests = self._new_tasks(batch, required_field(body, "jobs", list))
        if not tasks and not batch.details["open"]:
            raise RefusalError(400, "The field 'jobs' must hold at least one job.")
        self.fleet.store.add_batch(batch, tasks, requests)
        device.submit(tasks)
        return self._batch_response(batch, status_code=201)

    def _requested_device(self, body: Mapping[str, Any], sequence: object) -> Device:
        name = body.get("device_type")
        if name is None and sequence is not None:
            text = sequence_text(sequence, "sequence_builder", quoted=True)
            name = json.loads(text)["device"].get("name")
        if not isinstance(name, str):
            raise RefusalError(400, "The field 'device_type' must name a device.")
        return self.device(name)

    def _new_tasks(self, batch: Batch, jobs: list[Any]) -> tuple[list[Task], list[str]]:
        max_runs = MAX_RUNS.get(self.fleet.devices[batch.qpu].settings.model)
        documents = [job_request(job, batch.details["sequence"], max_runs) for job in jobs]
        tasks = [self._new_task(batch, item) for item in documents]
        return tasks, [json.dumps(item) for item in documents]

    def _new_task(self, batch: Batch, item: Mapping[str, Any], parent: str | None = None) -> Task:
        return Task(
            id=str(uuid4()),
            qpu=batch.qpu,
            program="sequence",
            batch=batch.id,
            accepted=self.fleet.clock.now(),
            details={"runs": item["runs"], "variables": item["variables"], "parent": parent},
        )

    def _requested_batch(self, request: Request) -> Batch:
        self.authorize(request)
        return self._find_batch(request.path_params["id"])

    def _find_batch(self, batch_id: str) -> Batch:
        batch = self.fleet.store.batch(batch_id)
        if batch is None or batch.qpu not in self.qpu_names:
            raise RefusalError(404, f"Batch {batch_id} not found.")
        return batch

    def _batch_tasks(self, batch: Batch) -> list[Task]:
        return [self.fleet.latest(task) for task in self.fleet.store.find_tasks(batch=batch.id)]

    def _batch_response(self, batch: Batch, status_code: int = 200) -> Response:
        return success(self._batch_document(batch), status_code=status_code)

    def _batch_document(self, batch: Batch) -> dict[str, Any]:
        project = self.secrets["project_id"]
        return batch_document(batch, self._batch_tasks(batch), project, self.fleet.clock.iso)

    async def _get_batch(self, request: Request) -> Response:
        return self._batch_response(self._requested_batch(request))

    async def _get_batch_status(self, request: Request) -> Response:
        batch = self._requested_batch(request)
        document = self._batch_document(batch)
        return success({key: document[key] for key in ("id", "status", "jobs_count_per_status")})

    async def _list_batches(self, request: Request) -> Response:
        self.authorize(request)
        batches = [item for item in self.fleet.store.batches() if item.qpu in self.qpu_names]
        documents = [self._batch_document(batch) for batch in batches]
        return _page(request, documents, read_filters(request.query_params, BATCH_FILTERS))

    async def _close_batch(self, request: Request) -> Response:
        batch = self._requested_batch(request)
        return self._update_batch(batch, open=False)

    async def _set_tags(self, request: Request) -> Response:
        batch, tags = self._requested_batch(request), await read_body(request)
        return self._update_batch(batch, tags=string_list(tags, "tags"))

    def _update_batch(self, batch: Batch, **details: object) -> Response:
        return self._batch_response(self._change_batch(batch, **details))

    def _change_batch(self, batch: Batch, **details: object) -> Batch:
        changed = replace(batch, details={**batch.details, **details})
        self.fleet.store.save_batch(changed)
        return changed

    async def _add_jobs(self, request: Request) -> Response:
        batch, jobs = self._requested_batch(request), await read_body(request)
        if not batch.details["open"]:
            raise RefusalError(409, f"Batch {batch.id} is closed.")
        if not isinstance(jobs, list):
            raise RefusalError(400, "The request body must be a list of jobs.")
        tasks, requests = self._new_tasks(batch, jobs)
        self.fleet.store.add_tasks(tasks, requests)
        self.fleet.devices[batch.qpu].submit(tasks)
        return self._batch_response(batch)

    async def _cancel_batch(self, request: Request) -> Response:
        batch = self._requested_batch(request)
        self._cancel_tasks(request, self._batch_tasks(batch))
        return self._update_batch(batch, open=False)

    async def _cancel_batches(self, request: Request) -> Response:
        self.authorize(request)
        batch_ids = required_field(await read_body_object(request), "batch_ids", list)
        cancelled, errors = [], {}
        for batch_id in [_parse_uuid(item) for item in batch_ids]:
            batch = self.fleet.store.batch(batch_id)
            if batch is None or batch.qpu not in self.qpu_names:
                errors[batch_id] = f"Batch {batch_id} not found."
            elif status := self._final_status(batch):
                errors[batch_id] = f"Batch {batch_id} has ended: {status}."
            else:
                self._cancel_tasks(request, self._batch_tasks(batch))
                cancelled.append(self._batch_document(self._change_batch(batch, open=False)))
        return success({"batches": cancelled, "errors": errors})

    def _final_status(self, batch: Batch) -> str | None:
        status = str(self._batch_document(batch)["status"])
        return None if status in ("PENDING", "RUNNING") else status

    async def _rebatch(self, request: Request) -> Response:
        batch = self._requested_batch(request)
        jobs = [task for task, _ in self._matching_jobs(request, batch)]
        if not jobs:
            raise RefusalError(404, f"No job of batch {batch.id} matches the filters.")
        again = Batch(
            id=str(uuid4()),
            qpu=batch.qpu,
            created=self.fleet.clock.now(),
            details={**batch.details, "open": False, "parent": batch.id},
        )
        requests = [self.fleet.store.request(task.id) for task in jobs]
        tasks = [
            self._new_task(again, json.loads(text), task.id)
            for task, text in zip(jobs, requests, strict=True)
        ]
        self.fleet.store.add_batch(again, tasks, requests)
        self.fleet.devices[batch.qpu].submit(tasks)
        return self._batch_response(again, status_code=201)

    def _matching_jobs(self, request: Request, batch: Batch) -> list[tuple[Task, dict[str, Any]]]:
        """Return the jobs of a batch that match the filters of a request, and their documents."""
        matches = read_filters(request.query_params, JOB_FILTERS)
        jobs = [(task, self._job_document(task)) for task in self._batch_tasks(batch)]
        return [(task, document) for task, document in jobs if matches(document)]

    def _cancel_tasks(self, request: Request, tasks: list[Task]) -> None:
        for task in tasks:
            self.require_cancel_route(request, task.qpu)
            self.fleet.devices[task.qpu].cancel(task.id)

    # Jobs

    def _requested_task(self, request: Request) -> Task:
        self.authorize(request)
        task = self.fleet.task(request.path_params["id"])
        if task is None or task.batch is None or task.qpu not in self.qpu_names:
            raise RefusalError(404, f"Job {request.path_params['id']} not found.")
        return task

    def _job_document(self, task: Task) -> dict[str, Any]:
        return job_document(task, self.secrets["project_id"], self.fleet.clock.iso)

    async def _get_job(self, request: Request) -> Response:
        task = self._requested_task(request)
        sequence = json.loads(self.fleet.store.request(task.id))["sequence"]
        return success({**self._job_document(task), "sequence": sequence})

    async def _get_job_status(self, request: Request) -> Response:
        task = self._requested_task(request)
        return success({"id": task.id, "status": STATUS[task.state]})

    async def _list_jobs(self, request: Request) -> Response:
        self.authorize(request)
        matches = read_filters(request.query_params, JOB_FILTERS)
        found = self.fleet.store.find_tasks(program="sequence", newest_first=True)
        tasks = [item for item in found if item.batch and item.qpu in self.qpu_names]
        documents = [self._job_document(self.fleet.latest(task)) for task in tasks]
        return _page(request, documents, matches)

    async def _cancel_job(self, request: Request) -> Response:
        task = self._requested_task(request)
        self._cancel_tasks(request, [task])
        return success(self._job_document(self.fleet.task(task.id) or task))

    async def _cancel_jobs(self, request: Request) -> Response:
        batch = self._requested_batch(request)
        found = self._matching_jobs(request, batch)
        errors = {
            task.id: f"Job {task.id} has ended: {document['status']}."
            for task, document in found
            if task.is_final
        }
        tasks = [task for task, _ in found if not task.is_final]
        self._cancel_tasks(request, tasks)
        return success({"jobs": [self._job_document(task) for task in tasks], "errors": errors})


def success(data: object, status_code: int = 200, **extra: object) -> Response:
    """Return a JSend document of a request that was fulfilled."""
    document = {"status": "success", "message": "OK.", "code": str(status_code), "data": data}
    return JSONResponse(document | extra, status_code=status_code)


def _page(
    request: Request, documents: list[dict[str, Any]], matches: Callable[[dict[str, Any]], bool]
) -> Response:
    """Return one page of the documents that match, which are given newest first."""
    query = request.query_params
    found = [document for document in documents if matches(document)]
    if query.get("order_by_direction", "").upper() == "ASC":
        found.reverse()
    start, end = read_page(query, len(found))
    pagination = {"total": len(found), "start": start, "end": end}
    return success(found[start:end], pagination=pagination)


def _parse_uuid(value: object) -> str:
    try:
        return str(UUID(str(value)))
    except ValueError as error:
        raise RefusalError(422, f"A batch's id must be a UUID, not {value!r:.80}.") from error

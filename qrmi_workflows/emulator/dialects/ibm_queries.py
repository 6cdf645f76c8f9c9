"""Queries on the jobs of IBM Quantum Compute Service: filters, order and pages.

https://quantum.cloud.ibm.com/docs/api/qiskit-runtime-rest/tags/jobs
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from starlette.datastructures import QueryParams

from qrmi_workflows.emulator.dialects.base import MAX_INTEGER, RefusalError, read_moment
from qrmi_workflows.emulator.store import FINAL_STATES

__all__ = ["JobQuery"]

_MAX_PAGE = 200
_STATES: Mapping[str, tuple[str, ...]] = {"true": ("queued", "running"), "false": FINAL_STATES}
_COLUMNS = {"session_id": "session", "program": "program"}
_DATES = {"created_after": "since", "created_before": "until"}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQuery:
    """A query on jobs.

    Attributes:
        limit: The number of jobs on a page.
        offset: The number of jobs to skip.
        newest_first: Whether the newest job comes first.
        conditions: The conditions on the jobs, as `Store.find_tasks` takes them.
    """

    limit: int
    offset: int
    newest_first: bool
    conditions: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, query: QueryParams, qpus: list[str]) -> Self:
        """Parse a query; parameters that the service does not have are ignored.

        Args:
            query: The parameters of the request.
            qpus: The names of the service's QPUs.

        Raises:
            RefusalError: A number or a date is malformed (400).
        """
        limit = _number(query, "limit", _MAX_PAGE)
        backend = query.get("backend")
        chosen = tuple(name for name in qpus if backend in (None, "", name))
        conditions: dict[str, Any] = {
            "states": _STATES.get(query.get("pending", "").lower(), ()),
            "qpus": chosen or ("",),  # an empty tuple would match every QPU
            "tags": query.getlist("tags"),
        }
        for name, column in _COLUMNS.items():
            if query.get(name):
                conditions[column] = query[name]
        for name, bound in _DATES.items():
            if query.get(name):
                conditions[bound] = read_moment(query[name], name)
        return cls(
            # Out of range, the default is used instead, says the API reference.
            limit=limit if 1 <= limit <= _MAX_PAGE else _MAX_PAGE,
            offset=min(_number(query, "offset", 0), MAX_INTEGER),
            newest_first=query.get("sort", "DESC").upper() != "ASC",
            conditions=conditions,
        )


_DIGITS = 20  # a number with more is beyond every range


def _number(query: QueryParams, name: str, default: int) -> int:
    text = query.get(name, "")
    if text and not (text.isdecimal() and text.isascii()):
        raise RefusalError(
            400, f"The query parameter {name!r} must be a non-negative integer, not {text!r:.80}."
        )
    return int(text[:_DIGITS]) if text else default

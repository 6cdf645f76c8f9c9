"""Filters, order and pages of Pasqal Cloud's lists.

Pasqal's client sends them (pasqal-cloud 0.24, `utils/filters.py`): as parameters of the query, a
list as a repeated parameter. Several filters must all match. A parameter that the API does not have
is ignored, and a value that it cannot read is refused with 422, as FastAPI does both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from starlette.datastructures import QueryParams

from qrmi_workflows.emulator.dialects.base import RefusalError, read_moment

__all__ = ["BATCH_FILTERS", "JOB_FILTERS", "read_filters", "read_page"]

_Document = Mapping[str, Any]
_Test = Callable[[_Document], bool]
_Reader = Callable[[QueryParams, str], _Test]

_MAX_PAGE = 100
_JOB_STATES = ("PENDING", "RUNNING", "DONE", "ERROR", "CANCELED")
_BATCH_STATES = (*_JOB_STATES, "TIMED_OUT")
_PRIORITIES = ("LOW", "MEDIUM", "HIGH")
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def read_filters(query: QueryParams, readers: Mapping[str, _Reader]) -> _Test:
    """Return a test of whether a document matches all filters of a query.

    Args:
        query: The parameters of the request.
        readers: The filters that the list has, `BATCH_FILTERS` or `JOB_FILTERS`.

    Raises:
        RefusalError: A filter has a value that it cannot have (422).
    """
    tests = [read(query, name) for name, read in readers.items() if name in query]
    return lambda document: all(test(document) for test in tests)


def read_page(query: QueryParams, total: int) -> tuple[int, int]:
    """Return the indices of the first item of a page, and of the first one after it.

    Raises:
        RefusalError: The offset or the limit is out of range (422).
    """
    offset = _integer(query, "offset", 0, 0, None)
    limit = _integer(query, "limit", _MAX_PAGE, 1, _MAX_PAGE)
    return min(offset, total), min(offset + limit, total)


def _integer(query: QueryParams, name: str, default: int, least: int, most: int | None) -> int:
    text = query.get(name)
    if text is None:
        return default
    try:
        value = int(text)
    except ValueError as error:
        raise _refusal(name, text, "an integer") from error
    if value < least or (most is not None and value > most):
        raise _refusal(name, text, f"from {least} to {most}" if most else f"at least {least}")
    return value


def _refusal(name: str, value: str, what: str) -> RefusalError:
    return RefusalError(422, f"The query parameter {name!r} must be {what}, not {value!r:.80}.")


def _ids(query: QueryParams, name: str) -> _Test:
    try:
        chosen = {str(UUID(text)) for text in query.getlist(name)}
    except ValueError as error:
        raise _refusal(name, ", ".join(query.getlist(name)), "UUIDs") from error
    return lambda document: document[name] in chosen


def _words(allowed: tuple[str, ...] = ()) -> _Reader:
    def read(query: QueryParams, name: str) -> _Test:
        chosen = query.getlist(name)
        if wrong := [text for text in chosen if allowed and text not in allowed]:
            raise _refusal(name, wrong[0], f"one of {', '.join(allowed)}")
        return lambda document: document[name] in chosen

    return read


def _boolean(query: QueryParams, name: str) -> _Test:
    value = _BOOLEANS.get(query[name].lower())
    if value is None:
        raise _refusal(name, query[name], "true or false")
    return lambda document: bool(document[name]) is value


def _tag(query: QueryParams, name: str) -> _Test:
    return lambda document: query[name] in (document["tags"] or ())


def _runs(query: QueryParams, name: str) -> _Test:
    limit = _integer(query, name, 0, 0, None)
    if name == "min_runs":
        return lambda document: document["runs"] >= limit
    return lambda document: document["runs"] <= limit


def _date(query: QueryParams, name: str) -> _Test:
    limit = read_moment(query[name], name, status=422)
    if name == "start_date":
        return lambda document: _created(document) >= limit
    return lambda document: _created(document) <= limit


def _created(document: _Document) -> float:
    return datetime.fromisoformat(document["created_at"]).timestamp()


_COMMON: Mapping[str, _Reader] = {
    "id": _ids,
    "project_id": _ids,
    "user_id": _words(),
    "start_date": _date,
    "end_date": _date,
}
BATCH_FILTERS: Mapping[str, _Reader] = {
    **_COMMON,
    "device_type": _words(),
    "status": _words(_BATCH_STATES),
    "open": _boolean,
    "queue_priority": _words(_PRIORITIES),
    "tag": _tag,
}
"""The filters of a list of batches."""

JOB_FILTERS: Mapping[str, _Reader] = {
    **_COMMON,
    "batch_id": _ids,
    "status": _words(_JOB_STATES),
    "min_runs": _runs,
    "max_runs": _runs,
    "errors": _boolean,
}
"""The filters of a list of jobs, of the jobs to cancel, and of those to run again."""

"""Several payloads of IBM's primitives as one task of several PUBs, and its result split again.

The PUBs of a task are independent, and its result has them in order
(https://quantum.cloud.ibm.com/docs/guides/primitive-input-output). Options, shots and precision
apply to a whole task, so only payloads in which they are equal go together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from qrmi_workflows.errors import ResultError
from qrmi_workflows.vendors.base import Coalescible

__all__ = ["DEFAULT_SHOTS", "coalesce", "describe", "parameter_sets", "split"]

DEFAULT_SHOTS = 4096  # https://quantum.cloud.ibm.com/docs/guides/execution-options-qiskit-runtime
# The place of a PUB's own shots or precision; its parameter values are before it.
_PLACES = {"sampler": (2, "shots"), "estimator": (3, "precision")}
# A seed makes the results of simulators reproducible, but only for the same PUBs.
_SEEDS = (("simulator", "seed_simulator"), ("seed_estimator",))


def describe(content: Mapping[str, Any]) -> Coalescible | None:
    """Return what a payload needs in order to share a task; `None` if it has to go alone."""
    parameters, options = content["parameters"], content["parameters"].get("options") or {}
    if content["program_id"] not in _PLACES or any(_has(options, path) for path in _SEEDS):
        return None
    place, name = _PLACES[content["program_id"]]
    pubs = [[pub] if isinstance(pub, str) else pub for pub in parameters["pubs"]]
    own = [pub[place] if len(pub) > place else None for pub in pubs]
    values = {json.dumps(parameters.get(name) if each is None else each) for each in own}
    if len(values) != 1:  # shots, or precisions, that do not even agree within the payload
        return None
    (value,) = values
    shared = {key: each for key, each in parameters.items() if key not in ("pubs", name)}
    key = json.dumps([content["program_id"], value, {"version": 2, **shared}], sort_keys=True)
    executions = 0  # IBM limits those of samplers only
    if name == "shots":
        shots = json.loads(value) or options.get("default_shots") or DEFAULT_SHOTS
        executions = shots * sum(parameter_sets(pub) for pub in pubs)
    return Coalescible(
        key=key, pubs=len(pubs), executions=executions, size=len(json.dumps(parameters["pubs"]))
    )


def coalesce(contents: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the content of one task that has the PUBs of all payloads, in order.

    Args:
        contents: Payloads with equal keys (see `describe`).
    """
    place, name = _PLACES[contents[0]["program_id"]]
    pubs = []
    for content in contents:
        default = content["parameters"].get(name)
        pubs += [_with_own(pub, place, default) for pub in content["parameters"]["pubs"]]
    shared = {key: value for key, value in contents[0]["parameters"].items() if key != name}
    return {**contents[0], "parameters": {**shared, "pubs": pubs}}


def split(text: str, counts: Sequence[int]) -> list[str]:
    """Split a task's result into one result for each payload.

    Args:
        text: The vendor's text, in any of IBM's encodings.
        counts: The number of PUBs of each payload.

    Raises:
        ResultError: The text is not a result of so many PUBs.
    """
    try:
        document = json.loads(text)
        is_encoded = "__type__" in document
        content = document["__value__"] if is_encoded else document
        name = "pub_results" if is_encoded else "results"
        results, metadata = list(content[name]), content.get("metadata")
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise _unsplit(repr(error)) from error
    if len(results) != sum(counts):
        raise _unsplit(f"it has {len(results)} PUBs, and {sum(counts)} were submitted")
    parts = []
    for stop, count in zip(accumulate(counts), counts, strict=True):
        indices = range(stop - count, stop)
        part = {**content, name: results[indices.start : stop]}
        if metadata is not None:
            part["metadata"] = _renumbered(metadata, indices)
        parts.append(json.dumps({**document, "__value__": part} if is_encoded else part))
    return parts


def _unsplit(reason: str) -> ResultError:
    return ResultError(
        f"IBM's result of a coalesced task cannot be split ({reason}); must be JSON as IBM's "
        "service writes it, plain or encoded. A newer release of qrmi-workflows may split it."
    )


def _has(options: Mapping[str, Any], path: Sequence[str]) -> bool:
    value: Any = options
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value is not None


def _with_own(pub: list[Any] | str, place: int, default: Any) -> list[Any]:
    """Return a PUB that has its own shots or precision, if there is a default for them."""
    items = [pub] if isinstance(pub, str) else list(pub)
    if default is None or (len(items) > place and items[place] is not None):
        return items
    return [*items[:place], *[None] * (place - len(items)), default]


def parameter_sets(pub: list[Any]) -> int:
    """Return with how many sets of parameter values a PUB runs; never too few."""
    values: Any = pub[1] if len(pub) > 1 else None
    if isinstance(values, Mapping) and "__type__" in values:
        from qrmi_workflows.vendors.ibm.encoding import decode_value  # imports NumPy

        try:
            values = decode_value(values).tolist()
        except Exception:  # malformed in any way; IBM refuses it
            return 1
    if isinstance(values, Mapping):  # by the parameters' names; they may be broadcast
        return math.prod(max(1, _size(each)) for each in values.values())
    # The last axis indexes the parameters, except if there is one parameter and one axis.
    return max(1, sum(map(_rows, values)) if _is_nested(values) else _size(values))


def _rows(values: Any) -> int:
    return sum(map(_rows, values)) if _is_nested(values) else 1


def _is_nested(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and isinstance(values[0], list)


def _size(values: Any) -> int:
    return sum(map(_size, values)) if isinstance(values, list) else 1


def _renumbered(metadata: Any, indices: range) -> Any:
    """Return metadata whose execution spans are those of some PUBs, numbered from 0."""
    try:
        execution = metadata["execution"]
        spans: Any = execution["execution_spans"]
        if isinstance(spans, list):  # plain JSON: [start, stop, {INDEX: slice}]
            plain = [[*span[:2], _own(span[2], indices)] for span in spans]
            own: Any = [span for span in plain if span[2]]
        else:
            typed = [_typed_span(span, indices) for span in spans["__value__"]["spans"]]
            kept = [span for span in typed if span["__value__"]["data_slices"]]
            own = {**spans, "__value__": {**spans["__value__"], "spans": kept}}
    except (AttributeError, LookupError, TypeError, ValueError):
        return metadata  # of another form; nothing else in it counts PUBs
    return {**metadata, "execution": {**execution, "execution_spans": own}}


def _typed_span(span: Mapping[str, Any], indices: range) -> dict[str, Any]:
    value = span["__value__"]
    return {
        **span,
        "__value__": {**value, "data_slices": _own(value["data_slices"], indices)},
    }


def _own(slices: Mapping[str, Any], indices: range) -> dict[str, Any]:
    return {
        str(int(index) - indices.start): each
        for index, each in slices.items()
        if int(index) in indices
    }

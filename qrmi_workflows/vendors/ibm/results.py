"""Decode IBM's results with NumPy alone, so that later steps need no quantum package.

IBM chooses the encoding by the payload: the encoding of `RuntimeEncoder` if `support_qiskit` is
true, and plain JSON otherwise. Both are read here, whichever comes back. `to_primitive_result` uses
qiskit-ibm-runtime itself.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from qrmi_workflows.errors import ResultError
from qrmi_workflows.vendors.base import needs_extra
from qrmi_workflows.vendors.ibm.encoding import Bits, arrays_of, decode_value, to_plain
from qrmi_workflows.vendors.ibm.registers import as_written

if TYPE_CHECKING:
    import numpy as np
    from qiskit.primitives import PrimitiveResult

__all__ = ["decode_arrays", "decode_data", "to_primitive_result"]

_Item = dict[str, Any]
_MALFORMED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    zlib.error,
)


def decode_data(program: str, text: str) -> list[dict[str, Any]]:
    """Decode a result into plain data (see `Vendor.decode`).

    Raises:
        ResultError: The text is not a result of the program, in any of IBM's encodings.
    """
    to_data = {"sampler": _registers_to_data, "estimator": _estimates_to_data}
    data = _decode(program, text, to_data.get(program, to_plain))
    if program in to_data and '"warnings"' in text:  # do not parse a long text for nothing
        for item, warnings in zip(data, _read_warnings(json.loads(text)), strict=True):
            if warnings:
                item["warnings"] = warnings
    return data


def decode_arrays(program: str, text: str) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Decode a result into arrays (see `Vendor.arrays`).

    Raises:
        ResultError: The text is not a result of the program, in any of IBM's encodings.
    """
    if program in ("sampler", "estimator"):
        return _decode(program, text, _pub_to_arrays)
    return _decode(program, text, lambda item: dict(arrays_of(item.get("results", item))))


def to_primitive_result(text: str) -> PrimitiveResult[Any]:
    """Decode a result into Qiskit's `PrimitiveResult`. Needs the extra `ibm`.

    Raises:
        ResultError: The text is not the result of a primitive, in any of IBM's encodings.
        ConfigError: The extra is not installed.
    """
    with needs_extra("ibm"):
        from qiskit.primitives import PrimitiveResult
        from qiskit_ibm_runtime.decoders.result_decoder import ResultDecoder

    try:
        result = ResultDecoder.decode(text)
        if isinstance(result, dict) and "results" in result:
            result = _build_primitive_result(result)
    except Exception as error:  # the decoder documents no exceptions
        raise _undecodable("primitive", error) from error
    if not isinstance(result, PrimitiveResult):
        raise _undecodable("primitive", type(result).__name__)
    return _with_names_as_written(result)


def _with_names_as_written(result: PrimitiveResult[Any]) -> PrimitiveResult[Any]:
    """Return a result whose fields have the names that the user gave to the registers."""
    from qiskit.primitives import DataBin, PrimitiveResult

    if all(as_written(name) == name for pub in result for name in pub.data):
        return result
    pubs = []
    for pub in result:
        # `DataBin` refuses a few names, such as `size`; these registers keep the sent one.
        fields = {
            name if hasattr(DataBin, as_written(name)) else as_written(name): value
            for name, value in pub.data.items()
        }
        pubs.append(type(pub)(DataBin(shape=pub.data.shape, **fields), metadata=pub.metadata))
    return PrimitiveResult(pubs, metadata=result.metadata)


def _build_primitive_result(document: Mapping[str, Any]) -> PrimitiveResult[Any]:
    from qiskit.primitives import BitArray, DataBin, PrimitiveResult, PubResult, SamplerPubResult

    pubs = []
    for pub, fields in zip(document["results"], _read_pubs(document), strict=True):
        values = {
            name: BitArray(field.packed, field.num_bits) if isinstance(field, Bits) else field
            for name, field in fields.items()
        }
        is_sampled = any(isinstance(field, Bits) for field in fields.values())
        shapes = (field.shape for field in fields.values() if isinstance(field, Bits))
        shape = next(shapes, ()) if is_sampled else fields["evs"].shape
        pub_class = SamplerPubResult if is_sampled else PubResult
        pubs.append(pub_class(DataBin(shape=shape, **values), pub.get("metadata", {})))
    return PrimitiveResult(pubs, document.get("metadata", {}))


def _decode(program: str, text: str, convert: Callable[[_Item], Any]) -> list[_Item]:
    is_primitive = program in ("sampler", "estimator")
    try:
        document = json.loads(text)
        items = _read_pubs(document) if is_primitive else _read_items(document)
        return [convert(item) for item in items]
    except _MALFORMED as error:
        raise _undecodable(program, error) from error


def _undecodable(program: str, reason: object) -> ResultError:
    return ResultError(
        f"IBM's {program} result cannot be decoded ({reason!r}); must be JSON as IBM's service "
        "writes it, plain or encoded. A newer release of qrmi-workflows may decode it."
    )


def _read_pubs(document: Mapping[str, Any]) -> list[_Item]:
    """Return the fields of each PUB's result by name: `Bits`, arrays, or `None`."""
    if "__type__" in document:
        pubs = document["__value__"]["pub_results"]
        return [_read_fields(decode_value(pub["__value__"]["data"])) for pub in pubs]
    read = [_read_fields(decode_value(pub["data"])) for pub in document["results"]]
    return [_in_shape(fields, _span_shape(document, index)) for index, fields in enumerate(read)]


def _read_warnings(document: Mapping[str, Any]) -> list[list[str]]:
    """Return each PUB's warnings; metadata of another form has none, and costs no result."""
    if "__type__" in document:
        pubs = [pub["__value__"] for pub in document["__value__"]["pub_results"]]
    else:
        pubs = document["results"]
    found = []
    for pub in pubs:
        metadata = pub.get("metadata")
        warnings = metadata.get("warnings") if isinstance(metadata, Mapping) else None
        found.append([str(each) for each in warnings] if isinstance(warnings, list) else [])
    return found


def _read_fields(fields: _Item) -> _Item:
    return {name: _read_field(name, field) for name, field in fields.items()}


def _read_field(name: str, field: Any) -> Any:
    if field is None or isinstance(field, Bits):
        return field
    import numpy as np

    array = np.asarray(field)
    if array.dtype == object:
        array = array.astype(float)  # null is not a number
    if array.dtype.kind not in "biufc":
        raise ValueError(f"{name} is of type {array.dtype}")
    return array


def _in_shape(fields: _Item, shape: tuple[int, ...]) -> _Item:
    """Give the samples of a broadcast PUB its shape, if they came in one flat list."""

    def is_flat(field: Any) -> bool:
        return isinstance(field, Bits) and field.shape == ()

    if math.prod(shape) <= 1:
        return fields
    return {
        name: field.in_shape(shape) if is_flat(field) else field for name, field in fields.items()
    }


def _span_shape(document: Mapping[str, Any], index: int) -> tuple[int, ...]:
    """Return a PUB's shape from the execution spans in the metadata; () if they do not have it.

    A span is `[start, stop, {INDEX: [shape, …]}]`, where the shape ends with the shots (seen on
    IBM's service in 2025 and 2026). Twirling adds an axis, at the front if the item after the shape
    is true (qiskit_ibm_runtime/execution_span/twirled_slice_span.py, read in 0.51.0).
    """
    try:
        spans = document["metadata"]["execution"]["execution_spans"]
        shape, *rest = next(span[2][str(index)] for span in spans if str(index) in span[2])
        if isinstance(rest[0], bool):
            return tuple(shape[1:-1] if rest[0] else shape[:-2])
        return tuple(shape[:-1])
    except (LookupError, StopIteration, TypeError):
        return ()


def _read_items(document: Any) -> list[_Item]:
    """Return the items of a result of another program, or the whole result as the only item."""
    content = decode_value(document)
    items = [content]
    if isinstance(content, Mapping):
        lists = (content.get(name) for name in ("data", "results"))
        items = next((each for each in lists if isinstance(each, list)), items)
    return [dict(item) if isinstance(item, Mapping) else {"value": item} for item in items]


def _registers_to_data(fields: _Item) -> _Item:
    # By the program, not by the names: a register may be called `evs`.
    registers = {as_written(name): _register_to_data(field) for name, field in fields.items()}
    return {"registers": registers}


def _estimates_to_data(fields: _Item) -> _Item:
    return {"evs": to_plain(fields["evs"]), **to_plain(fields)}


def _register_to_data(field: Any) -> Any:
    if isinstance(field, Bits):
        return {"num_bits": field.num_bits, "counts": _counts(field)}
    if field.dtype.kind != "c":  # how plain JSON writes levels is not documented
        raise ValueError(f"a register is of type {field.dtype}")
    return {"num_bits": field.shape[-1], "levels": to_plain(field)}


def _pub_to_arrays(fields: _Item) -> dict[str, np.ndarray[Any, Any]]:
    arrays = {as_written(name): field for name, field in fields.items() if field is not None}
    return dict(arrays_of(arrays))


def _counts(bits: Bits) -> Any:
    *outer, shots, size = bits.dimensions
    if outer:
        return [_counts(part) for part in bits]
    data, num_bits = bits.data, bits.num_bits
    samples = Counter(data[start * size : (start + 1) * size] for start in range(shots))
    counts: Counter[str] = Counter()
    for sample, number in samples.items():
        counts[f"{int.from_bytes(sample):0{num_bits}b}"[-num_bits:] if num_bits else ""] += number
    return dict(sorted(counts.items()))

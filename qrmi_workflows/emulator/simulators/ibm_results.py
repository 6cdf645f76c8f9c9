"""The texts of IBM's results: Qiskit's encoding, or plain JSON.

IBM's service chooses by the payload's `support_qiskit`. Plain JSON is described by
`sampler_result_v2_schema.json` and `estimator_result_v2_schema.json` in
https://github.com/Qiskit/ibm-quantum-schemas. The execution spans are as seen on the service in
2025 and 2026.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from qrmi_workflows.emulator.simulators.runtime_json import encode

if TYPE_CHECKING:
    from qiskit.primitives import BitArray, PrimitiveResult

__all__ = ["is_encoded", "stamp_spans", "write_result"]

# A simulator does not know when the device will execute the task.
_STARTED, _ENDED = (datetime(1970, 1, 1, microsecond=number) for number in (1, 2))


def is_encoded(params: Any, server: Mapping[str, bool]) -> bool:
    """Return whether a job's result has Qiskit's encoding.

    Args:
        params: The job's parameters.
        server: The fields of `ServerSettings`.
    """
    asks = isinstance(params, Mapping) and params.get("support_qiskit") is True
    return asks is server.get("encodes_if_asked", True)


def write_result(
    result: PrimitiveResult[Any], params: Mapping[str, Any], server: Mapping[str, bool]
) -> str:
    """Render a result as IBM's service does.

    Args:
        result: The result.
        params: The job's parameters.
        server: The fields of `ServerSettings`.
    """
    if is_encoded(params, server):
        encoded = type(result)(list(result), {**result.metadata, **_encoded_execution(result)})
        return encode(encoded)
    nested = server.get("nests_samples", True)
    results = [
        {
            "data": {name: _plain(value, nested) for name, value in pub.data.items()},
            "metadata": {"circuit_metadata": {}, **pub.metadata},
        }
        for pub in result
    ]
    metadata = {**result.metadata, **_execution(result)}
    return encode({"results": results, "metadata": metadata})


def _plain(value: Any, nested: bool) -> Any:
    return _samples(value, nested) if hasattr(value, "get_bitstrings") else value.tolist()


def _samples(bits: BitArray, nested: bool) -> dict[str, Any]:
    import numpy as np

    numbers = [hex(int(each or "0", 2)) for each in bits.get_bitstrings()]
    samples = np.array(numbers, dtype=object)
    if nested:
        samples = samples.reshape(*bits.shape, bits.num_shots)
    return {"samples": samples.tolist(), "num_bits": bits.num_bits}


def stamp_spans(text: str, started: float, ended: float) -> str:
    """Return a result whose execution spans say when the device executed the task.

    Args:
        text: The result, as `write_result` has rendered it.
        started: When the execution started, in seconds since the epoch.
        ended: When it ended.
    """
    for placeholder, time in ((_STARTED, started), (_ENDED, ended)):
        stamp = datetime.fromtimestamp(time, UTC).replace(tzinfo=None)
        text = text.replace(f'"{placeholder.isoformat()}"', f'"{stamp.isoformat()}"')
    return text


def _execution(result: PrimitiveResult[Any]) -> dict[str, Any]:
    """Return the metadata that has the shape of each sampled PUB."""
    slices = {
        str(index): [[*pub.data.shape, shots], [0, pub.data.size], [0, shots]]
        for index, pub, shots in _sampled(result)
    }
    if not slices:
        return {}
    started, ended = ({"date": time.isoformat()} for time in (_STARTED, _ENDED))
    return {"execution": {"execution_spans": [[started, ended, slices]]}}


def _encoded_execution(result: PrimitiveResult[Any]) -> dict[str, Any]:
    """Return the same as Qiskit encodes its classes."""
    slices = {
        str(index): [[*pub.data.shape, shots], 0, pub.data.size, 0, shots]
        for index, pub, shots in _sampled(result)
    }
    if not slices:
        return {}
    times = {"start": _STARTED, "stop": _ENDED}
    span = {name: _document("datetime", time.isoformat()) for name, time in times.items()}
    spans = [_document("DoubleSliceSpan", {**span, "data_slices": slices})]
    return {"execution": {"execution_spans": _document("ExecutionSpans", {"spans": spans})}}


def _document(kind: str, value: Any) -> dict[str, Any]:
    return {"__type__": kind, "__value__": value}


def _sampled(result: PrimitiveResult[Any]) -> Iterator[tuple[int, Any, int]]:
    for index, pub in enumerate(result):
        shots = next((v.num_shots for v in pub.data.values() if hasattr(v, "num_shots")), None)
        if shots is not None:
            yield index, pub, shots

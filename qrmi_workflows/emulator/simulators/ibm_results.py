"""The texts of IBM's results: Qiskit's encoding, or plain JSON.

IBM's service chooses by the payload's `support_qiskit`. Plain JSON is described by
`sampler_result_v2_schema.json` and `estimator_result_v2_schema.json` in
https://github.com/Qiskit/ibm-quantum-schemas. The execution spans are as seen on the service in
2025 and 2026.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qiskit.primitives import BitArray, PrimitiveResult

__all__ = ["is_encoded", "write_result"]


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
    from qiskit_ibm_runtime.json import RuntimeEncoder

    if is_encoded(params, server):
        return json.dumps(result, cls=RuntimeEncoder)
    nested = server.get("nests_samples", True)
    results = [
        {
            "data": {name: _plain(value, nested) for name, value in pub.data.items()},
            "metadata": {"circuit_metadata": {}, **pub.metadata},
        }
        for pub in result
    ]
    metadata = {**result.metadata, **_execution(result)}
    return json.dumps({"results": results, "metadata": metadata}, cls=RuntimeEncoder)


def _plain(value: Any, nested: bool) -> Any:
    return _samples(value, nested) if hasattr(value, "get_bitstrings") else value.tolist()


def _samples(bits: BitArray, nested: bool) -> dict[str, Any]:
    import numpy as np

    numbers = [hex(int(each or "0", 2)) for each in bits.get_bitstrings()]
    samples = np.array(numbers, dtype=object)
    if nested:
        samples = samples.reshape(*bits.shape, bits.num_shots)
    return {"samples": samples.tolist(), "num_bits": bits.num_bits}


def _execution(result: PrimitiveResult[Any]) -> dict[str, Any]:
    """Return the metadata that has the shape of each sampled PUB."""
    slices = {}
    for index, pub in enumerate(result):
        shots = next((v.num_shots for v in pub.data.values() if hasattr(v, "num_shots")), None)
        if shots is not None:
            slices[str(index)] = [[*pub.data.shape, shots], [0, pub.data.size], [0, shots]]
    if not slices:
        return {}
    time = {"date": datetime.now(UTC).replace(tzinfo=None).isoformat()}
    return {"execution": {"execution_spans": [[time, time, slices]]}}

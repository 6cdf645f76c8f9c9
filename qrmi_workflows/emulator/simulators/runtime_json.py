"""The encoding of qiskit-ibm-runtime (read in 0.47) for what most jobs and results consist of.

Its own encoder and decoder are the last resort: to import them takes longer than to simulate a
small circuit.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from typing import Any

__all__ = ["decode", "encode"]

_TYPE, _VALUE = "__type__", "__value__"


class _UnknownTypeError(Exception):
    """A type that only qiskit-ibm-runtime knows."""


def decode(text: str) -> Any:
    """Decode a job's input, as `RuntimeDecoder` does."""
    try:
        return json.loads(text, object_hook=_from_document)
    except _UnknownTypeError:
        from qiskit_ibm_runtime.json import RuntimeDecoder

        return json.loads(text, cls=RuntimeDecoder)


def encode(value: Any) -> str:
    """Encode a result, as `RuntimeEncoder` does."""
    try:
        return json.dumps(value, default=_to_document)
    except _UnknownTypeError:
        from qiskit_ibm_runtime.json import RuntimeEncoder

        return json.dumps(value, cls=RuntimeEncoder)


def _from_document(document: dict[str, Any]) -> Any:
    if _TYPE not in document:
        return document
    kind, value = document[_TYPE], document[_VALUE]
    if kind == "ObservablesArray":
        from qiskit.primitives.containers.observables_array import ObservablesArray

        return ObservablesArray(value)
    if kind not in ("QuantumCircuit", "ndarray") or not isinstance(value, str):
        raise _UnknownTypeError
    try:
        content = io.BytesIO(zlib.decompress(base64.standard_b64decode(value)))
    except (ValueError, zlib.error):  # some other text, or not valid, which it says better
        raise _UnknownTypeError from None
    if kind == "ndarray":
        import numpy as np

        return np.load(content)
    from qiskit.qpy import load

    return load(content)[0]


def _to_document(value: Any) -> Any:
    import numpy as np
    from qiskit.primitives.containers import (
        BitArray,
        DataBin,
        PrimitiveResult,
        PubResult,
        SamplerPubResult,
    )

    if isinstance(value, np.int64):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype != object:
        content = io.BytesIO()
        np.save(content, value, allow_pickle=False)
        encoded = base64.standard_b64encode(zlib.compress(content.getvalue())).decode()
        return {_TYPE: "ndarray", _VALUE: encoded}
    if type(value) is BitArray:
        return _document(value, array=value.array, num_bits=value.num_bits)
    if isinstance(value, DataBin):
        fields = dict(value.items())
        return {
            _TYPE: "DataBin",
            _VALUE: {"field_names": list(value), "shape": value.shape, "fields": fields},
        }
    if type(value) in (PubResult, SamplerPubResult):
        return _document(value, data=value.data, metadata=value.metadata)
    if type(value) is PrimitiveResult:
        return _document(value, pub_results=list(value), metadata=value.metadata)
    raise _UnknownTypeError


def _document(value: Any, **fields: Any) -> dict[str, Any]:
    return {_TYPE: type(value).__name__, _VALUE: fields}

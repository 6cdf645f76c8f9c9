"""Memoisation of what quantum apps take and return."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from parsl.data_provider.files import File
from parsl.dataflow.memoization import id_for_memo

from qrmi_workflows.payloads import Payload
from qrmi_workflows.results import QuantumResult
from qrmi_workflows.vendors.registry import identities

__all__ = ["register_memo_types"]


def register_memo_types() -> None:
    """Let Parsl recognise circuits, sequences, payloads, results, arrays, bytes and files.

    Parsl memoises calls of `cache=True` apps whose arguments it can identify; without this it
    refuses those that have such arguments. It holds for the whole process, so it is called by the
    program, once, before its first app. With a checkpoint, a rerun calls no QPU for what is known::

        register_memo_types()
        Config(..., memoizer=BasicMemoizer(checkpoint_mode="task_exit"))

    Equal values are recognised in whichever process they were made. An input file is known by its
    content, an output file by its path.
    """
    for kind, identify in (identities() | _OWN).items():
        id_for_memo.register(kind)(_tagged(kind, identify))
    id_for_memo.register(File)(_file)


def _tagged(kind: type, identify: Callable[[Any], bytes]) -> Callable[..., bytes]:
    def identified(value: Any, output_ref: bool = False) -> bytes:  # noqa: ARG001 - Parsl's
        return f"{kind.__module__}.{kind.__qualname__}:".encode() + identify(value)

    return identified


def _array(array: np.ndarray[Any, Any]) -> bytes:
    if array.dtype.hasobject:
        raise ValueError(
            f"an array of {array.dtype} cannot be memoised; allowed are numbers and strings. "
            "Convert it, or name its parameter in `ignore_for_cache`."
        )
    return f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes()


def _file(file: File, output_ref: bool = False) -> bytes:
    if output_ref or file.scheme != "file" or not Path(file.filepath).is_file():
        return f"File:{file.url}".encode()
    with Path(file.filepath).open("rb") as content:
        return b"File:" + hashlib.file_digest(content, "sha256").digest()


_OWN: dict[type, Callable[[Any], bytes]] = {
    Payload: lambda payload: f"{payload.vendor} {payload.digest}".encode(),
    QuantumResult: lambda result: repr(result).encode() + result.vendor_result.encode(),
    np.ndarray: _array,
    np.generic: lambda value: _array(np.asarray(value)),
    bytes: bytes,
}

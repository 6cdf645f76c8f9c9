"""Memoisation of the values that quantum apps take and return."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from parsl.data_provider.files import File
from parsl.dataflow.memoization import BasicMemoizer, id_for_memo
from parsl.dataflow.taskrecord import TaskRecord

from parsl_ext.qpus import MEMO_KEY, memo_key, qpus_of
from qrmi_workflows.config.variables import QPU_FALLBACK, QPU_NAME
from qrmi_workflows.payloads import Payload
from qrmi_workflows.results import QuantumResult
from qrmi_workflows.vendors.registry import identities

__all__ = ["QPUMemoizer", "register_memo_types"]


class QPUMemoizer(BasicMemoizer):
    """Parsl's memoizer, which also tells apart calls of one app on different QPUs.

    Parsl's own looks at the function and its arguments only. A `qpu_app` is safe with either; this
    one is for other apps, such as a `python_app` that calls `block_lease`. The arguments are those
    of `BasicMemoizer`.
    """

    def check_memo(self, task: TaskRecord) -> Future[Any] | None:
        """Return the future of an equal call on the same QPU, if there has been one."""
        executor = task["dfk"].executors.get(task["executor"])
        keyed = task.copy()
        if task["memoize"] and MEMO_KEY not in task["kwargs"] and executor:
            key = memo_key([executor]) if qpus_of(executor) else _environments_key()
            keyed["kwargs"] = {**task["kwargs"]} | ({MEMO_KEY: key} if key else {})
        found: Future[Any] | None = super().check_memo(keyed)
        task["hashsum"] = keyed["hashsum"]  # under which the result is stored
        return found


def _environments_key() -> str:
    """Return the QPU that an app gets if it opens a lease without naming one."""
    return " ".join(filter(None, map(os.environ.get, (QPU_NAME, QPU_FALLBACK))))


def register_memo_types() -> None:
    """Make Parsl recognise circuits, sequences, payloads, results, arrays, bytes and files.

    Parsl memoises a call of a `cache=True` app only if it can identify all arguments; without this
    function it refuses the types above. Call this function once in a program, before the first app:
    it applies to the whole process. With a checkpoint, a rerun then takes known results from the
    checkpoint instead of the QPU::

        register_memo_types()
        Config(..., memoizer=QPUMemoizer(checkpoint_mode="task_exit"))

    Equal values are recognised even if they were made in different processes. An input file is
    identified by its content, an output file by its path.
    """
    # `id_for_memo` is a `functools.singledispatch` function, and calls each implementation with
    # `output_ref` as a keyword (Parsl 2026.10.26).
    for kind, identify in (identities() | _IDENTIFIERS).items():
        id_for_memo.register(kind)(_with_type_name(kind, identify))
    id_for_memo.register(File)(_identify_file)


def _with_type_name(kind: type, identify: Callable[[Any], bytes]) -> Callable[..., bytes]:
    """Prefix an identity with its type, so that values of two types never share one."""

    def identify_with_type(value: Any, output_ref: bool = False) -> bytes:  # noqa: ARG001 - Parsl's
        return f"{kind.__module__}.{kind.__qualname__}:".encode() + identify(value)

    return identify_with_type


def _identify_array(array: np.ndarray[Any, Any]) -> bytes:
    if array.dtype.hasobject:
        raise ValueError(
            f"cannot memoise an array of dtype {array.dtype}: its elements must be numbers or "
            "strings. Convert it, or name its parameter in `ignore_for_cache`."
        )
    return f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes()


def _identify_file(file: File, output_ref: bool = False) -> bytes:
    if output_ref or file.scheme != "file" or not Path(file.filepath).is_file():
        return f"File:{file.url}".encode()
    with Path(file.filepath).open("rb") as content:
        return b"File:" + hashlib.file_digest(content, "sha256").digest()


_IDENTIFIERS: dict[type, Callable[[Any], bytes]] = {
    Payload: lambda payload: f"{payload.vendor} {payload.digest}".encode(),
    QuantumResult: lambda result: repr(result).encode() + result.vendor_result.encode(),
    np.ndarray: _identify_array,
    np.generic: lambda value: _identify_array(np.asarray(value)),
    bytes: bytes,
}

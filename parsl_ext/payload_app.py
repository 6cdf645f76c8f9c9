"""Run a payload without writing an app."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from parsl.data_provider.files import File
from parsl.dataflow.dflow import DataFlowKernelLoader
from parsl.dataflow.futures import AppFuture
from parsl.errors import NoDataFlowKernelError

from parsl_ext.apps import qpu_app
from parsl_ext.qpus import types_of
from parsl_ext.steps import FullName
from qrmi_workflows.errors import PayloadError, RequestError, UndecodedResultError
from qrmi_workflows.payloads import PayloadLike, to_payload
from qrmi_workflows.results import QuantumResult
from qrmi_workflows.vendors.registry import registered_types

__all__ = ["run_payload"]


def run_payload(
    payload: PayloadLike | File | Future[Any],
    *,
    shots: int | None = None,
    outputs: Sequence[File | Path | str] = (),
    qpu: str | None = None,
    executors: list[str] | str = "qpu",
    cache: bool = False,
) -> AppFuture:
    """Run one task in a block that holds a QPU.

    A payload that already exists is read and checked immediately, as for the QPUs that the call may
    run on. A future of another app's result, or of its output file, is awaited first::

        bell = run_payload("bell.json", outputs=[File("bell.result.json")])
        plot(bell.outputs[0])

    With an output file, the step has the same name as that of `qpu run PAYLOAD -o FILE`. Until it
    has succeeded, other runs of the program find its task and do not submit a second one.

    Parameters
    ----------
    payload : Payload, mapping, QuantumCircuit, Sequence, str, path, File, or a future of one
        The payload: a path or a File, or in memory as `Payload.from_content` takes it.
    shots : int | None
        A number of shots to use instead of the payload's own.
    outputs : sequence of File or path
        The file to write the result to, on a file system that the blocks share; at most one.
    qpu : str | None
        The QPU to use, if the block holds several.
    executors : list of str, or str
        Labels of the executors that the task may run on. Default is "qpu", the default label of
        `QPUExecutor`.
    cache : bool
        Whether Parsl memoises the call; see `register_memo_types`.

    Returns
    -------
    AppFuture
        A future of the `QuantumResult`, whose `outputs` has a future of the output file.

    Raises
    ------
    PayloadError
        The payload cannot be read, or does not match any vendor's schema.
    RequestError
        There is more than one output file.
    """
    files = [each if isinstance(each, File) else File(each) for each in outputs]
    if len(files) > 1:
        raise RequestError(
            f"{len(files)} output files: must be at most one, for the result. Name only one."
        )
    app = _payload_app(qpu, executors if isinstance(executors, str) else tuple(executors), cache)
    step = FullName(f"qpu run -o {Path(files[0].filepath).absolute()}") if files else None
    types = _types(qpu, executors)
    return app(_read_early(payload, shots, types), shots=shots, outputs=files, qpu_step=step)


@functools.cache
def _payload_app(
    qpu: str | None, executors: str | tuple[str, ...], cache: bool
) -> Callable[..., AppFuture]:
    """Return the app for these arguments, created once, as by a decorator."""
    labels = executors if isinstance(executors, str) else list(executors)
    return qpu_app(_run, qpu=qpu, executors=labels, cache=cache)


def _run(payload: Any, *, shots: int | None, outputs: list[File], lease: Any) -> QuantumResult:
    if isinstance(payload, File):
        payload = Path(payload.filepath)
    try:
        result: QuantumResult = lease.run(payload, shots=shots)
    except UndecodedResultError as error:
        _save(error.result, outputs)
        raise
    _save(result, outputs)
    return result


def _save(result: QuantumResult, outputs: list[File]) -> None:
    for output in outputs:
        result.save(output.filepath)


def _types(qpu: str | None, executors: list[str] | str) -> set[str | None]:
    """Return the types of the QPUs that a call may run on; `None` for one not known here."""
    try:
        kernel = DataFlowKernelLoader.dfk()
    except NoDataFlowKernelError:  # which the app's call will raise
        return {None}
    loaded: dict[str, Any] = kernel.executors
    if executors == "all":
        labels = [label for label in loaded if label != "_parsl_internal"]
    else:
        labels = [executors] if isinstance(executors, str) else executors
    return types_of((loaded[label] for label in labels if label in loaded), qpu, run=kernel.run_id)


def _read_early(payload: Any, shots: int | None, types: set[str | None]) -> Any:
    """Read a payload that already exists, so that the caller sees its errors immediately.

    If a QPU may have a type that no installed vendor has, which takes any JSON object, only the
    block can tell whether an object is refused.
    """
    if isinstance(payload, Future) or (isinstance(payload, File) and payload.scheme != "file"):
        return payload
    source = Path(payload.filepath) if isinstance(payload, File) else payload
    if len(types) == 1 and None not in types:
        return to_payload(source, shots=shots, resource_type=next(iter(types)))
    try:
        return to_payload(source, shots=shots)
    except PayloadError:
        if types <= set(registered_types()):
            raise
        if (content := _read_object(source)) is None:
            raise
        return content


def _read_object(source: Any) -> dict[str, Any] | None:
    """Return the JSON object that a mapping, a text or a file holds; `None` if it holds none."""
    if isinstance(source, Mapping):
        return dict(source)
    with suppress(OSError, TypeError, ValueError, RecursionError):
        is_text = isinstance(source, str) and source.lstrip().startswith("{")
        content = json.loads(source if is_text else Path(source).read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else None
    return None

"""Steps that are a payload and nothing else: no app to write."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from parsl.data_provider.files import File
from parsl.dataflow.futures import AppFuture

from parsl_ext.apps import archive_step, qpu_app
from qrmi_workflows.errors import RequestError
from qrmi_workflows.payloads import Payload
from qrmi_workflows.results import QuantumResult

__all__ = ["run_payload"]


def run_payload(
    payload: Payload | Mapping[str, Any] | Path | str | File | Future[Any],
    *,
    shots: int | None = None,
    outputs: Sequence[File | Path | str] = (),
    qpu: str | None = None,
    executors: list[str] | str = "qpu",
    cache: bool = False,
) -> AppFuture:
    """Run one task in a block that holds a QPU; a quantum-only step.

    A payload that is here already is read and checked now. A future, of another app's result or of
    its output file, is waited for::

        bell = run_payload("bell.json", outputs=[File("bell.result.json")])
        plot(bell.outputs[0])

    With an output file the step is the one of `qpu run PAYLOAD -o FILE`: until it has ended well
    another run of the program finds its task, and pays for no second one.

    Parameters
    ----------
    payload : Payload, mapping, path, File, or a future of one
        What to run.
    shots : int | None
        Another number of shots than the payload's own.
    outputs : sequence of File or path
        Where to write the result: at most one file, on the file system that blocks share.
    qpu : str | None
        Which of the block's QPUs, where it holds several.
    executors : list of str, or str
        Labels of the executors that it may run on. Default is "qpu", `QPUExecutor`'s.
    cache : bool
        Whether Parsl memoises it; see `register_memo_types`.

    Returns
    -------
    AppFuture
        Of the `QuantumResult`. The files that were written are its `outputs`.

    Raises
    ------
    PayloadError
        The payload cannot be read, or is of no vendor's schema.
    RequestError
        More than one output file is asked for.
    """
    files = [each if isinstance(each, File) else File(each) for each in outputs]
    if len(files) > 1:
        raise RequestError(f"{len(files)} output files; allowed is one, for the result. Name one.")
    app = _app(qpu, executors if isinstance(executors, str) else tuple(executors), cache)
    step = f"qpu run -o {Path(files[0].filepath).absolute()}" if files else None
    future = app(_ready(payload), shots=shots, outputs=files, qpu_step=step)
    if step is not None:
        future.add_done_callback(
            lambda done: archive_step(step) if done.exception() is None else None
        )
    return future


@functools.cache
def _app(
    qpu: str | None, executors: str | tuple[str, ...], cache: bool
) -> Callable[..., AppFuture]:
    labels = executors if isinstance(executors, str) else list(executors)
    return qpu_app(_run, qpu=qpu, executors=labels, cache=cache)


def _run(payload: Any, *, shots: int | None, outputs: list[File], lease: Any) -> QuantumResult:
    if isinstance(payload, File):
        payload = Path(payload.filepath)
    result: QuantumResult = lease.run(payload, shots=shots)
    for output in outputs:
        result.save(output.filepath)
    return result


def _ready(payload: Any) -> Any:
    """Read what can be read now, so that what is wrong with it is said to the caller."""
    if isinstance(payload, Path | str) or (isinstance(payload, File) and payload.scheme == "file"):
        return Payload.from_file(Path(payload))
    if isinstance(payload, Mapping):
        return Payload.from_content(payload)
    return payload

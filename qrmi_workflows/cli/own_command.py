"""Recognise a COMMAND of `qpu lease exec` that is a `qpu run` of this installation.

Such a command needs no interpreter of its own. It also checks its payload before the QPU is
acquired, so an invalid one costs no lease.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from qrmi_workflows.config.job import write_job
from qrmi_workflows.config.variables import QPU_STAGE
from qrmi_workflows.errors import QPUError
from qrmi_workflows.lease.acquire import find_qpu
from qrmi_workflows.lease.prepared import PreparedProcess

__all__ = ["own_arguments", "prepare"]

_SCRIPT_BYTES = 1000
_ENTRY = b"from qrmi_workflows.cli import main"


@contextmanager
def prepare(
    command: Sequence[str],
    qpus: str | list[str] | None,
    *,
    stage: str | None,
    config: Path | None,
) -> Iterator[PreparedProcess | None]:
    """Start a process for a `qpu run` of this installation; it ends if it is given no lease.

    Args:
        command: The command that is to run under a lease.
        qpus: As in `open_lease`.
        stage: As in `open_lease`.
        config: As in `open_lease`.

    Yields:
        The process; `None` if the command is another one.
    """
    arguments = own_arguments(command)
    if arguments is None:
        yield None
        return

    def work(await_lease: Callable[[], None]) -> NoReturn:
        from qrmi_workflows.cli import main

        try:
            _expect(qpus, stage, config)
        except QPUError:
            await_lease()  # which ends the process: the supervisor meets the same error
            main(arguments)
        main(arguments, await_lease=await_lease)

    with PreparedProcess(work) as process:
        yield process


def own_arguments(command: Sequence[str]) -> list[str] | None:
    """Return the arguments of `qpu` if a command is a `qpu run` of this installation."""
    program = shutil.which(command[0])
    if program is None:
        return None
    if _is_own_script(program):
        arguments = list(command[1:])
    elif _is_own_interpreter(program) and tuple(command[1:3]) == ("-m", "qrmi_workflows"):
        arguments = list(command[3:])
    else:
        return None
    return arguments if arguments[:1] == ["run"] else None


def _is_own_script(program: str) -> bool:
    """Return whether a program is the script that pip writes for `qpu`, for this interpreter."""
    if Path(program).name != "qpu":
        return False
    try:
        with Path(program).open("rb") as file:
            head = file.read(_SCRIPT_BYTES)
    except OSError:
        return False
    first, _, rest = head.partition(b"\n")
    interpreter = os.fsdecode(first.removeprefix(b"#!").strip())
    return first.startswith(b"#!") and _ENTRY in rest and _is_own_interpreter(interpreter)


def _is_own_interpreter(program: str) -> bool:
    # By its folder: a link of another virtual environment may lead to the same binary.
    own, other = Path(sys.executable), Path(program)
    try:
        return other.parent.samefile(own.parent) and other.samefile(own)
    except OSError:
        return False


def _expect(qpus: str | list[str] | None, stage: str | None, config: Path | None) -> None:
    """Describe the QPUs of the lease in the environment, as it will, but without tokens."""
    name = stage or os.environ.get(QPU_STAGE)
    if qpus is None and name:
        from qrmi_workflows.lease.stage import find_stage

        qpus = find_stage(name).qpu
    names = qpus if isinstance(qpus, list) else [qpus]
    os.environ.update(write_job([find_qpu(each, config=config) for each in names]))

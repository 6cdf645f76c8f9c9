"""`qpu run`: one quantum-only step."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qrmi_workflows.cli.outputs import require_writable
from qrmi_workflows.errors import PayloadError, QPUError, ResultError

if TYPE_CHECKING:
    from qrmi_workflows.environment import JobQPU
    from qrmi_workflows.results import QuantumResult
    from qrmi_workflows.tasks import OnAmbiguous, OnStop

__all__ = ["run"]

_TARGET_SECONDS = 5.0  # what looking at a QPU's abilities may cost before it is used


@click.command()
@click.argument("payload", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The result's file."
)
@click.option("--qpu", metavar="NAME", help="The QPU; not needed where there is just one.")
@click.option("--shots", type=int, metavar="N", help="Instead of the payload's own number.")
@click.option(
    "--observables",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="For a circuit: JSON of Pauli labels, to be estimated.",
)
@click.option("--precision", type=float, metavar="X", help="For a circuit: of the estimates.")
@click.option(
    "--config", type=click.Path(path_type=Path), help="qrmi_config.json; else $QPU_CONFIG."
)
@click.option(
    "--on-stop",
    type=click.Choice(["cancel", "leave"]),
    default="cancel",
    show_default=True,
    help="When stopped: cancel the task, or leave it to a rerun.",
)
@click.option(
    "--on-ambiguous",
    type=click.Choice(["fail", "resubmit"]),
    default="fail",
    show_default=True,
    help="When nobody knows whether the vendor accepted the task.",
)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing of the task's progress.")
def run(
    payload: Path,
    output: Path,
    qpu: str | None,
    shots: int | None,
    observables: Path | None,
    precision: float | None,
    config: Path | None,
    on_stop: OnStop,
    on_ambiguous: OnAmbiguous,
    quiet: bool,
) -> None:
    """Run the one task of the file PAYLOAD and write its result.

    PAYLOAD is a JSON object of upstream's task_runner schema: `program_id` and `parameters` for
    IBM's primitives, `sequence` and `job_runs` for Pulser; or a program alone: OpenQASM 3, QPY, or
    Pulser's abstract representation. Everything that can be wrong with it is refused before a QPU
    is acquired, with exit code 2; a task that fails exits with 1. Without a lease in the job's
    environment one is opened for the task.

    Run again after it was cut off, it finds the task that it had submitted, and waits for that one
    or fetches its result; nothing is paid for twice.

    \b
    Examples:
      qpu run bell.json -o bell.result.json --qpu ibm_fez
      qpu run circuit.qasm --shots 1000 -o circuit.result.json
    """  # noqa: D301 - click's mark of lines that are not to be joined
    from qrmi_workflows import open_lease
    from qrmi_workflows.acquire import find_qpu
    from qrmi_workflows.journal import ATTEMPT_VARIABLE, STEP_VARIABLE, Journal
    from qrmi_workflows.payloads import Payload

    task = Payload.from_file(
        payload,
        shots=shots,
        observables=None if observables is None else _read_observables(observables),
        precision=precision,
    )
    require_writable(output, apart_from=payload)
    found = find_qpu(qpu, config=config)
    task.require_type(found.name, found.type)
    task.require_fit(found.name, None)
    task.require_fit(found.name, _find_target(found))
    within = STEP_VARIABLE in os.environ and ATTEMPT_VARIABLE in os.environ
    # Within a step its name is the step's, and who ends the step settles it.
    step = None if within else f"qpu run -o {output.absolute()}"
    with open_lease(found.name, config=config, step=step) as lease:
        result = lease.run(
            task,
            on_state=None if quiet else _say,
            on_stop=on_stop,
            on_ambiguous=on_ambiguous,
        )
        _save(result, output)  # before the release, which may take its time
    if step is not None:
        Journal().settle(step)


def _save(result: QuantumResult, output: Path) -> None:
    try:
        result.save(output)
    except OSError as error:
        raise ResultError(
            f"{output}: the result could not be written: {error.strerror or error}. Make room, "
            "then run the same command again: the journal knows the task, so nothing is paid for."
        ) from error


def _say(task_id: str, state: object) -> None:
    click.echo(f"task {task_id}: {state}", err=True)


def _read_observables(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PayloadError(
            f"{path}: no observables: {error}. Name a file of JSON: a Pauli label, an object of "
            "labels and coefficients, or a list of those."
        ) from error


def _find_target(qpu: JobQPU) -> str | None:
    """Return what the QPU can do, where that is known or soon said: else the vendor checks."""
    from qrmi_workflows.resource import QRMIResource
    from qrmi_workflows.targets import fetch_target

    with suppress(QPUError):
        deadlines = {"target": _TARGET_SECONDS}
        resource = QRMIResource(
            qpu.name, qpu.type, qpu.environment, token=qpu.token, deadlines=deadlines
        )
        return fetch_target(qpu, resource=resource).text
    return None

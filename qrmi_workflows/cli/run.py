"""`qpu run`: one quantum-only step."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qrmi_workflows.errors import RequestError

if TYPE_CHECKING:
    from qrmi_workflows.tasks import OnAmbiguous, OnStop

__all__ = ["run"]


@click.command()
@click.argument("payload", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The result's file."
)
@click.option("--qpu", metavar="NAME", help="The QPU; not needed where there is just one.")
@click.option("--shots", type=int, metavar="N", help="Instead of the payload's own number.")
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
    config: Path | None,
    on_stop: OnStop,
    on_ambiguous: OnAmbiguous,
    quiet: bool,
) -> None:
    r"""Run the one task of the file PAYLOAD and write its result.

    PAYLOAD is a JSON object of upstream's task_runner schema: `program_id` and `parameters` for
    IBM's primitives, `sequence` and `job_runs` for Pulser. Everything that can be wrong with it is
    refused before a QPU is acquired, with exit code 2; a task that fails exits with 1. Without a
    lease in the job's environment one is opened for the task.

    Run again after it was cut off, it finds the task that it had submitted, and waits for that one
    or fetches its result; nothing is paid for twice.

    \b
    Example:
      qpu run bell.json -o bell.result.json --qpu ibm_fez
    """
    from qrmi_workflows.journal import Journal
    from qrmi_workflows.lease import find_qpu, open_lease
    from qrmi_workflows.payloads import Payload

    task = Payload.from_file(payload)
    if shots is not None:
        task = task.with_shots(shots)
    _require_writable(output)
    found = find_qpu(qpu, config=config)
    task.require_type(found.name, found.type)
    step = f"qpu run -o {output.absolute()}"
    with open_lease(found.name, config=config, step=step) as lease:
        result = lease.run(
            task,
            on_state=None if quiet else _say,
            on_stop=on_stop,
            on_ambiguous=on_ambiguous,
        )
    result.save(output)
    Journal().settle(step)


def _say(task_id: str, state: object) -> None:
    click.echo(f"task {task_id}: {state}", err=True)


def _require_writable(output: Path) -> None:
    folder = output.parent
    if output.is_dir() or not os.access(folder, os.W_OK):
        raise RequestError(
            f"{output}: the result could not be written there. Name a file in a folder that exists "
            "and that you may write to."
        )

"""`qpu run`: run a quantum-only step."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qrmi_workflows.cli.outputs import require_writable
from qrmi_workflows.cli.types import CONFIG_OPTION, FALLBACK_OPTION, Command, constraint_options
from qrmi_workflows.errors import (
    PayloadError,
    ResultError,
    UndecodedResultError,
)

if TYPE_CHECKING:
    from qrmi_workflows.config.job import JobQPU
    from qrmi_workflows.config.variables import OnStop
    from qrmi_workflows.payloads import Payload
    from qrmi_workflows.results import QuantumResult
    from qrmi_workflows.tasks.run import OnAmbiguous

__all__ = ["run"]


@click.command(cls=Command)
@click.argument("payload", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The result file. Required, except with --estimate.",
)
@click.option(
    "--qpu",
    metavar="REQUEST",
    help="The QPU; or a pattern or alternatives (A|B), of which the least busy one is chosen. May "
    "be omitted if there is only one.",
)
@constraint_options
@FALLBACK_OPTION
@click.option(
    "--shots", type=int, metavar="N", help="The number of shots; overrides the payload's own."
)
@click.option(
    "--observables",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="For a circuit: a JSON file with the observables to estimate.",
)
@click.option(
    "--precision",
    type=float,
    metavar="X",
    help="For a circuit: the standard error that the estimates must reach.",
)
@CONFIG_OPTION
@click.option(
    "--on-stop",
    type=click.Choice(["cancel", "leave"]),
    show_default="$QPU_ON_STOP, or cancel",
    help="What to do with the task if the command is stopped: cancel it, or leave it for a rerun.",
)
@click.option(
    "--on-ambiguous",
    type=click.Choice(["fail", "resubmit"]),
    default="fail",
    show_default=True,
    help="What to do if it is not known whether the vendor accepted the task.",
)
@click.option(
    "--coalesce",
    is_flag=True,
    help="Share a task with other steps that wait for the QPU at the same time, if all agree.",
)
@click.option(
    "--estimate",
    is_flag=True,
    help="Print what the task is expected to take, and submit nothing.",
)
@click.option("--json", "as_json", is_flag=True, help="With --estimate: print JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Do not print the task's progress.")
@click.pass_obj
def run(
    await_lease: Callable[[], None] | None,
    payload: Path,
    output: Path | None,
    qpu: str | None,
    min_qubits: int | None,
    type_: str | None,
    where: str | None,
    fallback: str | None,
    shots: int | None,
    observables: Path | None,
    precision: float | None,
    config: Path | None,
    on_stop: OnStop | None,
    on_ambiguous: OnAmbiguous,
    coalesce: bool,
    estimate: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run the task in the file PAYLOAD and write its result.

    PAYLOAD is a JSON object in the schema of QRMI's task_runner (`program_id` and `parameters` for
    IBM's primitives, `sequence` and `job_runs` for Pulser, `iqmjson` and `job_type` for IQM,
    `human_qir` and `input_params` for Felis, `job_type` and `program` for OQTOPUS), or a program in
    OpenQASM 3, QPY, Pulser's abstract representation, IQM JSON or QIR; other packages may add the
    formats of other vendors. If the job has no lease, the command opens one for the task.

    An invalid payload is refused before a QPU is acquired; the exit code is then 2. If the task
    fails, the exit code is 1. The same holds if its result cannot be decoded; the vendor's text is
    then written to the result file all the same.

    If --qpu or a condition leaves a choice, the least busy available QPU of the payload's vendor
    that fits is chosen. A rerun goes to the QPU that has the task.

    With --fallback, a task whose QPU goes away before it has run moves to the next QPU. The exit
    code is 75 if that one needs a job of its own.

    If the command is interrupted, run it again: it waits for the task that was submitted, or
    fetches its result. You do not pay for the task twice.

    With --estimate, nothing is submitted, and no QPU is acquired. What is printed are the shots and
    the QPU seconds that the task is expected to take, and where these figures come from.

    \b
    Examples:
      qpu run bell.json -o bell.result.json --qpu ibm_fez
      qpu run circuit.qasm --shots 1000 -o circuit.result.json
    """  # noqa: D301 - with \b, click does not rewrap a paragraph
    if output is None and not estimate:
        raise click.UsageError("Missing option '-o' / '--output'.")
    if as_json and not estimate:
        raise click.UsageError("--json needs --estimate: a result file is JSON already.")
    from qrmi_workflows.cli.task_request import TaskRequest
    from qrmi_workflows.lease.chosen import open_chosen
    from qrmi_workflows.payloads import Payload

    request = TaskRequest(
        read=partial(
            Payload.from_file,
            payload,
            shots=shots,
            observables=None if observables is None else _read_observables(observables),
            precision=precision,
        ),
        qpu=qpu,
        min_qubits=min_qubits,
        type=type_,
        where=where,
        fallback=fallback,
        config=config,
        coalesce=coalesce,
        step=_own_step(output),
        await_lease=await_lease,
    )
    if output is None or estimate:
        _print_estimate(*request.find_fitting(request.choose()), as_json=as_json)
        return
    require_writable(output, source=payload)
    lease, task = open_chosen(request.choose, request.open)
    with lease:
        try:
            result = lease.run(
                task,
                on_state=None if quiet else _print_state,
                on_stop=on_stop,
                on_ambiguous=on_ambiguous,
            )
        except UndecodedResultError as error:
            _save(error.result, output)
            raise ResultError(
                f"{error.message} The text is also in {output}, in `vendor_result`; the same "
                "command, run again, decodes it too."
            ) from error
        _save(result, output)  # before the release, which may fail or take a while
    if result.decode_error is not None:
        click.echo(
            f"qpu: {result.decode_error} {output} has the vendor's text, in `vendor_result`.",
            err=True,
        )
    if request.step is not None:
        from qrmi_workflows.journal.journal import Journal

        Journal().archive(request.step)


def _own_step(output: Path | None) -> str | None:
    """Return the name of this command's own step; `None` if it belongs to one of a workflow.

    The task is then journaled under that step, and the engine archives it.
    """
    from qrmi_workflows.config.variables import QPU_ATTEMPT, QPU_STEP

    is_within_step = QPU_STEP in os.environ and QPU_ATTEMPT in os.environ
    return None if is_within_step or output is None else f"qpu run -o {output.absolute()}"


def _print_estimate(qpu: JobQPU, task: Payload, *, as_json: bool) -> None:
    from dataclasses import asdict

    from qrmi_workflows.budgets.estimates import FEWEST, estimate_task
    from qrmi_workflows.budgets.history import read_history

    amount = estimate_task(task, qpu.type, read_history(qpu.name, qpu.identity))
    if as_json:
        click.echo(json.dumps({"qpu": qpu.name, "program": task.program, **asdict(amount)}))
        return
    shots = "an unknown number of" if amount.shots is None else amount.shots
    seconds = "an unknown number of" if amount.seconds is None else f"about {amount.seconds:.10g}"
    origin = amount.origin
    if amount.seconds is None:
        origin = f"not known until {FEWEST} tasks like it were measured"
    origin = f" ({origin})" if origin else ""
    click.echo(f"{qpu.name}: {shots} shots, {seconds} QPU seconds{origin}")


def _save(result: QuantumResult, output: Path) -> None:
    try:
        result.save(output)
    except OSError as error:
        raise ResultError(
            f"{output}: the result could not be written: {error.strerror or error}. Free some "
            "space and run the same command again. The result is in the journal, so the task does "
            "not run again."
        ) from error


def _print_state(task_id: str, state: object) -> None:
    click.echo(f"task {task_id}: {state}", err=True)


def _read_observables(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PayloadError(
            f"{path}: cannot read the observables: {reason}. Must be a JSON file with a Pauli "
            "label, an object from labels to coefficients, or a list of these. Correct the file or "
            "its name."
        ) from error

"""`qpu result`: results in files and in the journal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qrmi_workflows.cli.outputs import require_writable
from qrmi_workflows.cli.types import Group
from qrmi_workflows.errors import JournalError

if TYPE_CHECKING:
    from qrmi_workflows.results import QuantumResult

__all__ = ["result"]


@click.group(cls=Group)
def result() -> None:
    """Decode results in files and in the journal."""


@result.command()
@click.argument("source", metavar="FILE|TASK")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the result file FILE, which may be the one that is read.",
)
def decode(source: str, output: Path | None) -> None:
    """Decode a result with this release, from the vendor's text.

    FILE is a result file. TASK is a task in the journal: the vendor's id, or the beginning of the
    payload's digest. Nothing runs, and nothing is paid for. Use it for a result that an earlier
    release could not decode. Without -o, the result is printed as JSON.

    If this release cannot decode the result either, nothing is written; the exit code is 1.

    \b
    Examples:
      qpu result decode bell.result.json -o bell.result.json
      qpu result decode d1c0c5kv… -o bell.result.json
    """  # noqa: D301 - with \b, click does not rewrap a paragraph
    if output is not None:
        require_writable(output)
    kept = _find(source)
    decoded = replace(kept, data=[], decode_error=None).decoded()
    if output is None:
        click.echo(decoded.to_json())
    else:
        decoded.save(output)
        click.echo(f"result of task {decoded.task_id}: written to {output}", err=True)
    if decoded.decode_error is not None:
        click.echo(f"qpu: {decoded.decode_error}", err=True)


def _find(source: str) -> QuantumResult:
    from qrmi_workflows.journal.journal import Journal
    from qrmi_workflows.results import QuantumResult

    if Path(source).exists():
        return QuantumResult.load(source)
    record = Journal().find(source)
    if record is None:
        raise JournalError(
            f"{source}: no such result file, and no such task in the journal. Name a result file, "
            "or a task that `qpu journal list` or `qpu journal list --archived` shows."
        )
    if record.result is None:
        raise JournalError(
            f"task {source} has no result: its state is {record.state}. Run its step again, which "
            f"fetches the result: {record.step}"
        )
    return record.result

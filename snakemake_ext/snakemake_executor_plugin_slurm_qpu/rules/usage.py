"""The rule `usage`: this workflow's leases as a table, and as a page of Snakemake's report."""

import csv
import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from qrmi_workflows.lease.record import LeaseRecord
from snakemake_executor_plugin_slurm_qpu.telemetry import WORKFLOW_RECORDS

COLUMNS = ("rule", "qpu", "job", "acquired", "queue_wait", "held", "busy", "idle", "tasks")


def rows_of(lines: Iterable[str]) -> list[list[Any]]:
    """Parse lease records, one JSON object per line, into the rows of the table."""
    return [_row(json.loads(line)) for line in lines]


def render_page(rows: Sequence[Sequence[Any]]) -> str:
    """Render the rows as a self-contained HTML page."""
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return (
        '<!doctype html><meta charset="utf-8"><title>QPU usage</title>'
        "<style>body{font:14px sans-serif}td,th{padding:.2em .8em;text-align:left}</style>"
        f"<h1>{len(rows)} leases; durations in seconds</h1>"
        f"<table><tr>{head}</tr>{body}</table>"
    )


def _row(document: dict[str, Any]) -> list[Any]:
    rule = document.pop("rule")
    record = LeaseRecord.from_json(json.dumps(document))
    others = {"rule": rule, "job": record.owner.job}
    return [others[name] if name in others else getattr(record, name) for name in COLUMNS]


def _text(cell: object) -> str:
    return html.escape("" if cell is None else str(cell))


def _main(rule: Any) -> None:
    # A workflow that has used no QPU yet has no records, and an empty table.
    text = WORKFLOW_RECORDS.read_text(encoding="utf-8") if WORKFLOW_RECORDS.exists() else ""
    rows = rows_of(text.splitlines())
    with Path(rule.output.table).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    Path(rule.output.page).write_text(render_page(rows), encoding="utf-8")


if __name__ == "__main__":
    _main(snakemake)  # type: ignore[name-defined]  # noqa: F821 - Snakemake gives it to its scripts

"""How well a run used its QPUs: a table beside the stock executor's report of CPU efficiency.

A job with a QPU waits for it most of the time, so its CPU efficiency is a few per cent, and says
nothing about whether anything was wasted. What is scarce is the QPU.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.lease.record import LeaseRecord
from qrmi_workflows.schedulers.command import require_success, run_command
from qrmi_workflows.schedulers.slurm_accounting import CPUUse, cpu_use_argv, parse_cpu_use

__all__ = ["COLUMNS", "QPUUse", "write_report"]

COLUMNS = (
    *("rule", "qpu", "jobs", "leases", "tasks"),
    *("held_seconds", "busy_seconds", "idle_seconds", "QPU Efficiency (%)"),
    *("elapsed_seconds", "CPU Efficiency (%)"),
)
"""The columns of the report; the last one is named as in the stock executor's."""


@dataclass(slots=True)
class _Row:
    jobs: set[str] = field(default_factory=set)
    leases: int = 0
    tasks: int = 0
    held: float = 0.0
    busy: float = 0.0
    idle: float = 0.0


@dataclass(slots=True)
class QPUUse:
    """The leases of a run, by rule and QPU."""

    _rows: dict[tuple[str, str], _Row] = field(default_factory=dict)

    def add(self, rule: str, job_id: str, records: Iterable[LeaseRecord]) -> None:
        """Add the leases of an ended job.

        Args:
            rule: The name of the job's rule or group.
            job_id: The Slurm job's id.
            records: What its leases have left.
        """
        for record in records:
            row = self._rows.setdefault((rule, record.qpu), _Row())
            row.jobs.add(job_id)
            row.leases += 1
            row.tasks += record.tasks
            row.held += record.held
            row.busy += record.busy
            row.idle += record.idle

    def table(self, cpu_use: Mapping[str, CPUUse]) -> list[dict[str, object]]:
        """Return a row for each rule and QPU, with `COLUMNS`.

        Args:
            cpu_use: What the accounting knows of the jobs, by id; jobs may be missing.
        """
        return [
            _as_dict(rule, qpu, row, [cpu_use[job] for job in row.jobs if job in cpu_use])
            for (rule, qpu), row in sorted(self._rows.items())
        ]


def write_report(use: QPUUse, *, run: str, folder: Path, logger: logging.Logger) -> None:
    """Write the report of a run, and log a line for each rule and QPU.

    Args:
        use: The run's leases; without any, nothing is written.
        run: The run's id, the name of its jobs.
        folder: The folder of the report.
        logger: Snakemake's logger.
    """
    if not (rows := use.table(_ask(run, logger))):
        return
    file = folder / f"qpu_efficiency_report_{run}.csv"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with file.open("w", encoding="utf-8", newline="") as opened:
            writer = csv.DictWriter(opened, fieldnames=COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        logger.warning(f"{file}: {error.strerror or error}; the QPUs' efficiency is not reported.")
        return
    for row in rows:
        logger.info(_describe(row))
    logger.info(f"Efficiency report of the QPUs saved to {file}.")


def _ask(run: str, logger: logging.Logger) -> dict[str, CPUUse]:
    try:
        return parse_cpu_use(require_success(run_command(cpu_use_argv(run))).stdout)
    except SchedulerError as error:
        logger.info(f"The report of the QPUs' efficiency has no CPU time: {error}")
        return {}


def _as_dict(rule: str, qpu: str, row: _Row, jobs: list[CPUUse]) -> dict[str, object]:
    available = sum(job.elapsed * job.cpus for job in jobs)
    used = sum(job.used for job in jobs)
    values = (
        *(rule, qpu, len(row.jobs), row.leases, row.tasks),
        *(round(row.held, 3), round(row.busy, 3), round(row.idle, 3)),
        _per_cent(row.busy, row.held),
        round(sum(job.elapsed for job in jobs)) if jobs else None,
        _per_cent(used, available),
    )
    return dict(zip(COLUMNS, values, strict=True))


def _per_cent(part: float, whole: float) -> float | None:
    return round(100 * part / whole, 1) if whole > 0 else None


def _describe(row: Mapping[str, object]) -> str:
    cpus = row["CPU Efficiency (%)"]
    of_cpus = (
        ""
        if cpus is None
        else f" Its jobs used {cpus} % of their CPUs, because they wait for the QPU."
    )
    return (
        f"Rule {row['rule']}: QPU {row['qpu']} was held {row['held_seconds']} s and busy "
        f"{row['QPU Efficiency (%)'] or 0} % of that time.{of_cpus}"
    )

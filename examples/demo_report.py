"""The demo's report: energies, Slurm's jobs, leases, and everything that went wrong."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from qrmi_workflows.schedulers.gres import gres_of_job

CHEMICAL_ACCURACY = 1.6e-3
"""In hartree. The emulator is noise-free, so every energy must be this accurate."""

EXPECTED_LEASES = {"FRESNEL": 1, "ibm_fez": 2}
"""One for the antennas, one for hydrogen's energy curve and one for the whole variational loop."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of the report.

    Attributes:
        energies: The energy at each bond length, from Snakemake.
        vqe: The variational loop's result and iterations, from Parsl.
        mis: The chosen antennas, from Snakemake.
        leases: The lease records.
        open: The number of leases that were not released.
        qpus: The emulator's counters of tasks and sessions, by QPU.
        jobs: Slurm's jobs; empty without Slurm.
        files: The paths of the plots and of the output of `scontrol`.
    """

    energies: list[Row]
    vqe: Row
    mis: Row
    leases: list[Row]
    open: int
    qpus: dict[str, dict[str, dict[str, int]]]
    jobs: list[dict[str, str]]
    files: list[str]

    @property
    def faults(self) -> list[str]:
        """Everything that went wrong; empty if the demo succeeded."""
        return [*self._wrong_answers(), *self._wrong_leases()]

    def _wrong_answers(self) -> list[str]:
        found = [
            f"H2 at {row['bond_length']} Å is off by {_error_mha(row):+.2f} mHa"
            for row in [*self.energies, self.vqe]
            if not abs(_error_mha(row)) <= 1000 * CHEMICAL_ACCURACY
        ]
        if self.mis["size"] != self.mis["exact_size"]:
            found.append(
                f"{self.mis['size']} antennas were chosen instead of {self.mis['exact_size']}"
            )
        return found

    def _wrong_leases(self) -> list[str]:
        found = [f"leases not released: {self.open}"] if self.open else []
        opened = dict(sorted(Counter(lease["qpu"] for lease in self.leases).items()))
        if opened != EXPECTED_LEASES:
            found.append(f"leases by QPU: {opened}, expected {EXPECTED_LEASES}")
        for qpu, counters in self.qpus.items():
            if count := counters["sessions"]["open"]:
                found.append(f"sessions of {qpu} still open at the vendor: {count}")
        loop = {iteration["task"] for iteration in self.vqe["iterations"]}
        if not any(loop == set(lease["task_ids"]) for lease in self.leases):
            found.append("the variational loop did not run under a single lease of its own")
        return found

    def print(self, *, as_json: bool = False) -> None:
        if as_json:
            print(json.dumps(asdict(self) | {"faults": self.faults}, indent=1))
            return
        console = Console(highlight=False)
        console.print(
            "[bold]Ground-state energy of H2[/] in STO-3G", _energies(self), _summary(self)
        )
        if self.jobs:
            console.print("[bold]Slurm's jobs[/] from `scontrol show job`", _jobs(self.jobs))
            console.print("Parsl ends a block by cancelling its job.\n")
        console.print("[bold]Leases[/]", _leases(self.leases), _vendor_counters(self.qpus))
        for line in self.files:
            console.print(line, markup=False, soft_wrap=True)
        for fault in self.faults:
            console.print(f"[bold red]Wrong:[/] {fault}.")


def collect(run: Path, counters: Mapping[str, Any], scontrol: str) -> Report:
    """Build the report from a run's files and the output of `scontrol show job --oneliner`."""
    files = [f"Plot: {run / 'h2' / 'curve.png'}", f"Antennas: {run / 'mis' / 'solution.png'}"]
    if scontrol:
        path = run / "slurm-jobs.txt"
        path.write_text(scontrol, encoding="utf-8")
        files.append(f"Output of scontrol: {path}")
    return Report(
        energies=_read_json(run / "h2" / "energies.json"),
        vqe=_read_json(run / "vqe" / "vqe.json"),
        mis=_read_json(run / "mis" / "solution.json"),
        leases=[json.loads(line) for line in _read_lines(run / "state" / "leases")],
        open=len(list((run / "state" / "leases" / "open").glob("*.json"))),
        qpus=counters["qpus"],
        jobs=[parse_job(line) for line in scontrol.splitlines() if line.startswith("JobId=")],
        files=files,
    )


def parse_job(line: str) -> dict[str, str]:
    """Parse one line of `scontrol show job --oneliner`."""
    words = dict(word.partition("=")[::2] for word in line.split())
    name = words.get("Comment", words["JobName"])  # Snakemake's job names are UUIDs
    name = re.sub(r"^rule_|_job_\d+-\d+$|\.[0-9a-f]{12}$", "", name)
    return {"id": words["JobId"], "name": name, "node": words["NodeList"], **gres_of_job(line)}


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _read_lines(folder: Path) -> list[str]:
    files = sorted(folder.glob("*.jsonl"))
    return [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def _error_mha(row: Row) -> float:
    return 1000 * float(row["energy"] - row["exact"])


def _table(*headings: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        right = heading.endswith(("Ha", "Å", "/ s", "tasks"))
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    return table


def _energies(report: Report) -> Table:
    table = _table("bond / Å", "QPU / Ha", "exact / Ha", "error / mHa", "from")
    rows = [(row, "Snakemake") for row in report.energies] + [(report.vqe, "Parsl")]
    for row, engine in rows:
        energies = (f"{row[key]:.5f}" for key in ("energy", "exact"))
        table.add_row(f"{row['bond_length']:.3f}", *energies, f"{_error_mha(row):+.3f}", engine)
    return table


def _summary(report: Report) -> str:
    mis, tasks = report.mis, len(report.vqe["iterations"])
    return (
        f"Snakemake: {len(report.energies)} molecules in one task. "
        f"Parsl: {tasks} iterations, {tasks} tasks, one lease.\n"
        f"Antennas: {mis['size']} of {len(mis['found'])} can share a channel "
        f"(at most {mis['exact_size']}), found in {mis['share']:.0%} of the samples.\n"
    )


def _jobs(jobs: list[dict[str, str]]) -> Table:
    table = _table("job", "name", "GRES held", "licence held", "state")
    for job in jobs:
        granted = (job[key] or "-" for key in ("gres", "licences"))
        table.add_row(job["id"], job["name"], *granted, job["state"])
    return table


def _leases(leases: list[Row]) -> Table:
    table = _table("job", "QPU", "tasks", "opened (UTC)", "closed (UTC)", "held / s")
    for lease in leases:
        times = (lease[key][11:19] for key in ("acquired", "released"))
        job = lease["owner"]["job"] or "-"
        table.add_row(job, lease["qpu"], str(lease["tasks"]), *times, f"{lease['held']:.1f}")
    return table


def _vendor_counters(qpus: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    lines = ["As counted by the emulated vendors (Pasqal Cloud has no sessions):"]
    for qpu, counters in qpus.items():
        tasks, sessions = counters["tasks"], counters["sessions"]
        opened = f"sessions opened {sessions['opened']}, closed {sessions['closed']}"
        lines.append(f"  {qpu}: tasks completed {tasks['completed']}, {opened}")
    return "\n".join([*lines, ""])

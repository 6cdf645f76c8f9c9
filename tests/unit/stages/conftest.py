"""A site with one QPU, whose Slurm is a few fake commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_commands import FakeCommands

SITE = '[qpus.ibm_fez]\ngres = "qpu:ibm_fez"\nlicence = "qpu_ibm_fez"\nlanes = 5\n'
SITE += '[qpus.FRESNEL]\ngres = "qpu:FRESNEL"\n'


@dataclass(frozen=True, kw_only=True)
class FakeSite:
    """The site.

    Attributes:
        commands: Its commands.
        folder: The user's folder.
    """

    commands: FakeCommands
    folder: Path

    def queue(self, *jobs: tuple[str, ...]) -> None:
        """Set the listed jobs: id, state and dependencies of each, perhaps comment and name."""
        rows = []
        for job, state, waits, *more in jobs:
            comment, name = [*more, *["(null)", "name"][len(more) :]]
            rows.append([job, job.partition("_")[0], state, "0", "None", comment, name, waits])
        (self.folder / "queue").write_text("".join("\x1f".join([*row, "\n"]) for row in rows))

    @property
    def scripts(self) -> list[str]:
        """The submitted scripts, in order."""
        return [Path(call.split()[-1]).read_text() for call in self.commands.calls("sbatch")]


@pytest.fixture
def site(commands: FakeCommands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeSite:
    """Each submitted job gets the next number, and is not in the queue before a test says so."""
    (tmp_path / "site.toml").write_text(SITE)
    monkeypatch.setenv("QPU_SITE", str(tmp_path / "site.toml"))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("QPU_CONFIG", str(tmp_path / "none.json"))
    commands.write("sinfo", "echo qpu:ibm_fez:1,qpu:FRESNEL:1")
    commands.write("sbatch", f"wc -l <{commands.folder}/sbatch.calls")
    commands.write("squeue", f"cat {tmp_path}/queue")
    licences = "; ".join(f"echo LicenseName=qpu_{qpu} Total=1" for qpu in ("ibm_fez", "FRESNEL"))
    commands.write("scontrol", f'case "$*" in *licenses) {licences};; esac')
    for name in ("scancel", "sacct"):
        commands.write(name, "true")
    made = FakeSite(commands=commands, folder=tmp_path)
    made.queue()
    return made

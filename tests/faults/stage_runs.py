"""A stage of several jobs for tests: its vendor, its keeper and its members, each a process."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Self

from waiting import wait_until
from warm_ups import without_warm_ups

from qrmi_workflows.emulator import Emulator
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.lease.records import open_leases
from qrmi_workflows.lease.stage import Stage, StageState, find_stage, update_stage

__all__ = ["MEMBER", "Keeping", "Vendor"]

MEMBER = """
import sys
from fault_payloads import bell
from qrmi_workflows import open_lease
stage, step, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
on_ambiguous = "resubmit" if "resubmit" in sys.argv else "fail"
failed = None
with open_lease(stage=stage or None, step=step) as lease:
    payloads = [bell(shots) for shots in range(1, count + 1)]
    futures = [lease.submit(each, on_ambiguous=on_ambiguous) for each in payloads]
    for future in futures:
        try:
            print(future.result().task_id, flush=True)
        except Exception as error:
            failed = error
if failed:
    sys.exit(str(failed))
"""


class Vendor:
    """One QPU of the emulator, and what has been done with it since the test began."""

    def __init__(self, emulator: Emulator, qpu: str) -> None:
        self.emulator = emulator
        self.qpu = qpu
        self.holds_tasks = False
        self._before = self._counters()

    def count(self, kind: str, key: str) -> int:
        return self._counters()[kind][key] - self._before[kind][key]

    def hold_tasks(self, *, hold: bool = True) -> None:
        """Keep tasks in the vendor's queue, or let them run."""
        self.holds_tasks = hold
        availability = "paused" if hold else "online"
        self.emulator.control.ask("PATCH", f"/qpus/{self.qpu}", {"availability": availability})

    def fault(self, kind: str, **rule: object) -> None:
        self.emulator.control.ask("POST", "/faults", {"kind": kind, **rule})

    def matched(self) -> int:
        """Count the requests that the active faults have matched."""
        return sum(rule["matched"] for rule in self.emulator.control.ask("GET", "/faults"))

    def repair(self) -> None:
        """Remove all faults."""
        self.emulator.control.ask("DELETE", "/faults")

    def _counters(self) -> dict[str, dict[str, int]]:
        """Return the emulator's counters, without the keeper's warm-up tasks."""
        counters: dict[str, dict[str, int]] = self.emulator.control.counters()["qpus"][self.qpu]
        tasks = without_warm_ups(counters["tasks"], self.emulator.folder, self.qpu)
        return {**counters, "tasks": tasks}


class Keeping:
    """The stage `vqe` on a vendor's QPU; a context manager that ends all processes."""

    def __init__(self, vendor: Vendor, name: str = "vqe", *, lanes: int | None = 2) -> None:
        self.vendor = vendor
        self.name = name
        self.lanes = lanes
        self.errors = ""
        self.keeper: subprocess.Popen[str]
        self._started: list[subprocess.Popen[str]] = []

    def open(self) -> Stage:
        stage = Stage(
            name=self.name,
            qpu=self.vendor.qpu,
            type="ibm-quantum-compute-service",
            config=str(self.vendor.emulator.config_path),
            lanes=self.lanes,
        )
        with stage.folder.locked():
            stage.save()
        return stage

    def close(self) -> None:
        update_stage(self.name, lambda now: replace(now, closing=True))

    def start_keeper(self, *, wait: bool = True) -> subprocess.Popen[str]:
        """Start a keeper.

        Args:
            wait: Whether to wait until the stage is ready or has ended, unless the vendor holds
                tasks: the keeper's own, too.
        """
        before = find_stage(self.name).generation
        argv = [sys.executable, "-m", "qrmi_workflows", "stage", "keep", self.name]
        argv += ["--id", find_stage(self.name).id]
        self.keeper = self._start(argv)
        if wait and not self.vendor.holds_tasks:
            wait_until(lambda: self._has_started(before), "the keeper")
        return self.keeper

    def _has_started(self, before: int) -> bool:
        stage = find_stage(self.name)
        return stage.is_ended or stage.generation > before or self.keeper.poll() is not None

    def kill_keeper(self) -> None:
        self.keeper.kill()
        self.keeper.wait()

    def wait_for_keeper(self) -> int:
        return self.outcome(self.keeper)[0]

    def start_member(
        self, step: str, tasks: int = 1, *, resubmit: bool = False
    ) -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", MEMBER, self.name, step, str(tasks)]
        return self._start([*argv, "resubmit"] if resubmit else argv)

    def outcome(self, process: subprocess.Popen[str]) -> tuple[int, int]:
        """Return a process's exit code and its number of lines; keep what it said."""
        printed, self.errors = process.communicate(timeout=60)
        print(self.errors)  # shown if the test fails
        return process.returncode, len(printed.splitlines())

    def states(self, step: str) -> list[str]:
        return [record.state for record in Journal().step(step).records()]

    def require_paid_once(self, *, tasks: int, sessions: int) -> None:
        assert self.vendor.count("tasks", "accepted") == tasks
        assert self.vendor.count("tasks", "completed") == tasks
        assert self.vendor.count("sessions", "open") == 0
        assert self.vendor.count("sessions", "opened") == sessions
        assert list(open_leases()) == []

    def _start(self, argv: list[str]) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._started.append(subprocess.Popen(argv, text=True, env=dict(os.environ), **pipes))
        return self._started[-1]

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(Exception):
            if find_stage(self.name).state is not StageState.ENDED:
                self.close()
        for process in self._started:
            process.kill()
            _, errors = process.communicate()
            if error is not None:
                print(errors)

"""How long a release may take: its share of KillWait, but only once SIGTERM has arrived."""

from __future__ import annotations

from pathlib import Path

import pytest

from qrmi_workflows.config.job import JobQPU
from qrmi_workflows.errors import ResourceError
from qrmi_workflows.lease import killwait
from qrmi_workflows.lease.held import HeldQPU
from qrmi_workflows.lease.killwait import DEFAULT_SECONDS, KillWait, start_kill_wait
from qrmi_workflows.lease.records import OpenLease


class Vendor:
    """A QPU whose release fails once, while SIGTERM arrives if it is to; keeps the deadlines."""

    def __init__(self, *, sigterm: bool = False) -> None:
        self.sigterm = sigterm
        self.deadlines: list[float] = []

    def release(self, _token: str, *, deadline: float) -> None:
        self.deadlines.append(deadline)
        if len(self.deadlines) == 1:
            if self.sigterm:
                start_kill_wait()
            raise ResourceError("busy", "ibm_fez", "release", 503, retryable=True)


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that releases a QPU within a KillWait of 5 s."""
    monkeypatch.setenv("QPU_KILL_WAIT", "5")
    monkeypatch.setenv("QPU_STATE", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(killwait, "_started", None)

    def release(vendor: Vendor) -> list[float]:
        type_ = "ibm-quantum-system"
        opened = OpenLease.create(
            qpu="ibm_fez", type=type_, step="", acquire=0.0, config=None, token="t"
        )
        held = HeldQPU(JobQPU(name="ibm_fez", type=type_, environment={}, token="t"), opened)
        held.resource = vendor
        held.release()
        assert not opened.path.exists()
        return vendor.deadlines

    return release


def test_an_orderly_release_may_be_slow_however_short_killwait_is(release):
    share = KillWait.divide(DEFAULT_SECONDS).release

    first, second = release(Vendor())

    assert share - 1 < second <= first <= share


def test_after_sigterm_a_release_takes_its_share_of_killwait(release):
    start_kill_wait()

    assert all(deadline <= KillWait.divide(5).release_call for deadline in release(Vendor()))


def test_sigterm_during_a_release_shortens_the_calls_that_follow(release):
    first, second = release(Vendor(sigterm=True))

    assert first > KillWait.divide(DEFAULT_SECONDS).release_call
    assert second <= KillWait.divide(5).release_call

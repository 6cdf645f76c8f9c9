"""Taking back a queued task whose QPU has gone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qrmi_workflows.client.protocol import TaskState
from qrmi_workflows.errors import ResourceError
from qrmi_workflows.tasks.withdrawal import Withdrawal
from qrmi_workflows.vendors.base import ResourceType

NO_ROUTE = ResourceError("404: no such route", "ibm_fez", "task_stop")


class Vendor:
    """A QPU whose task stays queued, whatever it is asked."""

    name = "ibm_fez"

    def __init__(self, refusal: ResourceError | None) -> None:
        self.refusal = refusal
        self.asked = 0

    def task_status(self, _task: str, **_deadline: float) -> str:
        return "Queued"

    def task_stop(self, _task: str, **_deadline: float) -> None:
        self.asked += 1
        if self.refusal is not None:
            raise self.refusal


class Presence:
    patience = 60.0

    def __init__(self, *, is_back: bool = False) -> None:
        self.is_back = is_back

    def is_lost(self) -> bool:
        return True

    def is_still_lost(self) -> bool:
        return not self.is_back

    def offline(self) -> str:
        return "its vendor reports it offline"

    def tell(self, _what: str, _waited: float) -> None:
        pass


def look(vendor: Vendor, presence: Presence) -> list[str]:
    """Look at the queued task once; return what its record says of a cancellation."""
    noted: list[str] = []
    run = SimpleNamespace(resource=vendor, task_id="t", _traits=ResourceType(qrmi=""))
    entry = SimpleNamespace(stopping=noted.append)
    assert Withdrawal(run, presence, entry).look(TaskState.QUEUED) is None
    return noted


@pytest.mark.parametrize(("refusal", "is_noted"), [(NO_ROUTE, False), (None, True)])
def test_a_task_is_wanted_unless_its_cancellation_was_accepted(refusal, is_noted):
    """If it was refused, the QPU may come back and run it: the release must not cancel it then."""
    vendor = Vendor(refusal)

    assert bool(look(vendor, Presence())) is is_noted
    assert vendor.asked == 1


def test_a_task_stays_if_its_qpu_has_come_back():
    vendor = Vendor(None)

    assert look(vendor, Presence(is_back=True)) == []
    assert vendor.asked == 0

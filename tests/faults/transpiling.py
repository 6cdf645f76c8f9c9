"""A program that transpiles again when its task moves; it prints the task's id."""

from __future__ import annotations

from typing import Any

from fault_payloads import bell

from qrmi_workflows import open_lease
from qrmi_workflows.payloads import Payload


def on_move(payload: Payload, qpu: str, target: str) -> dict[str, Any]:
    """Return the payload for another QPU."""
    return bell(77)


if __name__ == "__main__":
    with open_lease("ibm_first", step="s", fallback=["ibm_second"]) as lease:
        print(lease.run(bell(5), on_move=on_move).task_id)

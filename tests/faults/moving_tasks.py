"""A step of several tasks that may fall back to other QPUs: QPU FALLBACK FOLDER COUNT."""

from __future__ import annotations

import sys
from pathlib import Path

from fault_payloads import bell

from qrmi_workflows import open_lease
from qrmi_workflows.client import resource
from qrmi_workflows.tasks import presence

# A vendor that hangs, or a QPU that goes away, then costs seconds.
resource.DEADLINES, resource._DEFAULT_DEADLINE = {}, 3.0
presence._LOOK_SECONDS = 0.2


def main(qpu: str, fallback: str, folder: str, count: int, seed: int) -> None:
    """Run the tasks, and write the result of each."""
    ambiguous = "resubmit" if "--on-ambiguous" in sys.argv else "fail"
    with open_lease(qpu, step=folder, fallback=fallback) as lease:
        futures = [
            lease.submit(bell(1 + seed % 1000 + number), on_ambiguous=ambiguous)
            for number in range(count)
        ]
        for number, future in enumerate(futures):
            future.result().save(Path(folder) / f"{number}.json")


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5]))

"""The program of a job that runs several steps under one lease, as an engine's pool does."""

import sys
from pathlib import Path

from qrmi_workflows import open_lease
from qrmi_workflows.journal.journal import Journal

with open_lease() as lease:
    for payload in sys.argv[1:]:
        output = Path(payload).with_suffix(".result").absolute()
        name = f"sweep {output}"
        with lease.for_step(name) as step:
            step.run(payload).save(output)
        Journal().archive(name)

"""`python -m qrmi_workflows` is the `qpu` command, for where PATH does not lead to it."""

from qrmi_workflows.cli import main

main()

"""Run the `qpu` command as `python -m qrmi_workflows`, where `qpu` is not on PATH."""

from qrmi_workflows.cli import main

main()

"""A program under a lease that runs many tasks in turn, each with its own result file."""

from __future__ import annotations

import argparse
from pathlib import Path

from fault_payloads import bell

from qrmi_workflows import open_lease


def main() -> None:
    """Run the first `count` tasks, except those that already have a result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--on-ambiguous", default="fail")
    options = parser.parse_args()
    for number in range(options.count):
        result = options.folder / f"{number}.json"
        if not result.exists():
            with open_lease(step=f"{options.folder} {number}") as lease:
                lease.run(bell(number + 1), on_ambiguous=options.on_ambiguous).save(result)


if __name__ == "__main__":
    main()

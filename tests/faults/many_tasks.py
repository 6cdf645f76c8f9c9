"""A user's program under a lease: many tasks in turn, each with a result's file of its own."""

from __future__ import annotations

import argparse
from pathlib import Path

from fault_payloads import bell

from qrmi_workflows import open_lease


def main() -> None:
    """Run the first `count` tasks, but those whose result is there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--on-ambiguous", default="fail")
    asked = parser.parse_args()
    for number in range(asked.count):
        result = asked.folder / f"{number}.json"
        if not result.exists():
            with open_lease(step=f"{asked.folder} {number}") as lease:
                lease.run(bell(number + 1), on_ambiguous=asked.on_ambiguous).save(result)


if __name__ == "__main__":
    main()

"""What a Slurm is configured with, as its commands print it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.schedulers.command import COMMAND_TIMEOUT, require_success, run_command
from qrmi_workflows.schedulers.gres import gres_of_node
from qrmi_workflows.schedulers.licences import offered_licences
from qrmi_workflows.schedulers.slurm_config import has_accounting
from qrmi_workflows.schedulers.slurm_times import parse_time

__all__ = [
    "Node",
    "Partition",
    "SlurmFacts",
    "ask_facts",
    "compress_nodes",
    "expand_nodes",
    "parse_nodes",
    "parse_partitions",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node.

    Attributes:
        host: The name of its machine.
        version: The version of its Slurm; empty if the node is down.
        gres: Its GRES and their counts, with and without types.
    """

    host: str
    version: str
    gres: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A partition.

    Attributes:
        nodes: The names of its nodes.
        groups: The groups that may use it; `None` for all.
        accounts: The accounts that may use it; `None` for all.
        is_default: Whether jobs that name no partition go there.
    """

    nodes: frozenset[str]
    groups: frozenset[str] | None
    accounts: frozenset[str] | None
    is_default: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmFacts:
    """What a Slurm is configured with.

    Attributes:
        config: The settings of slurm.conf, by name.
        nodes: The nodes, by name.
        partitions: The partitions, by name.
        licences: Each licence and its total count.
        accounts: The accounts; `None` without an accounting that knows them.
        has_qpu_option: Whether sbatch knows `--qpu`, by QRMI's SPANK plugin.
        clock_skew: Seconds by which slurmctld's clock is ahead of this host's, at least.
    """

    config: Mapping[str, str]
    nodes: Mapping[str, Node]
    partitions: Mapping[str, Partition]
    licences: Mapping[str, int]
    accounts: frozenset[str] | None = None
    has_qpu_option: bool = False
    clock_skew: float | None = None

    def nodes_with(self, gres: str) -> dict[str, int]:
        """Return the nodes that have a GRES, and how many units each has."""
        found = {}
        for name, node in self.nodes.items():
            counts = {key.lower(): count for key, count in node.gres.items()}
            if count := counts.get(gres.lower(), 0):
                found[name] = count
        return found


def ask_facts(*, timeout: float = COMMAND_TIMEOUT) -> SlurmFacts:
    """Ask Slurm.

    Args:
        timeout: Seconds that each command may take.

    Raises:
        SchedulerError: Slurm is not installed here, or did not answer.
    """

    def ask(*argv: str) -> str:
        return require_success(run_command(argv, timeout=timeout)).stdout

    before = time.time()
    shown = ask("scontrol", "show", "config")
    after = time.time()
    accounts = None
    if has_accounting(shown):
        with suppress(SchedulerError):  # the other findings do not depend on slurmdbd
            listed = ask(
                "sacctmgr", "--noheader", "--parsable2", "show", "account", "format=account"
            )
            accounts = frozenset(listed.split())
    with_options = ""
    with suppress(SchedulerError):
        with_options = ask("sbatch", "--help")
    return SlurmFacts(
        config=parse_config(shown),
        nodes=parse_nodes(ask("scontrol", "--oneliner", "--all", "show", "node")),
        partitions=parse_partitions(ask("scontrol", "--oneliner", "--all", "show", "partition")),
        licences=offered_licences(ask("scontrol", "--oneliner", "show", "licenses")),
        accounts=accounts,
        has_qpu_option=re.search(r"^\s+--qpu\b", with_options, re.MULTILINE) is not None,
        clock_skew=clock_skew(shown, before, after),
    )


def parse_config(scontrol_output: str) -> dict[str, str]:
    """Parse the settings of `scontrol show config`."""
    pairs = re.findall(r"^(\w+)\s*= (.*?)\s*$", scontrol_output, re.MULTILINE)
    return {name: value for name, value in pairs if value != "(null)"}


def clock_skew(scontrol_output: str, before: float, after: float) -> float | None:
    """Return by how many seconds slurmctld's clock is ahead, from `scontrol show config`.

    Its answer begins with the time, in whole seconds, at which it was given.

    Args:
        scontrol_output: The answer.
        before: This host's time before the question.
        after: This host's time after the answer.
    """
    match = re.match(r"Configuration data as of (\S+)", scontrol_output)
    if match is None:
        return None
    with suppress(ValueError):
        told = parse_time(match[1])
        if told + 1 < before:
            return told + 1 - before
        return max(0.0, told - after)
    return None


def parse_nodes(scontrol_output: str) -> dict[str, Node]:
    """Parse `scontrol --oneliner show node`."""
    nodes = {}
    for line in scontrol_output.splitlines():
        pairs = _pairs(line)
        if name := pairs.get("NodeName"):
            nodes[name] = Node(
                host=pairs.get("NodeHostName", name),
                version=pairs.get("Version", ""),
                gres=gres_of_node(pairs.get("Gres", "")),
            )
    return nodes


def parse_partitions(scontrol_output: str) -> dict[str, Partition]:
    """Parse `scontrol --oneliner show partition`."""
    partitions = {}
    for line in scontrol_output.splitlines():
        pairs = _pairs(line)
        if name := pairs.get("PartitionName"):
            partitions[name] = Partition(
                nodes=frozenset(expand_nodes(pairs.get("Nodes", ""))),
                groups=_allowed(pairs.get("AllowGroups", "ALL")),
                accounts=_allowed(pairs.get("AllowAccounts", "ALL")),
                is_default=pairs.get("Default") == "YES",
            )
    return partitions


def _pairs(line: str) -> dict[str, str]:
    pairs = dict(re.findall(r"(?:^|\s)([A-Z]\w*)=(\S*)", line))
    return {key: value for key, value in pairs.items() if value not in ("(null)", "N/A")}


def _allowed(written: str) -> frozenset[str] | None:
    return None if written == "ALL" else frozenset(written.split(","))


def expand_nodes(written: str) -> list[str]:
    """Expand a list of nodes as Slurm writes it: `n[1-2,04],gw` to `n1`, `n2`, `n04`, `gw`."""
    nodes: list[str] = []
    for each in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", written):
        expanded = [""]
        for text, ranges in re.findall(r"([^\[\]]+)|\[([^\]]*)\]", each):
            numbers = _numbers(ranges) if ranges else [text]
            expanded = [f"{prefix}{number}" for prefix in expanded for number in numbers]
        nodes += expanded
    return nodes


def _numbers(ranges: str) -> list[str]:
    numbers = []
    for each in ranges.split(","):
        first, _, last = each.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            numbers.append(each)
            continue
        numbers += [
            str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)
        ]
    return numbers


def compress_nodes(names: list[str]) -> str:
    """Write a list of nodes as Slurm does: `n1`, `n2`, `gw` as `gw,n[1-2]`."""
    parts: dict[str, list[int]] = {}
    written = []
    for name in sorted(set(names)):
        match = re.fullmatch(r"(.*?)(\d+)", name)
        if match is None or (match[2].startswith("0") and len(match[2]) > 1):
            written.append(name)  # numbers with leading zeros stay as they are
        else:
            parts.setdefault(match[1], []).append(int(match[2]))
    for prefix, numbers in parts.items():
        written.append(f"{prefix}{_ranges(sorted(numbers))}")
    return ",".join(sorted(written))


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    shown = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return shown[0] if len(numbers) == 1 else f"[{','.join(shown)}]"

"""Slurm against the site policy: what each check finds, and what it advises."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from qrmi_workflows.config.findings import Severity
from qrmi_workflows.config.site import load_site_policy
from qrmi_workflows.schedulers.slurm_checks import examine
from qrmi_workflows.schedulers.slurm_facts import Node, Partition, SlurmFacts


def node(gres: Mapping[str, int] | None = None, version: str = "22.05.8") -> Node:
    """A node with these GRES."""
    return Node(host="localhost", version=version, gres=gres or {})


def facts(**given: object) -> SlurmFacts:
    """A Slurm that grants QPU a by a GRES on one node and a licence."""
    known: dict[str, object] = {
        "config": {"SLURM_VERSION": "22.05.8", "PlugStackConfig": "/etc/slurm/plugstack.conf"},
        "nodes": {"n1": node({"qpu": 1, "qpu:a": 1}), "n2": node()},
        "partitions": {"main": partition()},
        "licences": {"qpu_a": 1},
    }
    return SlurmFacts(**(known | given))  # type: ignore[arg-type]


def partition(
    *nodes: str, groups: set[str] | None = None, accounts: set[str] | None = None
) -> Partition:
    """A partition, by default with both nodes, and open to all."""
    return Partition(
        nodes=frozenset(nodes or {"n1", "n2"}),
        groups=None if groups is None else frozenset(groups),
        accounts=None if accounts is None else frozenset(accounts),
        is_default=False,
    )


def found(folder: Path, settings: str, *, admission: bool = False, **given: object) -> list[str]:
    """Return what is wrong, as `severity check: problem → remedy`; of admission, that alone."""
    path = folder / "site.toml"
    path.write_text(f"[qpus.a]\n{settings}\n")
    return [
        f"{each.severity} {each.check}: {each.problem} → {each.remedy}".replace(str(folder), "")
        for each in examine(facts(**given), load_site_policy(path))
        if each.severity is not Severity.OK and (each.check == "admission") is admission
    ]


GOOD = 'gres = "qpu:{qpu}"\nlicence = "qpu_{qpu}"'
GRES = 'gres = "qpu:{qpu}"'
LICENCE = 'licence = "qpu_{qpu}"'


@pytest.mark.parametrize("settings", [GOOD, GRES, LICENCE, f'{GOOD}\ngres_nodes = "n1"'])
def test_a_site_that_agrees_with_slurm_has_nothing_wrong(tmp_path, settings):
    assert found(tmp_path, settings) == []


def both(count: int = 1) -> dict[str, Node]:
    """Two nodes with the GRES."""
    return {name: node({"qpu": count, "qpu:a": count}) for name in ("n1", "n2")}


CASES = {
    "a GRES on no node": (
        'gres = "qpu:b"',
        {},
        [
            "error gres: QPU 'a': no node of this Slurm has GRES 'qpu:b', which the site policy "
            "sets for it; the nodes have: qpu, qpu:a. → Correct `gres` in /site.toml:2, or ask "
            "your administrators for the GRES."
        ],
    ),
    "a licence that slurm.conf lacks": (
        'licence = "qpu_b"',
        {},
        [
            "error licences: QPU 'a': this Slurm has no licence 'qpu_b', which the site policy "
            "sets for it; it has: qpu_a. → Correct `licence` in /site.toml:2, or add "
            "`Licenses=qpu_b:1` to slurm.conf."
        ],
    ),
    "the GRES on other nodes": (
        f'{GOOD}\ngres_nodes = "n[1-2]"',
        {},
        [
            "error gres: QPU 'a': gres_nodes = 'n[1-2]' (/site.toml:4), but the nodes with 'qpu:a' "
            'are n1. → Correct gres_nodes, or `Gres=` in slurm.conf: gres_nodes = "n1".'
        ],
    ),
    "a GRES that is counted per node": (
        GRES,
        {"nodes": both()},
        [
            "warning exclusion: QPU 'a': 2 jobs can hold it at a time by GRES 'qpu:a', which is "
            "counted per node, on n[1-2], but it is for one job. → Set `Licenses=qpu_a:1` in "
            'slurm.conf and licence = "qpu_{qpu}" in /site.toml; or offer the GRES on one node '
            "only."
        ],
    ),
    "the same with lanes": (
        f"{GRES}\nlanes = 3\nexclusive = false",
        {"nodes": both(3)},
        [
            "warning exclusion: QPU 'a': 6 jobs can hold it at a time by GRES 'qpu:a', which is "
            "counted per node, on n[1-2], but it is shared by 3 lanes. → Set `Licenses=qpu_a:3` "
            'in slurm.conf and licence = "qpu_{qpu}" in /site.toml; or offer the GRES on one node '
            "only."
        ],
    ),
    "more licences than jobs may hold it": (
        f"{LICENCE}\nlanes = 5\nexclusive = true",
        {"licences": {"qpu_a": 5}},
        [
            "warning exclusion: QPU 'a': 5 jobs can hold it at a time by licence 'qpu_a', but it "
            "is for one job. → Set `Licenses=qpu_a:1` in slurm.conf."
        ],
    ),
    "more licences than lanes": (
        f"{LICENCE}\nlanes = 2",
        {"licences": {"qpu_a": 3}},
        [
            "warning exclusion: QPU 'a': 3 jobs can hold it at a time by licence 'qpu_a', but it "
            "is shared by 2 lanes. → Set `Licenses=qpu_a:2` in slurm.conf."
        ],
    ),
    "fewer licences than lanes": (
        f"{LICENCE}\nlanes = 3\nexclusive = false",
        {},
        [
            "warning exclusion: QPU 'a': jobs can hold only 1 of its 3 lanes by licence 'qpu_a'. "
            "→ Set `Licenses=qpu_a:3` in slurm.conf, or correct `lanes` in /site.toml:3."
        ],
    ),
    "nothing that counts": (
        "lanes = 1",
        {},
        [
            "warning exclusion: QPU 'a': neither a GRES nor a licence counts the jobs that hold "
            "it; most vendors do not keep two jobs from it. → Add `Licenses=qpu_a:1` to "
            'slurm.conf, and licence = "qpu_{qpu}" to /site.toml.'
        ],
    ),
    "an untyped GRES of two QPUs": (
        'gres = "qpu"\n[qpus.b]\ngres = "qpu"',
        {},
        [
            "warning exclusion: QPUs 'a' and 'b' have the same GRES 'qpu', and no licences that "
            "differ: a job that requests one holds the other, too. → Give each a licence (licence "
            '= "qpu_{qpu}"), or a GRES with a type.'
        ],
    ),
    "an unknown partition": (
        f'{GOOD}\npartitions = ["main", "quantum"]',
        {},
        [
            "error partitions: QPU 'a': this Slurm has no partition 'quantum'; it has: main. → "
            "Correct `partitions` in /site.toml:4, or add the partition to slurm.conf."
        ],
    ),
    "a partition without the GRES": (
        f'{GOOD}\npartition = "main"',
        {"partitions": {"main": partition("n2")}},
        [
            "error partitions: QPU 'a': no node of partition 'main' has GRES 'qpu:a', whose "
            "nodes are n1: its jobs would never start. → Correct `partition` in /site.toml:4, or "
            "add these nodes to the partition."
        ],
    ),
    "groups that the partition does not check": (
        f'{GOOD}\npartition = "main"\ngroups = ["qc"]',
        {},
        [
            "warning access: QPU 'a': partition 'main' lets everybody in, so a job that is "
            "submitted without this software is not stopped. → Set `AllowGroups=qc` for the "
            "partition in slurm.conf. It cannot name users: put them into a group."
        ],
    ),
    "groups that the partition refuses": (
        f'{GOOD}\npartition = "main"\ngroups = ["qc", "ml"]',
        {"partitions": {"main": partition(groups={"qc"})}},
        [
            "error access: QPU 'a': members of ml may use it (/site.toml:5), but partition 'main' "
            "has AllowGroups=qc. → Add them to AllowGroups in slurm.conf, or remove them from "
            "`groups`."
        ],
    ),
    "an unknown account": (
        f'{GOOD}\npartition = "main"\naccounts = ["Chem", "bio"]',
        {
            "accounts": frozenset({"root", "chem"}),
            "partitions": {"main": partition(accounts={"chem", "bio"})},
        },
        [
            "error access: QPU 'a': unknown account 'bio' (/site.toml:5); Slurm has: chem, root. → "
            "Correct it, or add it: sacctmgr add account bio"
        ],
    ),
    "accounts without accounting": (
        f'{GOOD}\npartition = "main"\naccounts = ["chem"]',
        {"partitions": {"main": partition(accounts={"chem"})}},
        [
            "warning access: QPU 'a': accounts = ['chem'] (/site.toml:5), but Slurm's accounting "
            "did not tell which accounts exist. → Check AccountingStorageType in slurm.conf and "
            "that slurmdbd runs."
        ],
    ),
    "accounts that the partition does not check, or refuses": (
        f'{GOOD}\npartitions = ["main", "other"]\naccounts = ["chem"]',
        {
            "accounts": frozenset({"chem"}),
            "partitions": {"main": partition(), "other": partition(accounts={"bio"})},
        },
        [
            "warning access: QPU 'a': partition 'main' takes jobs of all accounts. → Set "
            "`AllowAccounts=chem` for the partition in slurm.conf.",
            "error access: QPU 'a': jobs of chem may use it (/site.toml:5), but partition 'other' "
            "has AllowAccounts=bio. → Add them to AllowAccounts in slurm.conf, or remove them "
            "from `accounts`.",
        ],
    ),
    "no SPANK plugin": (
        f"{GOOD}\nqpu_option = true",
        {},
        [
            "error spank: QPU 'a': qpu_option = true (/site.toml:4), but sbatch on this host has "
            "no --qpu. → Install QRMI's SPANK plugin and name it in /etc/slurm/plugstack.conf, or "
            "remove qpu_option."
        ],
    ),
    "a SPANK plugin that no QPU uses": (
        GOOD,
        {"has_qpu_option": True},
        [
            "warning spank: sbatch has --qpu, by /etc/slurm/plugstack.conf, but no QPU of "
            "/site.toml uses it. → Set qpu_option = true for the QPUs that the plugin acquires, "
            "or remove the plugin."
        ],
    ),
    "a clock that is behind": (
        GOOD,
        {"clock_skew": -90.0},
        [
            "warning clock: the clock of Slurm's controller is 90 s behind this host's. → "
            "Synchronise both by NTP; MUNGE refuses credentials of hosts that differ by minutes."
        ],
    ),
    "an old Slurm, and a node that differs": (
        GOOD,
        {
            "config": {"SLURM_VERSION": "21.08.8-2"},
            "nodes": {"n1": node({"qpu:a": 1}, version="20.11.9")},
        },
        [
            "error slurm: Slurm 21.08.8-2: must be 22.05 or later. → Upgrade Slurm.",
            "warning slurm: node n1 runs Slurm 20.11.9, its controller 21.08.8-2. → Finish the "
            "upgrade before users submit jobs with QPUs.",
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_named_with_the_remedy(tmp_path, case):
    settings, given, expected = CASES[case]

    assert found(tmp_path, settings, **given) == expected


@pytest.mark.parametrize(
    "settings",
    [GOOD, LICENCE, 'partition = "quantum"', f'{GRES}\ngres_nodes = "n1"'],
)
def test_jobs_of_a_qpu_with_something_of_its_own_can_be_kept_pending(tmp_path, settings):
    other = '[qpus.b]\ngres = "qpu:b"\ngres_nodes = "n2"\npartition = "main"\nlicence = "b"'
    assert found(tmp_path, f"{settings}\n{other}", admission=True) == []


@pytest.mark.parametrize(
    ("settings", "lacks", "count"),
    [
        (GRES, "it has no licence", 1),
        (f"{GRES}\nlanes = 3\nexclusive = false", "it has no licence", 3),
        (f'{GRES}\ngres_nodes = "n[1-2]"', "it has no licence", 1),
        ("qpu_option = true", "it has no licence", 1),
        ('licence = "both"\n[qpus.b]\nlicence = "both"', "it shares its licence", 1),
    ],
)
def test_a_qpu_whose_jobs_cannot_be_kept_pending_is_named(tmp_path, settings, lacks, count):
    (first, *_) = found(tmp_path, settings, admission=True)

    assert first.startswith("warning admission: QPU 'a': its jobs cannot be kept pending while")
    assert lacks in first
    assert f"in /site.toml, and `Licenses=qpu_a:{count}` in slurm.conf." in first


def test_without_a_policy_slurm_itself_is_examined():
    assert [each.check for each in examine(facts(clock_skew=0.0), None)] == ["slurm", "clock"]

"""The keys of site.toml: each wrong value, and contradicting keys, with the line to correct."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from qrmi_workflows.config.policy_keys import POLICY_KEYS
from qrmi_workflows.config.site import (
    QPUPolicy,
    SiteFolders,
    SitePolicy,
    load_site_policy,
    policy_mistakes,
)
from qrmi_workflows.errors import ConfigError

RIGHT = """
scheduler = "slurm"

[site]
records = "/shared/records"
budgets = "/shared/budgets"

[defaults]
gres = "qpu:{qpu}"
gres_nodes = "gw[1-2],login"
licence = "qpu_{qpu}@server"
qpu_option = true
partition = "quantum"
users = ["ada", "grace.hopper", "alan@example.org"]
groups = ["qc"]
accounts = ["chem"]
kill_wait = 60

[qpus.a]
lanes = 5
exclusive = true

[qpus.b]
gres = "qpu"
lanes = 3
exclusive = false
partitions = ["quantum", "debug"]
options = { queue = "q_{qpu}" }
"""

WRONG = {
    "gres": ["1", '"qpu:a:1"', '"qpu:1"', '"qpu:a,qpu:b"', '"gres/qpu:{name}"'],
    "gres_nodes": ["1", '"n[1-2"', '"n1 n2"'],
    "licence": ["1", '"qpu_a:1"', '"a,b"', '"a|b"'],
    "qpu_option": ["1", '"yes"'],
    "partition": ["1", '["a"]', '"a,b"', '"a b"'],
    "partitions": ['"a"', "[]", "[1]", '["a,b"]', '["a", ""]'],
    "lanes": ["0", "-1", "1.0", '"5"', "true"],
    "exclusive": ["1", '"lanes"'],
    "users": ['"ada"', "[]", "[1]", '["../etc"]', '["a b"]', '["-x"]'],
    "groups": ['"qc"', "[]", "[0]", '["a:b"]'],
    "accounts": ['"qc"', "[]", '["a,b"]'],
    "require_grant": ["0"],
    "kill_wait": ["0", "-1", '"30"', "true", "nan", "inf", "1" + "0" * 400],
    "mode": ['"session"', "true", "[]"],
    "warm_up": ['"no"'],
    "waiting_cost": ["-0.1", '"1"', "nan"],
    "interactive_ttl": ["0", "true", "nan"],
    "task_seconds": ["0", "true", "nan"],
    "options": ["1", "{ a = 1 }"],
}


def write(folder: Path, text: str) -> Path:
    """Write a site policy."""
    path = folder / "site.toml"
    path.write_text(text)
    return path


def load(folder: Path, text: str) -> SitePolicy:
    """Read a site policy with this content."""
    return load_site_policy(write(folder, text))


def test_every_setting_of_a_qpu_is_a_key_and_its_mistakes_are_tested():
    assert {field.name for field in fields(QPUPolicy)} - {"name"} == set(POLICY_KEYS) == set(WRONG)


def test_a_policy_with_every_key_is_read(tmp_path):
    site = load(tmp_path, RIGHT)

    assert site.qpu("a") == QPUPolicy(
        name="a",
        gres="qpu:a",
        gres_nodes="gw[1-2],login",
        licence="qpu_a@server",
        qpu_option=True,
        partition="quantum",
        lanes=5,
        exclusive=True,
        users=("ada", "grace.hopper", "alan@example.org"),
        groups=("qc",),
        accounts=("chem",),
        kill_wait=60,
    )
    assert site.qpu("a").all_partitions == ("quantum",)
    assert site.qpu("b").all_partitions == ("quantum", "debug")
    assert site.qpu("b").partition is None
    assert site.qpu("b").options == {"queue": "q_b"}


def test_the_sites_folders_have_defaults(tmp_path):
    state = Path("/var/lib/qrmi-workflows")

    assert load(tmp_path, "[qpus.a]").folders == SiteFolders(
        records=None, budgets=None, state=state, maintenance=state / "maintenance"
    )
    moved = load(tmp_path, '[site]\nstate = "/srv/qpu"\nrecords = "/r"\n[qpus.a]').folders
    assert moved.maintenance == Path("/srv/qpu/maintenance")
    assert moved.records == Path("/r")


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in WRONG.items() for v in vs])
def test_a_wrong_value_is_refused_with_the_line_to_correct(tmp_path, key, value):
    for text, line, table in (
        (f"\n[qpus.a]\n# a comment\n{key} = {value}\n", 4, "[qpus.a]"),
        (f"[defaults]\n{key} = {value}\n[qpus.a]\n", 2, "[defaults]"),
    ):
        with pytest.raises(ConfigError) as caught:
            load(tmp_path, text)

        start = f"{tmp_path / 'site.toml'}:{line}: {table}: {key} = "
        assert str(caught.value).startswith(start)
        assert str(caught.value).endswith(f": must be {POLICY_KEYS[key].expected}. Correct it.")


@pytest.mark.parametrize("key", ["records", "budgets", "state", "maintenance"])
@pytest.mark.parametrize("value", ["1", '"relative"', '""', '"~/x"'])
def test_a_folder_must_be_an_absolute_path(tmp_path, key, value):
    with pytest.raises(ConfigError, match=rf":2: \[site\]: {key} = .*: must be the absolute path"):
        load(tmp_path, f"[site]\n{key} = {value}\n[qpus.a]")


@pytest.mark.parametrize(
    ("settings", "line", "message"),
    [
        ('partition = "a"\npartitions = ["b"]', 3, "sets both partition and partitions"),
        ('gres_nodes = "n1"', 2, "gres_nodes without gres"),
        ("lanes = 3\nexclusive = false", 3, "neither gres nor licence counts the lanes"),
        ('licence = "l"\nexclusive = false', 3, "the QPU has one lane"),
        ('users = ["ada"]', 2, "users without a partition"),
        ('groups = ["qc"]', 2, "groups without a partition"),
        ('accounts = ["qc"]', 2, "accounts without a partition"),
    ],
)
def test_contradicting_keys_are_refused_with_the_line_to_correct(tmp_path, settings, line, message):
    for text, keys in (
        (f"[qpus.a]\n{settings}\n", line),
        (f"[defaults]\n{settings}\n[qpus.a]\n", line),
    ):
        with pytest.raises(ConfigError) as caught:
            load(tmp_path, text)

        assert str(caught.value).startswith(f"{tmp_path / 'site.toml'}:{keys}: [qpus.a]: ")
        assert message in str(caught.value)


def test_a_qpus_partitions_replace_the_partition_of_the_defaults(tmp_path):
    site = load(tmp_path, '[defaults]\npartition = "p"\n[qpus.a]\npartitions = ["q", "r"]')
    other = load(tmp_path, '[defaults]\npartitions = ["q", "r"]\n[qpus.a]\npartition = "p"')

    assert site.qpu("a").all_partitions == ("q", "r")
    assert other.qpu("a").all_partitions == ("p",)


def test_all_mistakes_are_found_in_one_reading(tmp_path):
    path = write(tmp_path, '[defaults]\nlane = 1\n[qpus.a]\nlanes = 0\nmode = "x"\n[qpus.b]\n')

    places = [text.removeprefix(str(path)).split(" ")[:2] for text in policy_mistakes(path)]

    assert places == [[":2:", "[defaults]:"], [":4:", "[qpus.a]:"], [":5:", "[qpus.a]:"]]
    with pytest.raises(ConfigError, match=r"Did you mean 'lanes'\? \(2 more: run `qpu doctor`\.\)"):
        load_site_policy(path)


def test_a_table_that_is_none_is_refused(tmp_path):
    for text in ("site = 1\n[qpus.a]", "defaults = 1\n[qpus.a]", "[qpus]\na = 1"):
        with pytest.raises(ConfigError, match="1 is not a table"):
            load(tmp_path, text)

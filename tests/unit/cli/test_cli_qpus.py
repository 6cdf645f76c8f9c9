"""`qpu list`: what it says about the site policy."""

from __future__ import annotations

import json

import pytest

from qrmi_workflows.cli import main


@pytest.fixture
def listed(monkeypatch, tmp_path, capsys):
    """Run `qpu list` at a site with this policy and no definition; return stdout and stderr."""
    (tmp_path / "qrmi_config.json").write_text('{"resources": []}')
    monkeypatch.setenv("QPU_CONFIG", str(tmp_path / "qrmi_config.json"))
    monkeypatch.setenv("QPU_SITE", str(tmp_path / "site.toml"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)

    def run(policy):
        (tmp_path / "site.toml").write_text(policy)
        with pytest.raises(SystemExit) as ended:
            main(["list", "--json"])
        assert not ended.value.code
        return capsys.readouterr()

    return run


def test_the_grants_of_the_policy_are_listed(listed):
    shown = listed('[qpus.a]\ngres = "qpu:{qpu}"\nlicence = "qpu_{qpu}"\n')

    (row,) = json.loads(shown.out)
    assert (row["name"], row["gres"], row["licence"]) == ("a", "qpu:a", "qpu_a")
    assert shown.err == ""


def test_a_mistake_in_the_policy_is_reported_with_its_line(listed, tmp_path):
    shown = listed("[qpus.a]\nlanes = 0\n")

    assert json.loads(shown.out) == []
    assert shown.err == (
        f"qpu: {tmp_path}/site.toml:2: [qpus.a]: lanes = 0: must be a positive integer. Correct "
        "it.\n"
    )

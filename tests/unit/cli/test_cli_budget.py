"""`qpu budget`: set by administrators, shown to all."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from qrmi_workflows.budgets.allowance import Allowance
from qrmi_workflows.budgets.ledger import this_user
from qrmi_workflows.cli import qpu
from qrmi_workflows.errors import QPUError
from qrmi_workflows.journal.cost import Amount
from qrmi_workflows.journal.journal import Journal


@pytest.fixture
def site(tmp_path, monkeypatch):
    (tmp_path / "site.toml").write_text(
        f'[site]\nbudgets = "{tmp_path / "budgets"}"\n[qpus.ibm_fez]\n'
    )
    monkeypatch.setenv("QPU_SITE", str(tmp_path / "site.toml"))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return tmp_path / "budgets"


def run(*argv: str) -> str:
    done = CliRunner().invoke(qpu, ["budget", *argv], catch_exceptions=True)
    if isinstance(done.exception, QPUError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def shown(*argv: str) -> list[dict[str, object]]:
    return list(json.loads(run("show", "--json", *argv)))


def test_a_budget_is_set_spent_shown_replaced_and_removed(site):
    run("set", "user:*", "1000 shots", "--per", "month")
    run("set", "account:chem", "2 h", "--qpu", "ibm_fez")
    own = Allowance(folder=site, qpu="ibm_fez", account="chem")
    entry, _ = Journal().step("s").claim("d" * 64, qpu="ibm_fez", program="sampler")
    own.reserve(entry, Amount(shots=400, seconds=90.5))

    of_account, of_user = shown("--account", "chem")

    assert of_account | {"ends": None} == {
        "scope": "account", "name": "chem", "qpu": "ibm_fez", "per": "total", "unit": "seconds",
        "limit": 7200.0, "spent": 0.0, "reserved": 90.5, "left": 7109.5, "ends": None,
    }  # fmt: skip
    assert (of_user["name"], of_user["left"], of_user["limit"]) == (this_user(), 600, 1000)
    assert str(of_user["ends"]).endswith("-01T00:00:00+00:00")
    assert "1000 shots" in run("show")
    assert shown("--user", "somebody")[0]["left"] == 1000
    run("set", "user:*", "10 shots", "--per", "month")
    assert shown()[0]["left"] == -390
    run("set", "user:*", "none", "--per", "month")
    assert shown() == []
    assert run("show").startswith(f"no budget limits user '{this_user()}'")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("everybody", "1 s"), "must be user:NAME or account:NAME"),
        (("job:7", "1 s"), "must be user:NAME or account:NAME"),
        (("user:../ada", "1 s"), "Correct the name"),
        (("account:/etc", "1 s"), "Correct the name"),
        (("user:ada", "much"), "must be a number of shots, or a time"),
        (("user:ada", "1 s", "--qpu", "../q"), "invalid QPU name"),
    ],
)
def test_a_mistake_is_refused_and_nothing_is_written(site, argv, message):
    with pytest.raises(QPUError, match=message):
        run("set", *argv)
    assert not site.exists()


def test_a_site_without_a_folder_for_budgets_says_what_to_add(site, tmp_path):
    (tmp_path / "site.toml").write_text("[qpus.ibm_fez]\n")
    with pytest.raises(QPUError, match=r"Add `budgets = .* to its table"):
        run("set", "user:ada", "1 s")
    assert "no budget limits" in run("show")


def test_a_budget_that_does_not_exist_is_not_removed_silently(site):
    """Its period was left out, for example."""
    run("set", "user:ada", "1 s", "--per", "month", "--qpu", "ibm_fez")

    with pytest.raises(QPUError) as refused:
        run("set", "user:ada", "none")

    assert refused.value.exit_code == 2
    assert "no budget of user:ada with --per total to remove" in str(refused.value)
    assert "there are budgets with --per month --qpu ibm_fez" in str(refused.value)
    with pytest.raises(QPUError, match=r"with --per day and --qpu q to remove\. Name"):
        run("set", "user:eve", "none", "--per", "day", "--qpu", "q")
    assert shown("--user", "ada")

"""`qpu doctor`: what it prints, its exit codes, and the file that it writes."""

from __future__ import annotations

import json

import pytest

from qrmi_workflows.cli import main
from qrmi_workflows.config.findings import Finding

OK = Finding.ok("gres", "QPU 'a': qpu:a on n1")
WARNING = Finding.warning("exclusion", "two jobs can hold it.", "Add a licence.")
ERROR = Finding.error("licences", "no licence 'x'.", "Correct it.")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `qpu doctor` with these findings; return the exit code and what it prints."""

    def run(findings, *arguments):
        monkeypatch.setattr("qrmi_workflows.site.doctor.examine_site", lambda config: findings)
        with pytest.raises(SystemExit) as ended:
            main(["doctor", *arguments])
        return int(ended.value.code or 0), capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    ("findings", "code"),
    [([], 0), ([OK], 0), ([OK, WARNING], 1), ([ERROR, WARNING], 2), ([ERROR], 2)],
)
def test_the_exit_code_is_for_monitoring(run, findings, code):
    assert run(findings)[0] == code
    assert run(findings, "--json")[0] == code
    assert run(findings, "--quiet")[0] == code


def test_findings_are_listed_with_their_remedies(run):
    assert run([OK, WARNING, ERROR])[1] == (
        "ok       gres       QPU 'a': qpu:a on n1\n"
        "warning  exclusion  two jobs can hold it.\n"
        "                    → Add a licence.\n"
        "error    licences   no licence 'x'.\n"
        "                    → Correct it.\n"
        "1 error, 1 warning\n"
    )
    assert "ok " not in run([OK, WARNING], "--quiet")[1]
    assert run([OK], "-q")[1] == "0 errors, 0 warnings\n"


def test_findings_as_json(run):
    assert json.loads(run([WARNING], "--json")[1]) == [
        {
            "check": "exclusion",
            "severity": "warning",
            "problem": "two jobs can hold it.",
            "remedy": "Add a licence.",
        }
    ]


def test_a_proposal_is_printed_or_written_to_a_new_file(run, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("qrmi_workflows.site.proposal.propose_policy", lambda config: "[qpus.a]\n")
    file = tmp_path / "site.toml"

    assert run([], "--write") == (0, "[qpus.a]\n")
    assert run([], "--write", "-") == (0, "[qpus.a]\n")
    assert run([], "--write", str(file)) == (0, "")
    assert file.read_text() == "[qpus.a]\n"
    file.write_text("# mine\n")
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--write", str(file)])
    assert ended.value.code == 2
    assert f"{file} exists, and is not overwritten" in capsys.readouterr().err
    assert file.read_text() == "# mine\n"

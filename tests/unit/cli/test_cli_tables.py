"""Tables on stdout."""

from __future__ import annotations

from qrmi_workflows.cli.tables import print_table


def test_a_row_is_one_line_if_stdout_is_not_a_terminal(capsys):
    print_table(("TASK", "STEP"), [("t" * 60, "s" * 60)])

    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["TASK", "STEP"], ["t" * 60, "s" * 60]]


def test_the_first_column_is_not_wrapped_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")

    print_table(("TASK", "STEP"), [("t" * 36, "s" * 60)])

    output = capsys.readouterr().out
    assert "t" * 36 in output
    assert "s" * 60 not in output


def test_names_may_contain_brackets(capsys):
    print_table(("TASK", "STEP"), [(None, "sweep [a] [/b]")])

    assert "-     sweep [a] [/b]" in capsys.readouterr().out

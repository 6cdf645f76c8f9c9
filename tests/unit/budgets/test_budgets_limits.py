"""The site's budgets: read, written, and which of them apply to a task."""

from __future__ import annotations

import os

import pytest

from qrmi_workflows.budgets.limits import (
    Limit,
    applicable,
    limits_file,
    parse_limit,
    period_end,
    read_limits,
    render_amount,
    require_name,
    write_limits,
)
from qrmi_workflows.errors import ConfigError, RequestError


def limit(scope: str = "user", name: str = "ada", **values: object) -> Limit:
    return Limit(scope=scope, name=name, **{"unit": "shots", "amount": 10} | values)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("1000 shots", ("shots", 1000)),
        ("1 shot", ("shots", 1)),
        ("0 shots", ("shots", 0)),
        ("90 s", ("seconds", 90_000)),
        ("0.5 seconds", ("seconds", 500)),
        ("10 min", ("seconds", 600_000)),
        (" 2H ", ("seconds", 7_200_000)),
        ("1.1 h", ("seconds", 3_960_000)),
        ("16.1 min", ("seconds", 966_000)),
        ("1 hour", ("seconds", 3_600_000)),
        ("1 minute", ("seconds", 60_000)),
        ("12345678.901 s", ("seconds", 12_345_678_901)),
        ("1000000000000 s", ("seconds", 10**15)),
    ],
)
def test_an_amount_is_shots_or_a_time(text, parsed):
    assert parse_limit(text, "here") == parsed
    assert parse_limit(render_amount(*parsed), "here") == parsed


@pytest.mark.parametrize(
    "text",
    ["", "1000", "shots", "-1 shots", "1.5 shots", "1e3 shots", "nan s", "inf s", "0.0001 s",
     "9" * 30 + " shots", "1 day", "1 shots; rm", None, 5],
)  # fmt: skip
def test_anything_else_is_refused_with_what_is_allowed(text):
    with pytest.raises(RequestError, match=r"here: .*must be a number of shots, or a time"):
        parse_limit(text, "here")


@pytest.mark.parametrize("name", ["ada", "a.b@c+d-e", "_x", "7up", "x" * 128])
def test_usual_names_are_accepted(name):
    assert require_name(name, "user") == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../root", "/etc/passwd", "a/b", "-", "-x", ".x", "a b", "a\n", "a\0b", "ä",
     "*", "x" * 129, None, 7],
)  # fmt: skip
def test_unusual_names_are_refused_not_escaped(name):
    with pytest.raises(ConfigError, match=r"account .*Correct the name"):
        require_name(name, "account")


def test_budgets_read_back_as_they_were_written(tmp_path):
    written = [
        limit(per="month", qpu="ibm_fez"),
        limit("account", "chem", unit="seconds", amount=90_500, per="day"),
        limit(name="*"),
    ]
    write_limits(tmp_path, written)
    assert read_limits(tmp_path) == tuple(written)
    assert limits_file(tmp_path).stat().st_mode & 0o777 == 0o644


def test_without_a_file_there_are_no_budgets(tmp_path):
    assert read_limits(tmp_path) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("budget = 1", "must be tables"),
        ("[[budget]]\nuser = 'a'", "must be a number of shots"),
        ("[[budget]]\nuser = '../a'\nlimit = '1 s'", "Correct the name"),
        ("[[budget]]\nuser = 'a'\naccount = 'b'\nlimit = '1 s'", "one of the keys user and accou"),
        ("[[budget]]\nuser = 'a'\nlimit = '1 s'\nper = 'year'", "must be one of: day, month, tot"),
        ("[[budget]]\nuser = 'a'\nlimit = '1 s'\ncolour = 1", "unknown key 'colour'"),
        ("[[budget]]\nuser = 'a'\nlimit = '1 s'\nqpu = 'a/b'", "invalid QPU name"),
        ("[[budget]]\nuser = 'a'\nlimit = '1 s'\n" * 2, "two budgets of user a"),
        ("[[budget]]\nuser = 'a'\nlimit = '1 s'\nqpu = 7", "must be the name of a QPU"),
        ("[[budget]]\nuser = 'a'\nlimit = '1 s'\nper = []", "must be one of: day, month, tot"),
        ("[[budget]]\nuser = 'a'\nlimit = '\u0661 s'", "must be a number of shots"),
        ("[[budgets]]\nuser = 'a'\nlimit = '1 s'", "unknown key 'budgets'"),
        ("[[budget", "not valid TOML"),
        ("budget = " + "[" * 100_000, "not valid TOML"),
        ("#" * 1_000_001, "at most 1000000 characters"),
    ],
)
def test_mistakes_are_named_with_the_file(tmp_path, text, message):
    limits_file(tmp_path).write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_limits(tmp_path)
    assert str(limits_file(tmp_path)) in error.value.message


@pytest.mark.parametrize("place", ["file", "folder", "link"])
def test_a_file_that_others_may_have_written_is_refused(tmp_path, place):
    """Otherwise anybody could give themselves a budget."""
    folder = tmp_path / "budgets"
    folder.mkdir()
    write_limits(folder, [limit()])
    if place == "file":
        limits_file(folder).chmod(0o666)
    elif place == "folder":
        folder.chmod(0o777)
    else:
        limits_file(folder).rename(tmp_path / "other")
        limits_file(folder).symlink_to(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"limits\.toml|budgets"):
        read_limits(folder)


@pytest.mark.root
def test_a_file_of_another_user_is_refused(tmp_path):
    write_limits(tmp_path, [limit()])
    os.chown(limits_file(tmp_path), 12345, 0)
    with pytest.raises(ConfigError, match="owner 12345"):
        read_limits(tmp_path)


def test_a_budget_of_ones_own_replaces_that_of_everybody_of_its_kind():
    limits = [
        limit(name="*", amount=1, per="month"),
        limit(name="*", amount=2, unit="seconds"),
        limit(amount=3, per="month"),
        limit("account", "*", amount=4),
        limit(name="bob", amount=5),
        limit(amount=6, qpu="other"),
    ]
    found = applicable(limits, user="ada", account="chem", qpu="ibm_fez")
    assert [(each.describe(), each.amount) for each in found] == [
        ("user ada", 3),
        ("user ada", 2),
        ("account chem", 4),
    ]
    assert applicable(limits, user="eve", account=None, qpu="ibm_fez")[0].name == "eve"


def test_periods_end_at_midnight_utc():
    assert period_end("day", "2026-12-31") == "2027-01-01T00:00:00+00:00"
    assert period_end("month", "2026-12-31") == "2027-01-01T00:00:00+00:00"
    assert period_end("month", "2026-01-31") == "2026-02-01T00:00:00+00:00"
    assert period_end("total", "2026-01-31") is None

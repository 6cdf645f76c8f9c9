"""Notices about QPUs that are away: whose count, and what they say."""

from __future__ import annotations

import json
import os

import pytest

from qrmi_workflows.config import notices
from qrmi_workflows.config.notices import (
    BY_HAND,
    BY_STATE,
    read_entries,
    read_notice,
    read_notices,
    refusal,
)
from qrmi_workflows.config.site import load_site_policy
from qrmi_workflows.errors import ConfigError


@pytest.fixture
def site(tmp_path):
    (tmp_path / "site.toml").write_text(f'[site]\nstate = "{tmp_path}/state"\n[qpus.a]\n[qpus.b]\n')
    (tmp_path / "state/maintenance").mkdir(parents=True)
    return load_site_policy(tmp_path / "site.toml")


def write(site, kind, **messages):
    path = site.folders.maintenance / kind
    entries = {qpu: {"message": text, "since": 1795710224.0} for qpu, text in messages.items()}
    path.write_text(json.dumps(entries))
    return path


def test_a_notice_says_since_when_and_why(site):
    write(site, BY_HAND, a="Cooling")

    assert refusal(read_notice("a", site)) == (
        "QPU 'a' is in maintenance since 2026-11-26 16:23 UTC: Cooling. Try again when `qpu list` "
        "shows it as available."
    )
    assert read_notice("b", site) is None


def test_what_was_set_by_hand_comes_first(site):
    write(site, BY_STATE, a="offline", b="offline")
    write(site, BY_HAND, a="Cooling")

    assert {name: each.message for name, each in read_notices(site).items()} == {
        "a": "Cooling",
        "b": "offline",
    }


def test_a_file_of_another_user_does_not_count(site, monkeypatch):
    write(site, BY_HAND, a="forged")
    monkeypatch.setattr(notices, "operators", lambda _site: frozenset({os.getuid() + 1}))

    assert read_notices(site) == {}


@pytest.mark.root
def test_a_file_that_a_user_has_put_there_does_not_count(site):
    """Even in a folder into which an administrator lets users write by mistake."""
    os.chown(write(site, BY_HAND, a="forged"), 12345, 12345)

    assert read_notices(site) == {}


def test_a_link_does_not_count(site):
    path = write(site, BY_HAND, a="elsewhere")
    path.rename(path.with_name("real"))
    path.symlink_to("real")

    assert read_notice("a", site) is None


def test_a_fifo_does_not_block(site):
    os.mkfifo(site.folders.maintenance / BY_HAND)
    assert read_notice("a", site) is None


@pytest.mark.parametrize("entry", [None, [], {}, {"message": 3, "since": "x"}])
def test_an_operators_entry_counts_even_if_it_cannot_be_understood(site, entry):
    (site.folders.maintenance / BY_HAND).write_text(json.dumps({"a": entry}))
    assert read_notice("a", site).by_hand


@pytest.mark.parametrize(
    "since", ["1e30", "-1e30", "1" * 400, "-5", "NaN", "Infinity", "true", '"soon"', "null", "[]"]
)
def test_a_time_that_is_none_is_left_out(site, since):
    """An administrator may have written it."""
    text = f'{{"a": {{"message": "Cooling", "since": {since}}}}}'
    (site.folders.maintenance / BY_HAND).write_text(text)

    notice = read_notice("a", site)

    assert notice.message == "Cooling"
    assert str(notice).startswith("QPU 'a' is in maintenance")
    assert notice.since_text


def test_a_message_of_several_lines_becomes_one(site):
    (site.folders.maintenance / BY_HAND).write_text(
        '{"a": {"message": "Cooling\\nuntil\\tFriday"}}'
    )
    assert str(read_notice("a", site)) == "QPU 'a' is in maintenance: Cooling until Friday"


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100000, "\udcff"])
def test_a_file_that_cannot_be_understood_is_named(site, text, caplog):
    """To users as a warning, because it must not stop the jobs of all QPUs."""
    path = site.folders.maintenance / BY_HAND
    path.write_bytes(text.encode(errors="surrogateescape"))

    assert read_notices(site) == {}
    assert f"{path}: not a JSON object. Correct it, or remove it." in caplog.text
    with pytest.raises(ConfigError, match="not a JSON object"):
        read_notices(site, strict=True)
    with pytest.raises(ConfigError, match="not a JSON object"):
        read_entries(path, frozenset({os.getuid()}), strict=True)


def test_only_qpus_of_the_site_have_notices(site):
    write(site, BY_HAND, other="Cooling")

    assert read_notices(site) == {}
    assert read_notice("other", site) is None

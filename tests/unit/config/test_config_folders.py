"""Where a user's files are."""

from __future__ import annotations

from pathlib import Path

import pytest

from qrmi_workflows.config.folders import cache_folder, find_file, home_folder, state_folder
from qrmi_workflows.errors import ConfigError


def test_a_variable_names_the_state_folder_itself():
    assert state_folder({"QPU_STATE": "/scratch/state"}) == Path("/scratch/state")


def test_without_a_variable_the_xdg_folders_are_used():
    environ = {"XDG_STATE_HOME": "/home/me/state", "XDG_CACHE_HOME": "/home/me/cache"}

    assert state_folder(environ) == Path("/home/me/state/qrmi-workflows")
    assert cache_folder(environ) == Path("/home/me/cache/qrmi-workflows")


def test_without_any_variable_they_are_in_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")

    assert state_folder({}) == Path("/home/me/.local/state/qrmi-workflows")
    assert cache_folder({}) == Path("/home/me/.cache/qrmi-workflows")


def test_the_users_file_takes_precedence_over_the_sites(tmp_path):
    site = tmp_path / "site.json"
    site.touch()
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert find_file(environ, "QPU_CONFIG", "a.json", site) == site

    (tmp_path / "qrmi-workflows").mkdir()
    own = tmp_path / "qrmi-workflows" / "a.json"
    own.touch()
    assert find_file(environ, "QPU_CONFIG", "a.json", site) == own

    environ["QPU_CONFIG"] = "/elsewhere"
    assert find_file(environ, "QPU_CONFIG", "a.json", site) == Path("/elsewhere")


def test_the_message_about_a_missing_file_names_where_it_was_looked_for(tmp_path):
    site = tmp_path / "etc" / "a.json"

    with pytest.raises(ConfigError) as caught:
        find_file({"XDG_CONFIG_HOME": str(tmp_path)}, "QPU_CONFIG", "a.json", site)

    own = tmp_path / "qrmi-workflows" / "a.json"
    assert f"no a.json: $QPU_CONFIG is not set, and neither {own} nor {site} exists." in str(
        caught.value
    )


@pytest.mark.parametrize(
    "find",
    [
        home_folder,
        lambda: state_folder({}),
        lambda: find_file({}, "QPU_CONFIG", "a.json", Path("/absent")),
    ],
    ids=["home", "state", "configuration"],
)
def test_a_user_without_a_home_directory_is_told_what_to_set(find, monkeypatch):
    """As in a container whose user database does not have its user."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 4_000_000)

    with pytest.raises(ConfigError, match=r"4000000 has no home directory: .* Set \$HOME"):
        find()

"""The folder of a job's leases: nothing in it can be listed, replaced or forged by others."""

import json
import os
import stat
from pathlib import Path

import pytest

from qrmi_workflows.errors import ConfigError
from qrmi_workflows.site.job_folder import JobFolder

UID, GID = os.getuid(), os.getgid()


@pytest.fixture
def folder(tmp_path):
    made = JobFolder(tmp_path / "state", "7")
    made.create("n1", UID, GID)
    return made


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_nobody_can_list_it(folder):
    assert [mode(path) for path in (folder.path, *list(folder.path.parents)[:2])] == [0o711] * 3
    assert mode(folder.usage) == 0o700


def test_the_variables_are_the_users_alone(folder):
    folder.refuse("not yet", UID, GID)
    folder.publish({"A-b": "1 = 2", "C": ""}, UID, GID)

    assert mode(folder.path / "environment") == 0o400
    assert (folder.path / "environment").read_text() == "export A-b=1 = 2\nexport C=\n"
    assert not (folder.path / "refused").exists()


@pytest.mark.parametrize("value", ["a\nexport LD_PRELOAD=x", "a\rb", "a\0b"])
def test_a_setting_cannot_add_another_variable(folder, value):
    with pytest.raises(ConfigError, match="the setting B has a line break"):
        folder.publish({"B": value}, UID, GID)
    assert not (folder.path / "environment").exists()


def test_a_reason_is_printed_line_by_line(folder):
    folder.refuse("one\ntwo", UID, GID)
    assert (folder.path / "refused").read_text() == "print qpu: one\nprint qpu: two\n"


@pytest.mark.parametrize("job_id", ["..", "1/2", "", "1\n", "-1", "x"])
def test_a_job_id_is_a_number(tmp_path, job_id):
    with pytest.raises(ConfigError, match="must be a number"):
        JobFolder(tmp_path, job_id)


def test_a_requeued_job_starts_anew(folder):
    folder.publish({"A": "1"}, UID, GID)
    folder.create("n2", UID, GID)

    assert folder.node == "n2"
    assert sorted(path.name for path in folder.path.iterdir()) == ["node", "usage"]


@pytest.mark.parametrize("bits", [0o777, 0o720])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path, bits):
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(bits)
    with pytest.raises(ConfigError, match="nobody else may write to"):
        JobFolder(state, "7").create("n1", UID, GID)


def test_a_link_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "state").symlink_to(tmp_path / "other")
    with pytest.raises(ConfigError, match="must be a folder"):
        JobFolder(tmp_path / "state", "7").create("n1", UID, GID)


def test_usage_is_read_line_by_line(folder):
    (folder.usage / "q.usage").write_text('{"a": 1}\nnot json\n[2]\n{"b": 2}\n')
    assert list(folder.read_usage("q", UID)) == [{"a": 1}, {"b": 2}]


def test_usage_that_is_no_file_of_the_user_is_not_read(folder, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text(json.dumps({"a": 1}))
    (folder.usage / "link.usage").symlink_to(secret)
    os.mkfifo(folder.usage / "fifo.usage")
    (folder.usage / "folder.usage").mkdir()

    for qpu in ("link", "fifo", "folder", "absent"):
        assert list(folder.read_usage(qpu, UID)) == []
    (folder.usage / "own.usage").write_text(json.dumps({"a": 1}))
    assert list(folder.read_usage("own", UID + 1)) == []


def test_a_link_in_place_of_the_usage_folder_is_not_followed(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "q.usage").write_text(json.dumps({"a": 1}))
    folder.usage.rmdir()
    folder.usage.symlink_to(tmp_path / "elsewhere")

    assert list(folder.read_usage("q", UID)) == []
    folder.remove()
    assert not folder.path.exists()
    assert (tmp_path / "elsewhere" / "q.usage").exists()


def test_folders_nested_too_deeply_are_removed(folder, monkeypatch):
    """Otherwise they would stop the reaper of the whole site each time."""
    monkeypatch.chdir(folder.usage)
    for _ in range(2000):
        Path("d").mkdir()
        os.chdir("d")
    os.chdir("/")

    folder.remove()

    assert not folder.path.exists()

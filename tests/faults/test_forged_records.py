"""Another user cannot forge a user's records, nor lead root to read or write elsewhere."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from other_users import User, temporary_user

from qrmi_workflows.lease.record import LeaseRecord
from qrmi_workflows.lease.site_records import save_for_site
from qrmi_workflows.site.record_files import records_of_site
from qrmi_workflows.state.process import Owner

pytestmark = pytest.mark.root

RECORD = LeaseRecord(
    lease="l1",
    qpu="ibm_fez",
    type="ibm-quantum-system",
    step="sample",
    owner=Owner(host="n1", boot="b", pid=1, started=1, job="17"),
    acquired="2026-11-26T12:00:00+00:00",
    released="2026-11-26T13:30:00+00:00",
    queue_wait=None,
    acquire=0.25,
    held=5400.0,
    busy=540.0,
    idle=4860.0,
    tasks=0,
    task_ids=[],
    user=f"qpu-victim-{os.getpid()}",
)


@pytest.fixture(scope="module")
def everybodys() -> Iterator[Path]:
    """A folder that all users can reach; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(prefix="users-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def victim(everybodys: Path) -> Iterator[User]:
    with temporary_user(str(RECORD.user), everybodys) as user:
        yield user


@pytest.fixture(scope="module")
def mallory(everybodys: Path) -> Iterator[User]:
    with temporary_user(f"qpu-mallory-{os.getpid()}", everybodys) as user:
        yield user


@pytest.fixture
def folder(everybodys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = everybodys / "records"
    folder.mkdir()
    folder.chmod(0o1777)
    (everybodys / "site.toml").write_text(f'[site]\nrecords = "{folder}"\n[qpus.ibm_fez]\n')
    monkeypatch.setenv("QPU_SITE", str(everybodys / "site.toml"))
    yield folder
    shutil.rmtree(folder)


def read() -> tuple[list[str], list[str]]:
    records = records_of_site(lambda _: True)
    return [each.user for each in records], [str(each) for each in records.problems]


def write(user: User, file: Path, record: LeaseRecord) -> None:
    """Write a record as a user: with the user's uid, and no way around it."""
    script = f"mkdir -p {file.parent}; cat > {file} <<'END'\n{record.to_json()}\nEND\n"
    done = user.run("sh", "-c", script)
    assert done.returncode == 0, done.stderr


def test_a_users_own_records_count(folder: Path, victim: User) -> None:
    write(victim, folder / victim.name / "2026-11-n1.jsonl", RECORD)

    assert read() == ([victim.name], [])


def test_a_record_counts_for_the_user_who_wrote_it_whatever_it_says(
    folder: Path, mallory: User, victim: User
) -> None:
    write(mallory, folder / mallory.name / "2026-11-n1.jsonl", RECORD)

    assert victim.name not in read()[0]
    assert read() == ([mallory.name], [])


def test_a_forged_file_in_anothers_name_does_not_count(
    folder: Path, mallory: User, victim: User
) -> None:
    file = folder / victim.name / "2026-11-n1.jsonl"
    write(mallory, file, RECORD)

    reason = f"{file.parent}: belongs to user {mallory.name}, so it does not count"
    assert read() == ([], [reason])


def test_nobody_can_write_into_a_users_folder_or_remove_it(
    folder: Path, mallory: User, victim: User
) -> None:
    write(victim, folder / victim.name / "2026-11-n1.jsonl", RECORD)
    (folder / victim.name).chmod(0o700)

    for command in ("rm -rf", "touch -c", "ls"):
        mallory.run("sh", "-c", f"{command} {folder / victim.name}/*")
    mallory.run("mv", str(folder / victim.name), str(folder / "gone"))

    assert read() == ([victim.name], [])


def test_the_group_of_a_setgid_folder_may_read_what_a_user_writes(
    folder: Path, victim: User, mallory: User
) -> None:
    """The user is not in the group; another user, who is not either, may not read it."""
    shutil.chown(folder, group="adm")
    folder.chmod(0o3773)
    uid = pwd.getpwnam(victim.name).pw_uid
    os.setegid(uid)
    os.seteuid(uid)
    try:
        save_for_site(RECORD)
    finally:
        os.seteuid(0)
        os.setegid(0)

    (file,) = (folder / victim.name).iterdir()
    assert (file.group(), file.owner(), file.stat().st_mode & 0o777) == ("adm", victim.name, 0o640)
    assert (folder / victim.name).stat().st_mode & 0o7777 == 0o2750
    assert mallory.run("cat", str(file)).returncode != 0
    assert read() == ([victim.name], [])


def test_root_releases_a_users_lease_and_its_record_counts(folder: Path, victim: User) -> None:
    write(victim, folder / victim.name / "2026-11-n1.jsonl", RECORD)

    save_for_site(replace(RECORD, lease="reaped"))

    assert read() == ([victim.name] * 2, [])


def test_a_users_record_does_not_hide_what_root_wrote_about_the_same_lease(
    folder: Path, victim: User
) -> None:
    write(victim, folder / victim.name / "2026-11-a.jsonl", replace(RECORD, busy=1.0))

    save_for_site(RECORD)

    assert [each.record.busy for each in records_of_site(lambda _: True)] == [1.0, RECORD.busy]


def test_what_root_wrote_about_one_user_does_not_count_for_another(
    folder: Path, mallory: User, victim: User
) -> None:
    """Who owns a folder can name it, and what is in it, at will."""
    save_for_site(replace(RECORD, user=mallory.name))
    own = folder / mallory.name
    claimed = folder / victim.name

    assert mallory.run("mv", str(own), str(claimed)).returncode == 0
    assert read() == ([], [f"{claimed}: belongs to user {mallory.name}, so it does not count"])

    claimed.rename(own)
    (folder / victim.name).mkdir()
    shutil.chown(folder / victim.name, victim.name)
    (file,) = own.iterdir()
    file.rename(folder / victim.name / file.name)
    users, problems = read()
    assert users == []
    assert problems == [
        f"{folder / victim.name / file.name}:1: root's record of user {mallory.name}"
    ]


def test_root_writes_no_record_of_a_user_into_anothers_folder(
    folder: Path, mallory: User, victim: User
) -> None:
    """The owner of the folder could read it, and take it away."""
    mallory.run("mkdir", str(folder / victim.name))

    with pytest.raises(PermissionError, match=f"belongs to user {mallory.name}"):
        save_for_site(RECORD)

    assert list((folder / victim.name).iterdir()) == []


def test_root_writes_nothing_through_a_users_links(
    folder: Path, tmp_path: Path, mallory: User
) -> None:
    """Not through a link in the user's own folder, nor one in its place."""
    own = folder / mallory.name
    own.mkdir()
    shutil.chown(own, mallory.name)
    record = replace(RECORD, user=mallory.name)
    save_for_site(record)
    (written,) = own.iterdir()
    written.unlink()
    secret = tmp_path / "secret"
    secret.write_text("root's own\n")
    mallory.run("ln", "-s", str(secret), str(written))

    with pytest.raises(OSError, match=r"symbolic links"):
        save_for_site(record)
    mallory.run("rm", str(written))
    mallory.run("touch", str(written))
    with pytest.raises(PermissionError, match=r"is not a file of user 0"):
        save_for_site(record)
    shutil.rmtree(own)
    mallory.run("ln", "-s", "/etc", str(own))
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        save_for_site(record)

    assert secret.read_text() == "root's own\n"
    assert not list(Path("/etc").glob("*.jsonl"))


def test_root_reads_nothing_through_a_users_links(
    folder: Path, everybodys: Path, mallory: User
) -> None:
    secret = everybodys / "secret.jsonl"
    secret.write_text(RECORD.to_json() + "\n")
    secret.chmod(0o600)
    own = folder / mallory.name
    mallory.run("mkdir", str(own))
    mallory.run("ln", "-s", str(secret), str(own / "2026-11-n1.jsonl"))

    users, problems = read()

    assert users == []
    assert problems == [f"{own}/2026-11-n1.jsonl: Too many levels of symbolic links"]

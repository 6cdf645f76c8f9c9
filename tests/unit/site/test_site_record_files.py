"""The site's folder of records: written by each user, read with care."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
from usage_records import lease_record

from qrmi_workflows.errors import ConfigError
from qrmi_workflows.lease.record import LeaseRecord
from qrmi_workflows.lease.site_records import save_for_site
from qrmi_workflows.site.record_files import own_records, records_of_site
from qrmi_workflows.state.users import user_name

ME = user_name()
RECORD = lease_record(user=ME)


def always(_month: str) -> bool:
    return True


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A site that collects records."""
    folder = tmp_path / "records"
    folder.mkdir()
    site = f'[site]\nrecords = "{folder}"\n[qpus.ibm_fez]\n'
    (tmp_path / "site.toml").write_text(site)
    monkeypatch.setenv("QPU_SITE", str(tmp_path / "site.toml"))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("QPU_LEASE_RECORD", raising=False)
    return folder


def read(records):
    return [each.record for each in records], [str(each) for each in records.problems]


def test_what_is_saved_is_read_with_its_user(folder):
    save_for_site(RECORD)
    save_for_site(replace(RECORD, lease="another"))

    (first, second) = records_of_site(always)

    assert (first.user, first.record) == (ME, RECORD)
    assert second.record.lease == "another"
    (own,) = folder.iterdir()
    assert own.name == ME
    assert own.stat().st_mode & 0o777 == 0o700


def test_the_group_of_a_setgid_folder_may_read_the_records(folder):
    folder.chmod(0o3770)

    save_for_site(RECORD)

    (own,) = folder.iterdir()
    assert own.stat().st_mode & 0o7777 == 0o2750


def test_a_site_that_collects_no_records_gets_none(folder, tmp_path):
    (tmp_path / "site.toml").write_text("[qpus.ibm_fez]\n")

    save_for_site(RECORD)

    assert list(folder.iterdir()) == []
    with pytest.raises(ConfigError, match=r"sets no `records` in \[site\]. Add it"):
        records_of_site(always)


def test_a_folder_that_does_not_exist_is_named(folder):
    folder.rmdir()

    with pytest.raises(ConfigError, match=rf"{folder}: No such file or directory. Create"):
        records_of_site(always)
    with pytest.raises(OSError, match="No such file"):
        save_for_site(RECORD)


def test_a_line_after_one_that_was_cut_short_is_read(folder):
    """The disk was full, or the host has crashed."""
    save_for_site(RECORD)
    (file,) = folder.glob("*/*")
    with file.open("a") as opened:
        opened.write('{"lease": "cut sho')
    save_for_site(whole := replace(RECORD, lease="whole"))

    records, problems = read(records_of_site(always))

    assert records == [RECORD, whole]
    assert len(problems) == 1
    assert problems[0].startswith(f"{file}:2: not a lease record: ")


def bad(**values):
    document = json.loads(RECORD.to_json()) | values
    return json.dumps(document)


BAD = [
    "null",
    "[]",
    '"text"',
    '{"owner": 7}',
    "\x00" * 10,
    bad(held="long"),
    bad(held=-1.0),
    bad(held=float("inf")),
    bad(busy=float("nan")),
    bad(busy=1e9),
    bad(shots=-5),
    bad(billed="1"),
    bad(task_ids=None),
    bad(task_ids=[7]),
    bad(qpu=["ibm_fez"]),
    bad(account={"a": 1}),
    bad(account="\x1b[2Jgone"),
    bad(user="a\nb"),
    bad(acquired="yesterday"),
    bad(acquired="2026-11-26T12:00:00"),
    bad(released="0001-01-01T00:00:00+14:00"),
    bad(owner={"host": "n", "boot": "b", "pid": 1, "started": 1, "job": 7}),
    bad(owner={"host": "n"}),
]


@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
def test_a_broken_line_is_named_and_left_out(folder, line):
    save_for_site(RECORD)
    (file,) = folder.glob("*/*")
    file.write_text(f"{line}\n\n{RECORD.to_json()}\n")

    records, problems = read(records_of_site(always))

    assert records == [RECORD]
    assert len(problems) == 1
    assert problems[0].startswith(f"{file}:1: ")


def test_many_broken_lines_do_not_fill_the_memory(folder):
    save_for_site(RECORD)
    (file,) = folder.glob("*/*")
    file.write_text("x\n" * 100_000 + RECORD.to_json() + "\n")

    records, problems = read(records_of_site(always))

    assert records == [RECORD]
    assert len(problems) == 101
    assert problems[-1] == f"{file}: further lines do not count, either"


def test_bytes_that_are_no_text_are_named(folder):
    save_for_site(RECORD)
    (file,) = folder.glob("*/*")
    file.write_bytes(b"\xff\xfe\n" + RECORD.to_json().encode() + b"\n")

    assert read(records_of_site(always))[0] == [RECORD]


def test_a_line_without_an_end_does_not_fill_the_memory(folder):
    save_for_site(RECORD)
    (file,) = folder.glob("*/*")
    with file.open("r+b") as opened:
        opened.seek(0, os.SEEK_END)
        opened.truncate(1 << 40)  # a sparse file of a terabyte

    records, problems = read(records_of_site(always))

    assert records == [RECORD]
    assert problems == [f"{file}:2: too long; the rest of the file is left out"]


def test_links_fifos_and_other_files_are_not_records(folder, tmp_path):
    save_for_site(RECORD)
    (own,) = folder.iterdir()
    (tmp_path / "elsewhere.jsonl").write_text(RECORD.to_json() + "\n")
    (own / "2026-10-link.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    os.mkfifo(own / "2026-10-fifo.jsonl")
    (own / "notes.txt").write_text("not a record")
    (folder / "nobody-of-this-name").mkdir()
    (folder / ".hidden").mkdir()
    (folder / "link").symlink_to(own)

    records, problems = read(records_of_site(always))

    assert records == [RECORD]
    assert sorted(problem.removeprefix(f"{folder}/") for problem in problems) == sorted(
        [
            f"{ME}/2026-10-fifo.jsonl: is not a file",
            f"{ME}/2026-10-link.jsonl: Too many levels of symbolic links",
            ".hidden: no user has this name",
            "link: no user has this name",
            "nobody-of-this-name: no user has this name",
        ]
    )


@pytest.mark.parametrize("user", ["", ".", "..", "../other", "a/b", ".x", "-x", "a\nb", "a\0b"])
def test_a_name_that_is_a_path_gets_no_folder(folder, user):
    with pytest.raises(PermissionError, match="cannot have a folder"):
        save_for_site(replace(RECORD, user=user))

    assert list(folder.parent.rglob("*.jsonl")) == []


def test_a_record_is_not_written_through_a_link(folder, tmp_path):
    (tmp_path / "victim").mkdir()
    (folder / ME).symlink_to(tmp_path / "victim")

    with pytest.raises(OSError, match=r"directory|symbolic"):
        save_for_site(RECORD)

    assert list((tmp_path / "victim").iterdir()) == []


def test_own_records_are_those_of_the_state_folder(folder):
    RECORD.save()
    replace(RECORD, lease="older", user="").save()

    assert [(each.user, each.record.user) for each in own_records(always)] == [(ME, ME), (ME, "")]
    assert list(own_records(lambda month: month != "2026-11")) == []


def test_own_records_in_the_sites_folder_count_once(folder):
    """Root has written that of a lease that the site held for a job."""
    RECORD.save()
    save_for_site(RECORD)
    save_for_site(replace(RECORD, lease="of-the-site"))
    replace(RECORD, lease="older").save()

    leases = [each.record.lease for each in own_records(always)]

    assert leases == [RECORD.lease, "of-the-site", "older"]


def test_a_lease_that_was_recorded_twice_counts_once(folder):
    """As when a reaper is killed after it has written the record."""
    for save in (RECORD.save, lambda: save_for_site(RECORD)) * 2:
        save()

    assert read(own_records(always)) == ([RECORD], [])
    assert read(records_of_site(always)) == ([RECORD], [])
    (folder / ME).rename(folder / "gone")
    assert read(own_records(always)) == ([RECORD], [])


def test_a_site_folder_that_is_gone_does_not_hide_ones_own_records(folder):
    RECORD.save()
    folder.rmdir()

    assert read(own_records(always)) == ([RECORD], [])


def test_own_records_are_read_from_the_file_that_the_user_names(folder, tmp_path):
    environ = {"QPU_LEASE_RECORD": str(tmp_path / "mine")}
    RECORD.save(environ)

    assert [each.record for each in own_records(lambda _: False, environ)] == [RECORD]
    absent = own_records(always, {"QPU_LEASE_RECORD": str(tmp_path / "absent")})
    assert read(absent) == ([], [f"{tmp_path / 'absent'}: No such file or directory"])


def test_a_record_of_a_later_release_counts(folder):
    RECORD.save()
    (file,) = (folder.parent / "state" / "leases").glob("*.jsonl")
    file.write_text(bad(colour="red") + "\n")

    assert read(own_records(always)) == ([LeaseRecord.from_json(RECORD.to_json())], [])

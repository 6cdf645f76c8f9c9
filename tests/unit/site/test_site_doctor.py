"""`qpu doctor`: what each check of files, users, folders and this host finds."""

from __future__ import annotations

import json
import os
import pwd
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qrmi_workflows import plugins
from qrmi_workflows.budgets.ledger import Ledger
from qrmi_workflows.budgets.limits import Limit, write_limits
from qrmi_workflows.config.findings import Finding, Severity
from qrmi_workflows.config.qpus import load_qpus
from qrmi_workflows.config.site import load_site_policy
from qrmi_workflows.schedulers.base import Examination
from qrmi_workflows.site import doctor_host
from qrmi_workflows.site.doctor import CHECKS, examine_site
from qrmi_workflows.site.doctor_budgets import check_budgets
from qrmi_workflows.site.doctor_files import (
    check_definitions,
    check_folders,
    check_modes,
    check_notices,
    check_policy,
    check_users,
)
from qrmi_workflows.site.doctor_host import (
    check_kill_wait,
    check_plugins,
    check_state_folder,
    check_versions,
    mount_of,
)
from qrmi_workflows.site.reading import SiteReading, read_site

Check = Callable[[SiteReading], object]
QPUS = {"resources": [{"name": "a", "type": "pasqal-cloud", "environment": {"TOKEN": "secret-1"}}]}
ME = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture(autouse=True)
def site(commands, tmp_path, monkeypatch):
    """A site's two files; its Slurm does not answer."""
    write(tmp_path, 'scheduler = "slurm"\n[qpus.a]\nlicence = "qpu_a"\n')
    config = tmp_path / "qrmi_config.json"
    config.write_text(json.dumps(QPUS))
    config.chmod(0o600)
    for name, file in (("QPU_SITE", "site.toml"), ("QPU_CONFIG", config.name)):
        monkeypatch.setenv(name, str(tmp_path / file))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("QPU_KILL_WAIT", raising=False)
    commands.write("scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1")


def write(folder: Path, text: str) -> Path:
    """Write site.toml."""
    path = folder / "site.toml"
    path.write_text(text)
    path.chmod(0o644)
    return path


def reading(folder: Path, text: str | None = None, **given: object) -> SiteReading:
    """What is read of a site with this policy."""
    site = None if text is None else load_site_policy(write(folder, text))
    config = folder / "qrmi_config.json"
    known = {"site": site, "policy_path": folder / "site.toml", "config_path": config}
    return SiteReading(**(known | {"definitions": load_qpus(config)} | given))  # type: ignore[arg-type]


def wrong(check: Check, found: SiteReading) -> list[str]:
    """Return what a check finds wrong, as `severity check: problem → remedy`."""
    return [
        f"{each.severity} {each.check}: {each.problem} → {each.remedy}"
        for each in check(found)  # type: ignore[attr-defined]
        if each.severity is not Severity.OK
    ]


# The two files


def test_every_mistake_in_the_policy_is_named_with_its_line(tmp_path):
    path = write(tmp_path, '[qpus.a]\nlanes = 0\nlicense = "x"\n')

    assert wrong(check_policy, read_site()) == [
        f"error policy: {path}:3: [qpus.a]: unknown key 'license'; must be one of: "
        "accounts, exclusive, gres, gres_nodes, groups, interactive_ttl, kill_wait, lanes, "
        "licence, mode, options, partition, partitions, qpu_option, require_grant, "
        "task_seconds, users, waiting_cost, warm_up. → Did you mean 'licence'?",
        f"error policy: {path}:2: [qpus.a]: lanes = 0: must be a positive integer. → Correct it.",
    ]


@pytest.mark.parametrize("text", ["[", "lanes = 1 1", "\0"])
def test_a_file_that_is_not_toml_is_an_error(tmp_path, text):
    write(tmp_path, text)

    (found,) = wrong(check_policy, read_site())
    assert f"{tmp_path}/site.toml: not valid TOML: " in found


def test_a_missing_policy_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("QPU_SITE", str(tmp_path / "absent.toml"))

    assert "error policy: " in wrong(check_policy, read_site())[0]


def test_a_qpu_that_is_offered_but_not_defined_is_an_error(tmp_path):
    text = "[qpus.a]\n[qpus.b]\n[qpus.c]\nqpu_option = true\n"

    assert wrong(check_definitions, reading(tmp_path, text)) == [
        f"error definitions: QPU 'b' is offered by {tmp_path}/site.toml, but "
        f"{tmp_path}/qrmi_config.json does not define it. → Add its definition, or remove its "
        "table from site.toml."
    ]


def test_definitions_that_cannot_be_read_are_an_error_unless_only_root_needs_them(tmp_path):
    (tmp_path / "qrmi_config.json").write_text("{")
    error = read_site().config_error

    given = {"config_error": error, "definitions": {}}
    spank = SiteReading(
        site=load_site_policy(write(tmp_path, "[qpus.a]\nqpu_option = true")), **given
    )
    plain = SiteReading(site=load_site_policy(write(tmp_path, "[qpus.a]")), **given)
    assert wrong(check_definitions, spank) == []
    assert "not valid JSON" in wrong(check_definitions, plain)[0]


def test_a_type_that_no_vendor_has_is_a_warning(tmp_path):
    (tmp_path / "qrmi_config.json").write_text(json.dumps(QPUS).replace("pasqal-cloud", "pasqal"))

    (found,) = wrong(check_definitions, reading(tmp_path))
    assert "QPU 'a': no installed vendor has type 'pasqal'; installed are: alice-bob" in found


# Modes


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(0o600, None), (0o400, None), (0o640, "warning"), (0o644, "error"), (0o602, "error")],
)
def test_others_must_not_read_the_credentials(tmp_path, mode, expected):
    (tmp_path / "qrmi_config.json").chmod(mode)

    found = wrong(check_modes, reading(tmp_path))

    assert [each.split()[0] for each in found] == ([expected] if expected else [])
    assert all(f"mode {mode:04o}" in each for each in found)
    assert all("→ Run `chmod 600 " in each for each in found)


def test_others_must_not_change_the_policy(tmp_path):
    policy = tmp_path / "site.toml"
    policy.chmod(0o666)
    (first,) = wrong(check_modes, reading(tmp_path))
    policy.chmod(0o644)
    tmp_path.chmod(0o777)
    others = wrong(check_modes, reading(tmp_path))
    tmp_path.chmod(0o1777)

    assert f"{policy} has mode 0666: every user can change it. → Run `chmod o-w" in first
    assert all(f"{tmp_path} has mode 0777" in each for each in others)
    assert wrong(check_modes, reading(tmp_path)) == []
    tmp_path.chmod(0o700)


def test_a_file_of_another_user_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    os.chown(tmp_path / "site.toml", os.geteuid(), -1)

    found = wrong(check_modes, reading(tmp_path))

    if os.geteuid() == 0:  # what is root's is everybody's
        assert found == []
    else:
        assert f"belongs to user {ME!r}" in found[0]


# Users, groups, folders


def test_users_and_groups_that_do_not_exist_are_errors(tmp_path):
    text = f'[qpus.a]\npartition = "q"\nusers = ["{ME}", "no-one"]\ngroups = ["no-group"]\n'
    path = tmp_path / "site.toml"

    assert wrong(check_users, reading(tmp_path, text)) == [
        f"error access: QPU 'a': unknown user 'no-one' ({path}:3). → Correct it, or add the user.",
        f"error access: QPU 'a': unknown group 'no-group' ({path}:4). → Correct it, or add the "
        "group.",
    ]


def test_the_sites_folders_must_exist_and_be_safe(tmp_path):
    records, state = tmp_path / "records", tmp_path / "root"
    text = f'[site]\nrecords = "{records}"\nstate = "{state}"\n[qpus.a]\n'

    assert (
        "there is no such folder. → Create it" in wrong(check_folders, reading(tmp_path, text))[0]
    )
    records.mkdir()
    records.chmod(0o777)
    state.mkdir()
    state.chmod(0o777)
    assert [
        each.rpartition(" → ")[2] for each in wrong(check_folders, reading(tmp_path, text))
    ] == [
        f"Run `chmod +t {records}`.",
        f"Run `chown root: {state}; chmod go-w {state}`, or correct `state` in "
        f"{tmp_path / 'site.toml'}.",
    ]
    records.chmod(0o1777)
    state.chmod(0o755)
    assert wrong(check_folders, reading(tmp_path, text)) == []


def test_messages_about_qpus_must_be_understood_and_name_qpus_of_the_site(tmp_path):
    folder = tmp_path / "state/maintenance"
    folder.mkdir(parents=True)
    by_hand, by_state = folder / "by-hand.json", folder / "by-state.json"
    site = f'[site]\nstate = "{tmp_path}/state"\n[qpus.a]\n'

    assert wrong(check_notices, reading(tmp_path, site)) == []
    by_hand.write_text('{"a": {"since": 1e30}, "A": {}}')
    by_state.write_text("{")

    assert wrong(check_notices, reading(tmp_path, site)) == [
        f"warning notices: {by_hand}: QPU 'A' is not one of {tmp_path}/site.toml. → Correct the "
        "name, or remove the entry.",
        f"error notices: {by_state}: not a JSON object: QPUs that are away count as available. → "
        "Correct it, or remove it.",
    ]


@pytest.mark.parametrize("mode", [0o775, 0o777, 0o1777])
def test_a_folder_that_the_prolog_refuses_is_an_error(tmp_path, mode):
    state = tmp_path / "root"
    state.mkdir()
    state.chmod(mode)

    (found,) = wrong(check_folders, reading(tmp_path, f'[site]\nstate = "{state}"\n[qpus.a]\n'))
    assert f"has mode {mode:04o}: root's programs refuse it" in found

    state.rmdir()
    state.symlink_to(tmp_path)
    (found,) = wrong(check_folders, reading(tmp_path, f'[site]\nstate = "{state}"\n[qpus.a]\n'))
    assert "is a link: root's programs refuse it" in found


# This host


def with_kill_wait(folder: Path, seconds: float | None, text: str = "[qpus.a]\n") -> SiteReading:
    """A site whose scheduler has this KillWait."""
    return reading(folder, text, examination=Examination(findings=(), kill_wait=seconds))


def test_kill_wait_is_compared_with_what_a_release_takes(tmp_path, monkeypatch):
    path = tmp_path / "site.toml"

    assert wrong(check_kill_wait, with_kill_wait(tmp_path, 30)) == []
    assert wrong(check_kill_wait, with_kill_wait(tmp_path, None)) == []
    assert wrong(check_kill_wait, with_kill_wait(tmp_path, 10)) == [
        "warning kill_wait: KillWait is 10 s: a job that is ended has 5 s to release its QPU; a "
        "vendor that is slower leaves a session open. → Set `KillWait=30` or more in slurm.conf."
    ]
    longer = with_kill_wait(tmp_path, 30, "[qpus.a]\nkill_wait = 60\n")
    assert wrong(check_kill_wait, longer) == [
        f"error kill_wait: QPU 'a': kill_wait = 60 ({path}:2), but the scheduler sends SIGKILL "
        "after 30 s. → Set `KillWait=60` in slurm.conf, or correct kill_wait."
    ]
    monkeypatch.setenv("QPU_KILL_WAIT", "45")
    assert wrong(check_kill_wait, with_kill_wait(tmp_path, 30)) == [
        "error kill_wait: $QPU_KILL_WAIT=45, but the scheduler sends SIGKILL after 30 s. → Unset "
        "$QPU_KILL_WAIT, or set it to 30."
    ]
    monkeypatch.setenv("QPU_KILL_WAIT", "soon")
    assert (
        "must be a non-negative number" in wrong(check_kill_wait, with_kill_wait(tmp_path, 30))[0]
    )


def test_the_state_folder_is_created_and_locked(tmp_path):
    found = list(check_state_folder(reading(tmp_path)))

    assert [each.severity for each in found] == [Severity.OK]
    assert "can be written and locked" in found[0].problem
    assert list((tmp_path / "state").iterdir()) == []


def test_a_state_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "state").write_text("a file")

    (found,) = wrong(check_state_folder, reading(tmp_path))
    assert found.startswith(f"error state: {tmp_path}/state: File exists. → Set $QPU_STATE to")


def test_a_state_folder_that_others_can_change_is_an_error(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o775)

    (found,) = wrong(check_state_folder, reading(tmp_path))
    assert "has mode 0775: others can replace your journal" in found


@pytest.mark.parametrize("number", [38, 95])  # ENOSYS (Lustre without flock), EOPNOTSUPP
def test_a_file_system_without_locks_is_an_error(tmp_path, monkeypatch, number):
    def refuse(path: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(doctor_host, "lock_file", refuse)

    (found,) = wrong(check_state_folder, reading(tmp_path))
    assert f"it has no locks ({os.strerror(number)}). → Set $QPU_STATE" in found


def test_a_lock_that_keeps_nobody_out_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_host, "lock_file", lambda path: path.open("rb"))

    (found,) = wrong(check_state_folder, reading(tmp_path))
    assert "a lock that one process holds is granted to another." in found


MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /home rw,relatime shared:2 - nfs4 server:/home rw,vers=4.2,local_lock=none
31 22 0:41 / /scratch rw - lustre mgs@tcp:/s rw,flock,lazystatfs
32 22 0:42 / /nolocks rw - lustre mgs@tcp:/s rw,localflock
33 22 0:43 / /old\040home rw - nfs server:/old rw,vers=3,local_lock=all
"""


@pytest.mark.parametrize(
    ("path", "type_"),
    [("/etc/x", "ext4"), ("/home/ada", "nfs4"), ("/homes", "ext4"), ("/old home/ada", "nfs")],
)
def test_the_file_system_of_a_folder_is_found(path, type_):
    assert mount_of(Path(path), MOUNTS).type == type_


@pytest.mark.parametrize(
    ("path", "hosts", "expected"),
    [
        ("/home", {"n1", "n2"}, None),
        ("/scratch", {"n1", "n2"}, None),
        ("/nolocks", {"n1"}, "mounted with 'localflock'"),
        ("/old home", {"n1"}, "mounted with 'local_lock=all'"),
        ("/var", {"n1"}, "is on ext4 of this host; jobs run on n1, too"),
        ("/var", {"localhost"}, None),
    ],
)
def test_a_state_folder_must_be_shared_by_all_hosts(tmp_path, monkeypatch, path, hosts, expected):
    mount = mount_of(Path(path), MOUNTS)
    monkeypatch.setattr(doctor_host, "mount_of", lambda _: mount)
    examination = Examination(findings=(), hosts=frozenset(hosts))

    found = wrong(check_state_folder, reading(tmp_path, examination=examination))

    assert len(found) == (expected is not None)
    assert all(str(expected) in each for each in found)


def test_packages_out_of_the_tested_range_are_warnings(tmp_path, monkeypatch):
    from importlib import metadata

    assert wrong(check_versions, reading(tmp_path)) == []
    real = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "0.27.0" if name == "qrmi" else real(name)
    )
    (found,) = wrong(check_versions, reading(tmp_path))
    assert found.startswith("warning versions: qrmi 0.27.0: qrmi-workflows was tested with ")


@pytest.mark.parametrize(
    ("version", "ranges", "is_in"),
    [
        ("1.10.0", ">=1.9,<2", True),
        ("2.0", ">=1.9,<2", False),
        ("2", ">=2.0.0", True),
        ("2026.10.26", ">=2026.10.26,<2026.11", True),
        ("0.26.4.post1", ">=0.26.4", True),
        ("1.0", "", True),
    ],
)
def test_versions_are_compared_by_their_numbers(version, ranges, is_in):
    assert doctor_host._is_in(version, ranges) is is_in


def test_a_plugin_that_cannot_be_loaded_is_an_error(tmp_path, monkeypatch):
    broken = plugins.Plugin(name="broken", value="no_such_module:VENDOR")
    monkeypatch.setattr(doctor_host, "find_plugins", lambda group: {"broken": broken})

    found = wrong(check_plugins, reading(tmp_path))
    assert "vendor 'broken' (no_such_module:VENDOR) cannot be loaded: No module" in found[0]


# All together


def test_a_scheduler_that_does_not_answer_is_an_error_and_the_rest_is_examined(monkeypatch):
    found = read_site()

    assert found.examination is None
    assert "Unable to contact slurm controller" in str(found.scheduler_error)
    assert found.site is not None


def test_an_unknown_scheduler_is_an_error_with_its_place(tmp_path):
    write(tmp_path, 'scheduler = "pbs"\n[qpus.a]\n')

    found = read_site()
    assert "unknown scheduler 'pbs'" in str(found.scheduler_error)
    assert f"{tmp_path}/site.toml:1" in str(found.scheduler_error)


def test_no_finding_holds_a_credential(tmp_path, monkeypatch):
    """The vendor is not asked: nothing may be sent from a unit test."""
    quick = [check for check in CHECKS if check.__name__ not in {"check_reachability"}]
    monkeypatch.setattr("qrmi_workflows.site.doctor.CHECKS", tuple(quick))
    (tmp_path / "qrmi_config.json").chmod(0o644)

    found = examine_site()

    assert {Severity.ERROR} < {each.severity for each in found}
    assert all(isinstance(each, Finding) and "secret-1" not in str(each) for each in found)
    assert stat.S_IMODE((tmp_path / "qrmi_config.json").stat().st_mode) == 0o644


def test_budgets_and_their_ledger_must_be_usable(tmp_path):
    folder = tmp_path / "budgets"
    text = f'[site]\nbudgets = "{folder}"\n[qpus.a]\n'
    Ledger(folder).prepare(for_all=True)
    assert "no budget is set" in next(check_budgets(reading(tmp_path, text))).problem
    limit = Limit(scope="user", name="nobody-here", unit="shots", amount=1)
    write_limits(folder, [limit])

    (unknown,) = wrong(check_budgets, reading(tmp_path, text))
    assert "a budget of user 'nobody-here': there is no such user" in unknown
    assert "remove the budget: `qpu budget set user:nobody-here none --per total`." in unknown
    (folder / "lock").chmod(0o600)
    (folder / "ledger").chmod(0o755)
    _, ledger, lock = wrong(check_budgets, reading(tmp_path, text))
    assert "ledger has mode 0755, not 1777: users cannot spend" in ledger
    assert "lock has mode 0600, not 0666" in lock
    (folder / "limits.toml").chmod(0o666)
    (refused,) = wrong(check_budgets, reading(tmp_path, text))
    assert "only root can write" in refused


def test_a_budget_in_seconds_asks_how_long_tasks_take_of_vendors_that_do_not_say(tmp_path):
    folder = tmp_path / "budgets"
    text = f'[site]\nbudgets = "{folder}"\n[qpus.a]\n'
    Ledger(folder).prepare(for_all=True)
    limit = Limit(scope="user", name="*", unit="seconds", amount=1)
    write_limits(folder, [limit])

    (unknown,) = wrong(check_budgets, reading(tmp_path, text))
    assert "QPU 'a': its vendor publishes no durations, so until 3 tasks of a user were" in unknown
    assert f"Set `task_seconds` for it in {tmp_path}/site.toml" in unknown
    assert wrong(check_budgets, reading(tmp_path, f"{text}task_seconds = 60\n")) == []
    write_limits(folder, [replace(limit, qpu="b"), replace(limit, unit="shots")])
    assert wrong(check_budgets, reading(tmp_path, text)) == []


def test_a_folder_that_may_not_be_entered_is_a_finding_and_the_rest_is_examined(monkeypatch):
    """As for a user whom an administrator's folder keeps out."""

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("qrmi_workflows.site.doctor.CHECKS", (check_modes, check_plugins))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", refuse)
        patch.setattr(Path, "read_text", refuse)
        found = examine_site()

    assert "Permission denied" in found[0].problem
    assert {each.check for each in found} == {"modes", "plugins"}

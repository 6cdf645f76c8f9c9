"""A sandbox's accounting: configuration, and what must be installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from qrmi_workflows.errors import SandboxError
from qrmi_workflows.sandbox import accounting
from qrmi_workflows.sandbox.accounting import (
    create_database,
    database_argv,
    find_database_programs,
    render_accounting,
    render_slurmdbd_conf,
)
from qrmi_workflows.sandbox.layout import Layout

RUNTIME = Path("/run/qpu-x")


def test_the_gres_and_the_licence_of_each_qpu_are_in_the_accounts():
    text = render_accounting(4711, RUNTIME, ("ibm_fez", "FRESNEL"))

    lines = text.splitlines()
    assert "AccountingStorageType=accounting_storage/slurmdbd" in lines
    assert "AccountingStoragePort=4711" in lines
    assert "AccountingStoragePass=/run/qpu-x/munge.socket" in lines
    assert (
        "AccountingStorageTRES=gres/qpu,gres/qpu:ibm_fez,license/qpu_ibm_fez,gres/qpu:FRESNEL,"
        "license/qpu_FRESNEL"
    ) in lines


def test_slurmdbd_uses_the_private_munged_and_no_password():
    text = render_slurmdbd_conf(4711, RUNTIME)

    assert "AuthInfo=socket=/run/qpu-x/munge.socket" in text
    assert "DbdPort=4711" in text
    assert "StoragePass" not in text


def programs_in(folder: Path, *names: str, script: str = "exit 0") -> None:
    for name in names:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The only folder on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(accounting, "SBIN_DIRECTORIES", ())
    return tmp_path


def test_missing_programs_are_named_with_the_remedy(folder):
    programs_in(folder, "mariadbd")

    with pytest.raises(SandboxError, match=r"mariadb-install-db, slurmdbd not found on PATH: .*"):
        find_database_programs()


def test_the_database_is_created_once_and_whole(folder):
    """A creation that failed, or was killed, is done again."""
    layout = Layout(folder / "sandbox")
    layout.directory.mkdir()
    names = ("mariadbd", "mariadb-install-db", "slurmdbd")
    programs_in(folder, *names, script="echo the disk is full >&2; exit 1")
    with pytest.raises(SandboxError, match=r"exit status 1: the disk is full Fix this"):
        create_database(layout, find_database_programs())
    assert not layout.database.exists()

    programs_in(folder, *names)
    for _ in range(2):
        create_database(layout, find_database_programs())

    assert layout.database.stat().st_mode & 0o777 == 0o700
    argv = database_argv(layout, find_database_programs(), RUNTIME)
    assert f"--datadir={layout.database}" in argv
    assert "--skip-networking" in argv

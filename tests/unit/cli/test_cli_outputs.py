"""Files that a command could not write are refused before it does any work."""

from __future__ import annotations

import os

import pytest

from qrmi_workflows.cli.outputs import require_writable
from qrmi_workflows.errors import RequestError


def test_a_new_file_and_an_existing_one_can_be_written(tmp_path):
    output, payload = tmp_path / "result.json", tmp_path / "payload.json"
    payload.touch()
    require_writable(output, source=payload)
    output.write_text("old")

    require_writable(output, source=payload)

    assert output.read_text() == "old"


def test_a_device_a_fifo_and_a_folder_are_refused(tmp_path):
    """An atomic write would replace them by a regular file."""
    (tmp_path / "null").symlink_to("/dev/null")
    os.mkfifo(tmp_path / "fifo")

    for name in ("null", "fifo", "."):
        with pytest.raises(RequestError, match=r"cannot be written\. Name a regular file"):
            require_writable(tmp_path / name)


def test_a_file_in_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(RequestError, match="cannot be written"):
        require_writable(tmp_path / "absent" / "result.json")


def test_the_payloads_own_file_is_refused_under_any_name(tmp_path):
    payload, link = tmp_path / "payload.json", tmp_path / "link.json"
    payload.write_text("{}")
    link.symlink_to(payload)

    for output in (payload, link):
        with pytest.raises(RequestError, match="is the payload's own file"):
            require_writable(output, source=payload)

"""Jobs that go on with another QPU: their options, and what they leave for the executor."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qrmi_workflows.errors import RequestError
from snakemake_executor_plugin_slurm_qpu.fallbacks import Fallbacks, fallback_of


class Job:
    """A job, or a group of jobs, with a fallback."""

    def __init__(self, *fallbacks: str | None) -> None:
        self._members = [
            SimpleNamespace(resources={"qpu_fallback": each}, is_group=lambda: False)
            for each in fallbacks
        ]

    def is_group(self) -> bool:
        return True

    @property
    def jobs(self) -> list[Any]:
        return self._members


def file_of(options: list[str]) -> Path:
    return Path(options[options.index("--move-file") + 1])


def test_a_job_without_a_fallback_has_no_options(tmp_path):
    assert Fallbacks().options(Job(None), tmp_path, is_in_stage=False) == []


def test_the_rules_of_a_group_share_one_fallback():
    assert fallback_of(Job(None, "ibm_torino|emulated:fez")) == ("ibm_torino", "emulated:fez")
    with pytest.raises(RequestError, match="'ibm_fez' and 'ibm_torino'; a group is one job"):
        fallback_of(Job("ibm_fez", "ibm_torino"))


def test_a_job_that_has_moved_goes_on_where_it_says(tmp_path):
    fallbacks, job = Fallbacks(), Job("ibm_torino|emulated:fez")
    options = fallbacks.options(job, tmp_path, is_in_stage=False)
    assert options[:2] == ["--fallback", "ibm_torino,emulated:fez"]
    assert fallbacks.qpu_of(job) is None
    said = {"left": ["ibm_fez"], "qpu": "ibm_torino", "rest": ["emulated:fez"], "reason": "off"}
    file_of(options).write_text(json.dumps(said))

    moved = fallbacks.take(job)

    assert moved is not None
    assert fallbacks.qpu_of(job) == moved.qpu == "ibm_torino"
    again = fallbacks.options(job, tmp_path, is_in_stage=False)
    assert again[:4] == ["--fallback", "emulated:fez", "--moved-from", "ibm_fez"]
    assert fallbacks.take(job) is None, "a job moves once"
    fallbacks.forget(job)
    assert fallbacks.qpu_of(job) is None


def test_a_job_of_a_stage_moves_only_by_itself(tmp_path):
    options = Fallbacks().options(Job("ibm_torino"), tmp_path, is_in_stage=True)

    assert options == ["--fallback", "ibm_torino"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"left": [], "qpu": "q", "rest": [], "reason": ""}']
)
def test_what_cannot_be_read_is_no_move(tmp_path, text):
    fallbacks, job = Fallbacks(), Job("ibm_torino")
    file_of(fallbacks.options(job, tmp_path, is_in_stage=False)).write_text(text)

    assert fallbacks.take(job) is None

"""The names derived from a job: unique where Slurm or the journal finds the job by them."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qrmi_workflows.schedulers.slurm import Slurm
from qrmi_workflows.schedulers.submission import JobMark
from snakemake_executor_plugin_slurm_qpu.job_names import (
    cluster_of,
    job_comment,
    log_folder_name,
    log_root,
    marker_name,
    output_pattern,
    step_name,
)

LISTED = """\
41|41|RUNNING|0|None|rule_quantum_wildcards_a_job_1-1|run|
42|42|RUNNING|0|None|rule_quantum_wildcards_a_job_1-2|run|
43|43|RUNNING|0|None|(null)|run|
44|44|RUNNING|0|None|rule_quantum_wildcards_a_job_1-2|another run|
""".replace("|", "\x1f")


@dataclass
class Job:
    """A Snakemake job, as far as its names depend on it."""

    name: str = "quantum"
    jobid: int | str = 1
    attempt: int = 1
    wildcards: list[str] = field(default_factory=list)
    resources: dict[str, str] = field(default_factory=dict)
    group: bool = False

    def is_group(self) -> bool:
        return self.group

    def uuid(self) -> str:
        return f"uuid of {self.name} {','.join(self.wildcards)}"


def test_the_queue_is_searched_in_the_cluster_that_the_job_names():
    argv = ["squeue", "--me", "--noheader", "--states=all", "--name=run"]

    assert Slurm().status_argv(name="run")[:-1] == argv
    other = Slurm(clusters=cluster_of(Job(resources={"slurm_cluster": "other"})))
    assert other.status_argv(name="run")[:-1] == [*argv, "--clusters=other"]


@pytest.mark.parametrize("name", ["cluster", "clusters", "slurm_cluster"])
def test_a_cluster_may_be_given_by_each_resource_of_the_stock_executor(name):
    assert cluster_of(Job(resources={name: "other"})) == "other"
    assert cluster_of(Job()) is None


def test_the_attempt_that_was_submitted_is_found_and_no_other():
    comment = job_comment(Job(wildcards=["a"], attempt=2))
    listed = Slurm().parse_status(LISTED)

    found = [i for i, s in listed.items() if JobMark(name="run", comment=comment).matches(s)]
    assert found == ["42"]
    shorter = JobMark(name="run", comment=comment.removesuffix("-2"))
    assert not any(shorter.matches(status) for status in listed.values())


def test_a_comment_survives_the_lines_of_squeue():
    comment = job_comment(Job(wildcards=["a|b", "two\nlines", "it's"]))

    assert comment == "rule_quantum_wildcards_a_b_two_lines_it_s_job_1-1"


def test_each_attempt_of_a_job_has_its_own_marker():
    assert marker_name(Job(jobid=7, attempt=2)) == "7-2"


def test_a_step_has_the_same_name_in_every_run_and_attempt():
    job = Job(wildcards=["a"])

    assert step_name(job) == f"snakemake quantum uuid of quantum a in {Path.cwd()}"
    assert step_name(Job(wildcards=["a"], jobid=5, attempt=3)) == step_name(job)
    assert step_name(Job(wildcards=["b"])) != step_name(job)


def test_the_step_of_a_group_is_named_after_the_groups_own_uuid():
    group = Job(name="g_quantum", jobid="0f0c", group=True)

    assert step_name(group) == f"snakemake g_quantum 0f0c in {Path.cwd()}"


def test_a_log_folder_has_no_character_that_sbatch_replaces_and_a_length_that_is_allowed():
    assert log_folder_name(Job(wildcards=["50%j", "a\\b", "c\nd"])) == "50_j_a_b_c_d"
    assert len(log_folder_name(Job(wildcards=["x" * 300]))) == 100
    assert log_folder_name(Job(wildcards=["\u4e2d" * 300])) == "\u4e2d" * 33


def test_a_comment_is_never_longer_than_slurm_accepts_and_still_unique():
    first, second = (job_comment(Job(wildcards=["\u4e2d" * 2000], jobid=i)) for i in (1, 2))

    assert first != second
    assert len(first.encode()) < 1024


@pytest.mark.parametrize(
    ("folder", "pattern"),
    [("/w/logs/a", "/w/logs/a/%j.log"), ("/w/10%j/5%%", "/w/10%%j/5%%%%/%j.log")],
)
def test_sbatch_gets_the_percent_signs_of_a_folder_twice(folder, pattern):
    assert output_pattern(Path(folder)) == pattern


def test_the_stock_executor_gets_a_log_folder_that_it_does_not_refuse(tmp_path, monkeypatch):
    for name in ("plain", "10%j"):
        workdir = tmp_path / name
        workdir.mkdir()
        monkeypatch.chdir(workdir)
        root = log_root(workdir / "logs", str(workdir))
        assert root == (workdir / "logs" if name == "plain" else Path("logs"))
        # Another folder than the one that jobs are started in: the path must stay absolute.
        assert log_root(workdir / "logs", str(tmp_path)) == workdir / "logs"

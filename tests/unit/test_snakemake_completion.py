"""When the executor asks Slurm about a job that left a marker, and how it reads the answer."""

from dataclasses import dataclass, field

import pytest

from snakemake_executor_plugin_slurm_qpu.completion import (
    Verdict,
    can_go_on,
    judge,
    parse_states,
    state_command,
)

RECORDED = """\
15                  COMPLETED           0                   
16                  RUNNING             0                   
17                  FAILED              768                 
"""  # noqa: W291 - as squeue of Slurm 22.05 prints it


def test_one_question_asks_for_all_jobs():
    assert state_command({"17", "15"})[-2:] == [
        "--Format=JobID,State,exit_code",
        "--jobs=15,17",
    ]
    assert parse_states(RECORDED) == {
        "15": ("COMPLETED", "0"),
        "16": ("RUNNING", "0"),
        "17": ("FAILED", "768"),
    }


@pytest.mark.parametrize(
    ("said", "status", "verdict"),
    [
        (("COMPLETED", "0"), "0", Verdict.SUCCEEDED),
        (("COMPLETED", "0"), "", Verdict.SUCCEEDED),  # the marker of a job without a QPU
        (("COMPLETING", "0"), "0", Verdict.SUCCEEDED),  # a long epilog
        (("COMPLETING", "768"), "3", Verdict.OPEN),  # not yet FAILED, or CANCELLED
        (("RUNNING", "0"), "0", Verdict.OPEN),
        (("PENDING", "0"), "0", Verdict.OPEN),  # requeued
        (("FAILED", "768"), "3", Verdict.FAILED),
        (("CANCELLED", "0"), "0", Verdict.FAILED),
        (("NODE_FAIL", "0"), "0", Verdict.FAILED),
        (("COMPLETED", "0"), "3", Verdict.FAILED),
        (("of a later Slurm", "0"), "0", Verdict.FAILED),
        (None, "0", Verdict.SUCCEEDED),
        (None, "3", Verdict.FAILED),
    ],
)
def test_slurm_has_the_last_word_and_the_marker_where_slurm_has_forgotten(said, status, verdict):
    assert judge(said, status) is verdict


@dataclass(eq=False)
class Job:
    """A job as Snakemake's graph has them."""

    needs: tuple["Job", ...] = ()
    is_checkpoint: bool = False
    jobs: tuple["Job", ...] = ()

    def is_group(self) -> bool:
        return bool(self.jobs)


@dataclass
class Graph:
    """The part of Snakemake's graph of jobs that is asked."""

    jobs: list[Job]
    over: set[Job] = field(default_factory=set)

    @property
    def depending(self):
        return {job: [other for other in self.jobs if job in other.needs] for job in self.jobs}

    def job_dependencies(self, job):
        return job.needs

    def finished(self, job):
        return job in self.over

    def needrun(self, job):
        return True


def test_a_chain_goes_on_by_each_job():
    first, others = Job(), [Job(), Job()]
    graph = Graph([first, *others, Job(needs=(first,))])

    assert can_go_on(graph, [first], others)


def test_a_fan_out_goes_on_by_its_last_job():
    fan = [Job() for _ in range(8)]
    graph = Graph([*fan, Job(needs=tuple(fan))])

    assert not can_go_on(graph, fan[:1], fan[1:])
    assert not can_go_on(graph, fan[:7], fan[7:])
    assert can_go_on(graph, fan, [])


def test_jobs_that_are_over_count():
    a, b, running = Job(), Job(), Job()
    graph = Graph([a, b, running, Job(needs=(a, b))], over={b})

    assert can_go_on(graph, [a], [running])


def test_a_group_counts_with_all_of_its_jobs():
    members, running = (Job(), Job()), Job()
    graph = Graph([*members, running, Job(needs=members)])

    assert can_go_on(graph, [Job(jobs=members)], [running])


def test_nobody_knows_what_depends_on_a_checkpoint():
    checkpoint, running = Job(is_checkpoint=True), Job()

    assert can_go_on(Graph([checkpoint, running]), [checkpoint], [running])


def test_a_job_that_nothing_depends_on_can_wait():
    last, running = Job(), Job()

    assert not can_go_on(Graph([last, running]), [last], [running])

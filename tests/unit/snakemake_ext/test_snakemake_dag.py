"""Whether Snakemake could start another job if it knew that some jobs have ended."""

from dataclasses import dataclass, field
from types import SimpleNamespace

from snakemake_executor_plugin_slurm_qpu.dag import (
    jobs_in,
    jobs_still_to_run,
    rounds_of,
    unblocks_jobs,
)


@dataclass(eq=False)
class Job:
    """A job as in Snakemake's DAG."""

    needs: tuple["Job", ...] = ()
    is_checkpoint: bool = False
    jobs: tuple["Job", ...] = ()

    def is_group(self) -> bool:
        return bool(self.jobs)


@dataclass
class DAG:
    """The part of Snakemake's DAG that the executor uses."""

    jobs: list[Job]
    done: set[Job] = field(default_factory=set)

    @property
    def depending(self):
        return {job: [other for other in self.jobs if job in other.needs] for job in self.jobs}

    def job_dependencies(self, job):
        return job.needs

    def finished(self, job):
        return job in self.done

    def needrun(self, job):
        return True

    def needrun_jobs(self):
        return iter([job for job in self.jobs if job not in self.done])


def test_each_job_of_a_chain_unblocks_the_next():
    first, others = Job(), [Job(), Job()]
    dag = DAG([first, *others, Job(needs=(first,))])

    assert unblocks_jobs(dag, [first], others)


def test_only_the_last_job_of_a_fan_out_unblocks_the_next():
    fan = [Job() for _ in range(8)]
    dag = DAG([*fan, Job(needs=tuple(fan))])

    assert not unblocks_jobs(dag, fan[:1], fan[1:])
    assert not unblocks_jobs(dag, fan[:7], fan[7:])
    assert unblocks_jobs(dag, fan, [])


def test_jobs_that_snakemake_knows_to_be_finished_count():
    a, b, running = Job(), Job(), Job()
    dag = DAG([a, b, running, Job(needs=(a, b))], done={b})

    assert unblocks_jobs(dag, [a], [running])


def test_a_group_counts_with_all_of_its_jobs():
    members, running = (Job(), Job()), Job()
    group = Job(jobs=members)
    dag = DAG([*members, running, Job(needs=members)])

    assert unblocks_jobs(dag, [group], [running])
    assert list(jobs_in(group)) == list(members)
    assert list(jobs_in(running)) == [running]


def test_a_checkpoint_may_unblock_jobs_that_are_not_known_yet():
    checkpoint, running = Job(is_checkpoint=True), Job()

    assert unblocks_jobs(DAG([checkpoint, running]), [checkpoint], [running])


def test_a_job_that_nothing_depends_on_unblocks_nothing():
    last, running = Job(), Job()

    assert not unblocks_jobs(DAG([last, running]), [last], [running])


def test_a_loop_has_a_round_for_each_answer_and_a_fan_out_has_one():
    first = Job()
    update = Job(needs=(first,))
    second = Job(needs=(update,))
    fan = [Job() for _ in range(3)]
    dag = DAG([second, first, update, *fan])

    assert rounds_of(dag, {first, second}) == [[first], [second]]
    assert rounds_of(dag, set(fan)) == [fan]
    assert [len(each) for each in rounds_of(dag, {first, second, *fan})] == [4, 1]


def test_a_long_chain_is_no_problem():
    chain = [Job()]
    for _ in range(3000):
        chain.append(Job(needs=(chain[-1],)))

    assert len(rounds_of(DAG(chain), set(chain))) == 3001


def test_finished_jobs_do_not_count():
    first = Job()
    second = Job(needs=(first,))

    assert rounds_of(DAG([first, second], done={first}), {second}) == [[second]]


def scheduler(**state):
    """Return a scheduler as Snakemake's, on which nothing has failed."""
    usual = {"failed": set(), "running": set(), "keepgoing": False, "_user_kill": None}
    return SimpleNamespace(**usual | state)


def test_what_depends_on_a_failed_job_will_not_run():
    failed, running, other = Job(), Job(), Job()
    dag = DAG([failed, running, other, Job(needs=(Job(needs=(failed,)), failed))])
    child = Job(needs=(dag.jobs[-1],))
    dag.jobs.append(child)

    kept = jobs_still_to_run(dag, scheduler(failed={failed}, running={running}, keepgoing=True))
    assert kept == [running, other]
    assert jobs_still_to_run(dag, scheduler(failed={failed}, running={running})) == [running]


def test_after_sigterm_only_the_running_jobs_matter():
    running, other = Job(), Job()
    stopped = scheduler(running={Job(jobs=(running,))}, _user_kill="graceful")

    assert jobs_still_to_run(DAG([running, other]), stopped) == [running]
    assert jobs_still_to_run(DAG([running, other]), scheduler()) == [running, other]

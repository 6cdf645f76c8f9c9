"""Whether Snakemake could start another job if it knew that some jobs have ended."""

from dataclasses import dataclass, field

from snakemake_executor_plugin_slurm_qpu.dag import jobs_in, unblocks_jobs


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

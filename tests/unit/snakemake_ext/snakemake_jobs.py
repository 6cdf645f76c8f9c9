"""Jobs and their graph, as far as the plugin reads them from Snakemake's own."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from snakemake.iocontainers import ResourceList
from snakemake.resources import Resources

__all__ = ["DAG", "Job"]


@dataclass(eq=False)
class Job:
    """A job as in Snakemake's DAG."""

    name: str
    stated: dict[str, Any]
    defaults: dict[str, Any] = field(default_factory=dict)
    needs: tuple["Job", ...] = ()
    members: tuple["Job", ...] = ()
    is_local: bool = False
    is_norun: bool = False
    is_checkpoint: bool = False
    is_shell: bool = True
    groupid: str = "g"
    attempt: int = 1
    threads: int = 1
    input: tuple[str, ...] = ()
    _resources: Any = None
    _params: Any = None
    _non_derived_params: Any = None

    def __str__(self) -> str:
        return self.name

    def is_group(self) -> bool:
        return bool(self.members)

    @property
    def jobs(self):
        return self.members

    @property
    def rule(self):
        resources = Resources.from_mapping(self.defaults | self.stated)
        settings = SimpleNamespace(_parsed_overwrite_resources={})
        return SimpleNamespace(
            name=self.name,
            resources=resources,
            ruleinfo=SimpleNamespace(resources=((), self.stated)),
            workflow=SimpleNamespace(resource_settings=settings),
            apply_input_function=lambda function, *args, **others: (function("wildcards"), False),
        )

    @property
    def resources(self):
        if self._resources is None:
            values = {
                name: value("wildcards") if callable(value) else value
                for name, value in (self.defaults | self.stated).items()
            }
            self._resources = ResourceList(fromdict=values)
        return self._resources

    def retry(self):
        """Begin the next attempt, as `Job.attempt` of Snakemake does."""
        self.attempt += 1
        self._resources = None

    def uuid(self):
        return self.name

    @property
    def jobid(self):
        return self.name


@dataclass
class DAG:
    """The part of Snakemake's DAG that the executor uses."""

    all: list[Job]

    def needrun_jobs(self):
        members = {member for job in self.all for member in job.members}
        return iter([*members, *(job for job in self.all if not job.members)])

    def get_job_group(self, job):
        return next((group for group in self.all if job in group.members), None)

    def job_dependencies(self, job):
        return job.needs

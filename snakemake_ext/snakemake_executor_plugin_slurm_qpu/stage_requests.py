"""From the resources of rules to the stages of a workflow.

Rules with the same `qpu_stage` share one lease. Those with `qpu` use the QPU; those without it are
classical jobs that only make sense while the QPU is at hand. `qpu_stage=""` means no stage, so that
a profile can set one for all rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qrmi_workflows.errors import QPUError, RequestError
from qrmi_workflows.lease.stage import Stage, find_stage
from qrmi_workflows.lease.stage_folder import StageFolder, require_stage_name
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.slurm_options import refuse_options
from qrmi_workflows.stages.guard import settle_stages
from qrmi_workflows.stages.opening import MODES, Mode
from snakemake_executor_plugin_slurm_qpu.dag import jobs_in, rounds_of
from snakemake_executor_plugin_slurm_qpu.errors import QPURequestError
from snakemake_executor_plugin_slurm_qpu.job_names import cluster_of
from snakemake_executor_plugin_slurm_qpu.qpu_requests import TO_BE_DETERMINED, QPURequests
from snakemake_executor_plugin_slurm_qpu.stated_resources import stated_resources
from snakemake_executor_plugin_slurm_qpu.wishes import Wish, find_names, is_emulated_wish

__all__ = ["StagePlan", "StageRequests", "names_unknown_stage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """What a stage is opened with.

    Attributes:
        name: The stage's name.
        request: The QPU, and how many units of it the stage holds.
        mode: The mode of its session; `auto` if its keeper is to choose.
        why: Why this mode.
        job: One of the stage's jobs that use the QPU.
    """

    name: str
    request: QPURequest
    mode: Mode
    why: str
    job: Any


class StageRequests:
    """The stages of one workflow.

    Args:
        requests: The workflow's requests for QPUs.
        mode: The mode of all stages whose rules set none; chosen from the jobs if `auto`.
    """

    def __init__(self, requests: QPURequests, mode: Mode = "auto") -> None:
        if mode not in MODES:
            raise QPURequestError(
                f"--slurm-qpu-stage-mode {mode}: must be one of: {', '.join(MODES)}. Correct it."
            )
        self._requests = requests
        self._mode = mode

    def stage_of(self, job: Any) -> str | None:
        """Return the checked name of the stage of a job or group; `None` if it is in none.

        Raises:
            QPURequestError: The rule names a stage that its job cannot be in.
        """
        members = sorted(jobs_in(job), key=str)
        named = [(member, name) for member in members if (name := _stage_of_member(member))]
        for member in members:
            _refuse_stray_mode(member)
        for member, name in named:
            _check(member, name)
        if job.is_group() and named:
            self._refuse_mixture(job, members, named)
        return named[0][1] if named and not self._is_emulated(job) else None

    def _is_emulated(self, job: Any) -> bool:
        """Return whether a job emulates its QPU itself, and so shares it with no other job."""
        wish = self._requests.wish_if_known(job)
        return wish is not None and is_emulated_wish(wish)

    def _refuse_mixture(
        self, group: Any, members: Iterable[Any], named: Sequence[tuple[Any, str]]
    ) -> None:
        first, name = named[0]
        for member, other in named:
            if other != name:
                raise QPURequestError(
                    f"rule {member.rule.name!r}: qpu_stage={other!r}, but rule "
                    f"{first.rule.name!r} of the same group {group.groupid!r} has "
                    f"qpu_stage={name!r}. A group is one Slurm job and can be in one stage only. "
                    "Put the rules of each stage into a group of their own."
                )
        inside = {member for member, _ in named}
        for member in members:
            if member not in inside and self._requests.uses_qpu(member):
                raise QPURequestError(
                    f"rule {member.rule.name!r}: it asks for qpu={member.resources.qpu} of its "
                    f"own, but rule {first.rule.name!r} of the same group {group.groupid!r} has "
                    f"qpu_stage={name!r}. A group is one Slurm job with one lease. Add "
                    f"qpu_stage={name!r} to its resources, or take it out of the group."
                )

    def check_workflow(self, dag: Any) -> None:
        """Check the stages of all jobs of a workflow before any of them runs.

        Raises:
            QPURequestError: A stage cannot be opened as its rules ask for.
        """
        stages: dict[str, list[Any]] = {}
        for job in {dag.get_job_group(job) or job for job in dag.needrun_jobs()}:
            self._refuse_local(job)
            name = None if names_unknown_stage(job) else self.stage_of(job)
            if name is not None:
                stages.setdefault(name, []).extend(jobs_in(job))
        for name, jobs in stages.items():
            wishes, _ = self._agreed(name, sorted(jobs, key=str))
            for job, wish in wishes.items():
                _refuse_open_stage(name, job, wish)
                break  # the others ask for the same QPU

    def _refuse_local(self, job: Any) -> None:
        if not job.is_local:
            return
        for member in jobs_in(job):
            stated = stated_resources(member.rule).get("qpu_stage")
            if stated and not member.is_norun:
                raise QPURequestError(
                    f"rule {member.rule.name!r} is a localrule and sets "
                    f"qpu_stage={_shown(stated)}: it would run here, without Slurm, and could not "
                    "wait for the stage. Take it out of `localrules`, or remove `qpu_stage`."
                )

    def names_needed(self, jobs: Iterable[Any]) -> set[str] | None:
        """Return the stages that jobs name; `None` if that is not known yet."""
        needed = set()
        for job in jobs:
            # Which jobs follow from a checkpoint is only known after it has run.
            if job.is_checkpoint or names_unknown_stage(job):
                return None
            needed.add(_stage_of_member(job))
        return needed - {None}

    def plan(self, dag: Any, name: str) -> StagePlan | None:
        """Plan a stage from the jobs that have not finished; `None` if none of them uses the QPU.

        Raises:
            QPURequestError: Its rules disagree about the QPU or the mode.
            LeaseError: No QPU that fits can be chosen now; `retryable` is true.
        """
        known = [job for job in dag.needrun_jobs() if not names_unknown_stage(job)]
        jobs = sorted((job for job in known if _stage_of_member(job) == name), key=str)
        wishes, mode = self._agreed(name, jobs)
        if not wishes:
            return None
        opened = _find_open(name)
        qpu = None if opened is None else opened.qpu
        requests = self._requests.request_of_stage(name, wishes, qpu)
        rounds = rounds_of(dag, requests)
        request = self._requests.at_once([requests[job] for job in each] for each in rounds)
        mode, why = self._choose_mode(mode, request.qpu, [len(each) for each in rounds])
        return StagePlan(
            name=name,
            request=request,
            mode=mode,
            why=why,
            job=next(iter(requests)),
        )

    def _choose_mode(
        self, stated: Mode | None, qpu: str, rounds: Sequence[int]
    ) -> tuple[Mode, str]:
        if stated is not None:
            return stated, "its rules set qpu_mode"
        if self._mode != "auto":
            return self._mode, "--slurm-qpu-stage-mode sets it"
        if (by_site := self._requests.site.qpu(qpu).mode) != "auto":
            return "auto", f"the site sets {by_site}"  # a mode asked for would come before it
        return choose_mode(rounds)

    def _agreed(self, name: str, jobs: Iterable[Any]) -> tuple[dict[Any, Wish], Mode | None]:
        """Return what a stage's jobs that use the QPU ask for, and the mode that rules set."""
        wishes: dict[Any, Wish] = {}
        modes: dict[Mode, str] = {}
        for job in jobs:
            wish = self._requests.wish_if_known(job)
            if wish is not None and not is_emulated_wish(wish):
                _require_one_qpu(name, job, wish)
                _refuse_other_qpu(name, job, wish, wishes)
                wishes[job] = wish
            mode: Mode = job.resources.get("qpu_mode") or "auto"
            if mode != "auto":
                modes[mode] = job.rule.name
        if len(modes) > 1:
            (first, rule), (second, other), *_ = sorted(modes.items())
            raise QPURequestError(
                f"rule {rule!r}: qpu_mode={first!r}, but rule {other!r} of the same stage {name!r} "
                f"has qpu_mode={second!r}. A stage has one session. Set the same mode in both, or "
                "in one of them only."
            )
        return wishes, next(iter(modes), None)


def choose_mode(rounds: Sequence[int]) -> tuple[Mode, str]:
    """Choose the mode of a stage's session from its shape, and say why.

    A dedicated session answers each task at once, and is billed until it is closed. A batch may let
    each task wait, and is billed for the time of the QPU.

    Args:
        rounds: How many jobs use the QPU in each round; a job waits for those of earlier rounds.
    """
    jobs, longest = sum(rounds), len(rounds)
    if jobs == 1:
        return "auto", "its only job with the QPU does not show whether its tasks wait for answers"
    if longest == 1:
        return "batch", f"none of its {jobs} jobs with the QPU waits for another's answer"
    shape = f"its {jobs} jobs with the QPU run in {longest} rounds that wait for each other"
    # In a round, many answers are awaited together; between two rounds, the QPU has to be at hand.
    if longest * longest > jobs:
        return "dedicated", f"{shape}, {jobs / longest:.3g} at a time"
    return "batch", f"{shape}, but {jobs / longest:.3g} at a time"


def names_unknown_stage(job: Any) -> bool:
    """Return whether it is not yet known which stage a job, or one of a group, is in."""
    return any(_stage_value(member) == TO_BE_DETERMINED for member in jobs_in(job))


def _stage_value(job: Any) -> Any:
    # Not `job.resources` of every job: Snakemake evaluates functions there, once for each job.
    resource = job.rule.resources.get("qpu_stage")
    if resource is None or job.is_norun:
        return None
    return job.resources.get("qpu_stage") if resource.is_evaluable() else resource.value


def _stage_of_member(job: Any) -> Any:
    return None if job.is_local else _stage_value(job) or None


def _check(job: Any, name: Any) -> None:
    try:
        if not isinstance(name, str):
            raise RequestError(f"qpu_stage={name!r}: must be a name in quotes. Correct it.")
        require_stage_name(name)
        extra = job.resources.get("slurm_extra") or ""
        refuse_options(extra, ["dependency"], where=f"slurm_extra={extra!r}")
        mode = job.resources.get("qpu_mode")
        if mode and mode not in MODES:
            raise RequestError(
                f"qpu_mode={mode!r}: must be one of: {', '.join(MODES)}. Correct it, or remove it "
                "to let the jobs decide."
            )
        if (cluster := cluster_of(job)) is not None:
            raise RequestError(
                f"it sets both qpu_stage={name!r} and a cluster, {cluster!r}; the jobs of a stage "
                "must be on the cluster of its keeper. Remove one of them."
            )
    except QPUError as error:
        raise QPURequestError(f"rule {job.rule.name!r}: {error}") from error


def _refuse_stray_mode(job: Any) -> None:
    if _stage_value(job):
        return
    if "qpu_mode" in stated_resources(job.rule) and (mode := job.resources.get("qpu_mode")):
        raise QPURequestError(
            f"rule {job.rule.name!r}: it sets qpu_mode={mode!r} but no `qpu_stage`, so it would "
            'have no effect. Add qpu_stage="…" to its resources, or remove qpu_mode.'
        )


def _require_one_qpu(name: str, job: Any, wish: Wish) -> None:
    if len(wish) > 1:
        names = "+".join(str(each.constraint) for each in wish)
        raise QPURequestError(
            f"rule {job.rule.name!r}: it asks for {names} in stage {name!r}, but a stage has one "
            "QPU. Remove `qpu_stage`: a job of its own, or a group, may hold several."
        )


def _refuse_other_qpu(name: str, job: Any, wish: Wish, others: Mapping[Any, Wish]) -> None:
    other, known = next(iter(others.items()), (job, wish))
    asked, earlier = (str(each[0].constraint) for each in (wish, known))
    if asked != earlier:
        raise QPURequestError(
            f"rule {job.rule.name!r}: it asks for QPU {asked!r} in stage {name!r}, but rule "
            f"{other.rule.name!r} asks for {earlier!r} there. A stage has one QPU. Put the rules "
            "of each QPU into a stage of their own."
        )


def _refuse_open_stage(name: str, job: Any, wish: Wish) -> None:
    try:
        if _open_with_other_qpu(name, wish):
            settle_stages(name)  # its keeper may have been killed
        if stage := _open_with_other_qpu(name, wish):
            raise RequestError(
                f"it asks for QPU {str(wish[0].constraint)!r} in stage {name!r}, which is open "
                f"with {stage.qpu!r}. Choose another name, or close it first: `qpu stage close "
                f"{name}`."
            )
    except QPUError as error:
        raise QPURequestError(f"rule {job.rule.name!r}: {error}") from error


def _open_with_other_qpu(name: str, wish: Wish) -> Stage | None:
    stage = _find_open(name)
    fits = stage is not None and find_names([each.constraint for each in wish], [stage.qpu])
    return None if fits else stage


def _find_open(name: str) -> Stage | None:
    if not StageFolder.of(name).exists():
        return None
    stage = find_stage(name)
    return None if stage.is_ended else stage


def _shown(value: Any) -> str:
    return "a function" if callable(value) else repr(value)

"""From the resources of rules to stages, with Snakemake's own resources."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake import api  # noqa: F401 - first, because the modules below import each other
from snakemake.common.tbdstring import TBDString
from snakemake.resources import Resources

from qrmi_workflows.config.site import QPUPolicy, SitePolicy
from qrmi_workflows.lease.stage import Stage, StageState
from snakemake_executor_plugin_slurm_qpu import stage_requests
from snakemake_executor_plugin_slurm_qpu.errors import QPURequestError
from snakemake_executor_plugin_slurm_qpu.qpu_requests import QPURequests
from snakemake_executor_plugin_slurm_qpu.stage_requests import (
    StageRequests,
    choose_mode,
    names_unknown_stage,
)

QUANTUM = {"qpu": 1, "qpu_name": "fez"}


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
        values = {
            name: value("wildcards") if callable(value) else value
            for name, value in (self.defaults | self.stated).items()
        }
        return Values(values)


class Values(dict):
    """Resources, of which some may be read as attributes."""

    __getattr__ = dict.__getitem__


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


def quantum(name="a", needs=(), **resources):
    return Job(name, {"qpu_stage": "vqe", **QUANTUM, **resources}, needs=needs)


def classical(name="b", needs=(), **resources):
    return Job(name, {"qpu_stage": "vqe", **resources}, needs=needs)


@pytest.fixture
def requests(tmp_path):
    """Requests at a site with two QPUs, one of which has four lanes."""
    qpus = {name: QPUPolicy(name=name, gres=f"qpu:{name}") for name in ("fez", "quad")}
    requests = QPURequests()
    requests.site = SitePolicy(path=tmp_path / "site.toml", qpus=qpus)
    requests._definitions = None
    requests._nodes = ["qpu:fez:1,qpu:quad:4|8"]
    return requests


@pytest.fixture
def stages(requests):
    return StageRequests(requests)


REFUSED = {
    "no text": (quantum(qpu_stage=7), r"rule 'a': qpu_stage=7: must be a name in quotes"),
    "a path": (quantum(qpu_stage="../vqe"), r"rule 'a': stage '../vqe': must be 1 to 64 letters"),
    "a space": (classical(qpu_stage="my vqe"), r"rule 'b': stage 'my vqe': must be"),
    "a mode": (quantum(qpu_mode="fast"), r"qpu_mode='fast': must be one of: auto, dedicated, b"),
    "no stage": (quantum(qpu_stage="", qpu_mode="batch"), r"sets qpu_mode='batch' but no `qpu_s"),
    "cluster": (quantum(cluster="west"), r"both qpu_stage='vqe' and a cluster, 'west'; .*Remove"),
    "dependency": (
        classical(slurm_extra="--dependency=afterok:7"),
        r"rule 'b': slurm_extra='--dependency=afterok:7': --dependency would override",
    ),
    "local": (
        Job("c", {"qpu_stage": "vqe"}, is_local=True),
        r"rule 'c' is a localrule and sets qpu_stage='vqe': it would run here, .* Take it out",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_rule_whose_job_cannot_be_in_its_stage_is_refused_by_name(stages, case):
    job, message = REFUSED[case]

    with pytest.raises(QPURequestError, match=message):
        stages.check_workflow(DAG([job]))


def test_rules_of_one_stage_must_name_the_same_qpu(stages):
    jobs = [quantum("a"), classical("b"), quantum("c", qpu_name="quad")]

    with pytest.raises(
        QPURequestError, match=r"rule 'c': it asks for QPU 'quad' in stage 'vqe', .* rule 'a' .*fez"
    ):
        stages.check_workflow(DAG(jobs))

    stages.check_workflow(DAG([*jobs[:2], quantum("c", qpu_name="quad", qpu_stage="other")]))


@pytest.mark.parametrize("name", ["vqe", "lost", "others"])
def test_a_stage_that_is_open_with_another_qpu_is_refused(stages, tmp_path, monkeypatch, name):
    """One whose keeper turns out to be gone is not, and one of another user always is."""
    monkeypatch.setenv("QPU_STATE", str(tmp_path))
    stage = Stage(name=name, qpu="quad", type="t")
    with stage.folder.locked():
        stage.save()
    if name == "others":
        stage.folder.path.chmod(0o755)

    def settle_stages(name):
        if name == "lost":
            with stage.folder.locked():
                replace(stage, state=StageState.ENDED).save()

    monkeypatch.setattr(stage_requests, "settle_stages", settle_stages)
    job = DAG([classical(qpu_stage=name), quantum(qpu_stage=name)])
    if name == "lost":
        stages.check_workflow(job)
        return
    message = {"vqe": "'fez' in stage 'vqe', which is open with 'quad'", "others": "mode 0755"}
    with pytest.raises(QPURequestError, match=f"^rule 'a': .*{message[name]}"):
        stages.check_workflow(job)


def test_rules_of_one_stage_must_not_set_different_modes(stages):
    jobs = [quantum("a", qpu_mode="batch"), classical("b", qpu_mode="dedicated"), quantum("c")]

    with pytest.raises(QPURequestError, match=r"rule 'a': qpu_mode='batch', but rule 'b' of the"):
        stages.check_workflow(DAG(jobs))


def test_more_lanes_than_there_are_are_refused(stages):
    with pytest.raises(QPURequestError, match=r"rule 'a': qpu=5 .* more than 4"):
        stages.check_workflow(DAG([quantum(qpu=5, qpu_name="quad")]))


def test_a_group_is_in_one_stage(stages):
    first, second = quantum("a"), classical("b", qpu_stage="other")
    plain, stray = Job("c", {}), Job("d", QUANTUM)

    assert stages.stage_of(Job("g", {}, members=(first, plain))) == "vqe"
    assert stages.stage_of(Job("g", {}, members=(plain, stray))) is None
    with pytest.raises(
        QPURequestError, match=r"rule 'b': qpu_stage='other', but rule 'a' of the s"
    ):
        stages.check_workflow(DAG([Job("g", {}, members=(first, second))]))
    with pytest.raises(QPURequestError, match=r"rule 'd': it asks for qpu=1 of its own, but rule "):
        stages.check_workflow(DAG([Job("g", {}, members=(first, stray))]))


def test_a_profile_may_set_a_stage_for_all_rules(stages):
    by_default = {"qpu_stage": "vqe", "qpu_mode": "batch"}
    local = Job("a", {}, by_default, is_local=True)
    target = Job("all", {}, by_default, is_norun=True)
    outside = Job("b", {"qpu_stage": ""}, by_default)
    stages.check_workflow(DAG([local, target, outside]))

    assert [stages.stage_of(job) for job in (local, target, outside)] == [None] * 3
    assert stages.stage_of(Job("c", QUANTUM, by_default)) == "vqe"


def test_a_stage_may_depend_on_wildcards_and_may_not_be_known_yet(stages):
    function = quantum(qpu_stage=lambda wildcards: "vqe-h2")
    unknown = quantum(qpu_stage=lambda wildcards: TBDString())

    assert stages.stage_of(function) == "vqe-h2"
    assert names_unknown_stage(unknown)
    assert not names_unknown_stage(function)
    stages.check_workflow(DAG([function, unknown]))


def test_a_stage_is_needed_as_long_as_a_job_names_it_or_may_name_it(stages):
    unknown = quantum(qpu_stage=lambda wildcards: TBDString())

    assert stages.names_needed([classical(), Job("c", {})]) == {"vqe"}
    assert stages.names_needed([Job("c", {})]) == set()
    assert stages.names_needed([unknown]) is None
    assert stages.names_needed([Job("c", {}, is_checkpoint=True)]) is None


def test_a_stage_without_a_job_that_uses_the_qpu_is_not_opened(stages):
    assert stages.plan(DAG([classical(), Job("c", QUANTUM)]), "vqe") is None


def test_the_mode_of_a_loop_is_dedicated_and_that_of_a_fan_out_is_batch(stages):
    first = quantum("a")
    second = quantum("c", needs=(classical("b", needs=(first,)),))
    loop = DAG([first, second.needs[0], second])
    fan_out = DAG([quantum(name) for name in "abc"])

    assert stages.plan(loop, "vqe").mode == "dedicated"
    assert stages.plan(loop, "vqe").why == (
        "its 2 jobs with the QPU run in 2 rounds that wait for each other, 1 at a time"
    )
    assert stages.plan(fan_out, "vqe").mode == "batch"
    assert stages.plan(fan_out, "vqe").why == (
        "none of its 3 jobs with the QPU waits for another's answer"
    )


@pytest.mark.parametrize(
    ("rounds", "mode"),
    [
        ([1], "auto"),
        ([2], "batch"),
        ([100], "batch"),
        ([1, 1], "dedicated"),
        ([3, 3, 3, 3, 3], "dedicated"),
        ([2, 2], "batch"),
        ([100, 100], "batch"),
    ],
)
def test_jobs_that_wait_for_answers_one_by_one_get_a_dedicated_session(rounds, mode):
    assert choose_mode(rounds)[0] == mode


def test_a_rule_comes_before_the_setting_and_that_before_the_shape(requests):
    jobs = [quantum("a"), quantum("b")]
    fixed = StageRequests(requests, "dedicated")

    assert fixed.plan(DAG(jobs), "vqe").mode == "dedicated"
    assert "--slurm-qpu-stage-mode" in fixed.plan(DAG(jobs), "vqe").why
    plan = fixed.plan(DAG([*jobs, classical("c", qpu_mode="batch")]), "vqe")
    assert (plan.mode, plan.why) == ("batch", "its rules set qpu_mode")
    assert StageRequests(requests).plan(DAG([quantum(qpu_mode="auto")]), "vqe").mode == "auto"


def test_a_setting_that_is_no_mode_is_refused(requests):
    with pytest.raises(QPURequestError, match=r"--slurm-qpu-stage-mode fast: must be one of"):
        StageRequests(requests, "fast")


def test_a_stage_holds_what_its_jobs_can_use_at_once(stages):
    def held(*jobs):
        return stages.plan(DAG(list(jobs)), "vqe").request.count

    def on_quad(name, **others):
        return quantum(name, qpu_name="quad", **others)

    first = on_quad("a")
    assert held(first) == 1
    assert held(first, on_quad("b", needs=(first,))) == 1
    assert held(first, on_quad("b", qpu=2)) == 3
    assert held(*(on_quad(name) for name in "abcdef")) == 4
    assert held(on_quad("a", qpu_exclusive=1)) == 4
    assert held(*(quantum(name) for name in "abcdef")) == 1

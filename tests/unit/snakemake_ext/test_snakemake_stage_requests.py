"""From the resources of rules to stages, with Snakemake's own resources."""

from dataclasses import replace

import pytest
from snakemake import api  # noqa: F401 - first, because the modules below import each other
from snakemake.common.tbdstring import TBDString
from snakemake_jobs import DAG, Job

from qrmi_workflows.choice.choose import Choice
from qrmi_workflows.config.site import QPUPolicy, SitePolicy
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.lease.stage import Stage, StageState
from snakemake_executor_plugin_slurm_qpu import stage_requests
from snakemake_executor_plugin_slurm_qpu.errors import QPURequestError
from snakemake_executor_plugin_slurm_qpu.job_names import step_name
from snakemake_executor_plugin_slurm_qpu.qpu_requests import QPURequests
from snakemake_executor_plugin_slurm_qpu.stage_requests import (
    StageRequests,
    choose_mode,
    names_unknown_stage,
)

QUANTUM = {"qpu": 1, "qpu_name": "fez"}


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


@pytest.fixture
def chooser(monkeypatch, tmp_path):
    """Chooses quad, and remembers the requests."""
    asked = []

    def choose(constraints, _asker, **_):
        asked.append(" + ".join(map(str, constraints)))
        return tuple(Choice(qpu=c.name or "quad", request=str(c), why="") for c in constraints)

    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("qrmi_workflows.choice.resumed.choose", choose)
    monkeypatch.setattr("qrmi_workflows.choice.choose.require_possible", lambda *_: None)
    return asked


def test_a_qpu_is_chosen_once_for_a_stage(requests, stages, chooser):
    jobs = [quantum("a", qpu_name="fez|quad", qpu=2), quantum("b", qpu_name="fez|quad")]

    stages.check_workflow(DAG(jobs))
    assert chooser == []
    for _ in range(2):  # the stage may have ended, and is opened again
        plan = stages.plan(DAG(jobs), "vqe")
        assert (plan.request.qpu, plan.request.count) == ("quad", 3)
        assert [requests.request_of(job, stage="vqe")[0].qpu for job in jobs] == ["quad"] * 2
    assert chooser == ["fez|quad"]
    assert [job.resources.qpu_name for job in jobs] == ["quad"] * 2


def test_an_open_stage_keeps_its_qpu_if_that_was_asked_for(stages, chooser):
    stage = Stage(name="vqe", qpu="fez", type="t", keeper_job="7", state=StageState.READY)
    with stage.folder.locked():
        stage.save()

    assert stages.plan(DAG([quantum("a", qpu_name="fez|quad")]), "vqe").request.qpu == "fez"
    assert chooser == []
    with pytest.raises(QPURequestError, match=r"asks for QPU 'qu\*' in stage 'vqe', .* open with"):
        stages.check_workflow(DAG([quantum("b", qpu_name="qu*")]))


def test_a_stage_is_chosen_for_the_tasks_of_all_its_steps(stages, chooser):
    jobs = [quantum("a", qpu_name="fez|quad"), quantum("b", qpu_name="fez|quad")]
    entry, _ = Journal().step(step_name(jobs[1])).claim("0" * 64, qpu="fez", program="sampler")
    entry.submitted("task")

    assert stages.plan(DAG(jobs), "vqe").request.qpu == "fez"


def test_a_stage_with_several_qpus_is_refused(stages):
    both = quantum(qpu_name="fez+quad")

    with pytest.raises(QPURequestError, match=r"'a': it asks for fez\+quad in stage 'vqe', but"):
        stages.check_workflow(DAG([both]))


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


def test_the_sites_mode_comes_before_the_shape(requests):
    """It is left to the keeper, which would take a mode asked for instead."""
    policy = QPUPolicy(name="fez", gres="qpu:fez", mode="dedicated")
    requests.site = replace(requests.site, qpus={**requests.site.qpus, "fez": policy})
    jobs = DAG([quantum("a"), quantum("b")])

    plan = StageRequests(requests).plan(jobs, "vqe")

    assert (plan.mode, plan.why) == ("auto", "the site sets dedicated")
    assert StageRequests(requests, "batch").plan(jobs, "vqe").mode == "batch"


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

"""From the resources of a job, or a group, to the QPUs that its Slurm job asks for."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from snakemake import api  # noqa: F401 - first, because the modules below import each other
from snakemake_jobs import DAG, Job

from qrmi_workflows.choice.choose import Choice
from qrmi_workflows.config.site import QPUPolicy, SitePolicy
from qrmi_workflows.errors import LeaseError, RequestError
from qrmi_workflows.journal.journal import Journal
from snakemake_executor_plugin_slurm_qpu.errors import QPURequestError
from snakemake_executor_plugin_slurm_qpu.job_names import step_name
from snakemake_executor_plugin_slurm_qpu.qpu_requests import QPURequests


@pytest.fixture
def requests(tmp_path):
    """Requests at a site: fez and quad are on one node, far on another, apart in a partition."""
    qpus = {name: QPUPolicy(name=name, gres=f"qpu:{name}") for name in ("fez", "quad", "far")}
    qpus["apart"] = QPUPolicy(name="apart", partition="photonic")
    qpus["main"] = QPUPolicy(name="main", partition="main")
    requests = QPURequests()
    requests.site = SitePolicy(path=tmp_path / "site.toml", qpus=qpus)
    requests._definitions = None
    requests._nodes = ["qpu:fez:1,qpu:quad:4|8", "qpu:far:1|8"]
    return requests


def job(name="a", **resources):
    return Job(name, resources)


def asked(request):
    return {each.qpu: each.count for each in request}


def test_one_job_asks_for_all_of_its_qpus(requests):
    both = job(qpu=1, qpu_name="fez + quad")

    request = requests.request_of(both)

    assert asked(request) == {"fez": 1, "quad": 1}
    assert requests.sbatch_options(both, request) == ["--gres=qpu:fez:1,qpu:quad:1"]
    assert requests.lanes(request) is None, "one has lanes, the other has not"


def test_all_units_are_those_of_each_qpu(requests):
    request = requests.request_of(job(qpu=1, qpu_name="fez+quad", qpu_exclusive=1))

    assert asked(request) == {"fez": 1, "quad": 4}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fez+fez", r"QPU 'fez' named twice in 'fez\+fez'"),
        ("fez+", r"QPU 'fez\+': a name is missing"),
        ("fez+quat", r"unknown QPU 'quat' .* Did you mean 'quad'"),
        ("fez+far", r"QPUs 'fez' and 'far': no node of this Slurm has GRES .* together"),
        ("main+apart", r"QPUs 'main' and 'apart': .* values of --partition \(main and photonic"),
    ],
)
def test_qpus_that_no_job_can_hold_are_refused_before_any_job_runs(requests, name, message):
    with pytest.raises(QPURequestError, match=f"^rule 'a': {message}"):
        requests.check_workflow(DAG([job(qpu=1, qpu_name=name)]))


def test_a_rules_own_partition_may_grant_both(requests):
    both = job(qpu=1, qpu_name="main+apart", slurm_partition="all")

    assert requests.sbatch_options(both, requests.request_of(both)) == []


def test_a_group_holds_all_qpus_that_one_of_its_rules_names(requests):
    members = (
        job("a", qpu=2, qpu_name="quad"),
        job("b", qpu=1, qpu_name="fez+quad"),
        job("c"),
    )

    assert asked(requests.request_of(Job("g", {}, members=members))) == {"fez": 1, "quad": 2}


def test_a_group_whose_rules_name_different_qpus_is_refused_with_the_way_out(requests):
    members = job("a", qpu=1, qpu_name="quad"), job("b", qpu=1, qpu_name="fez")

    message = r"group 'g' asks for the QPUs fez, quad, .*hold all: qpu_name=\"fez\+quad\"\.$"
    with pytest.raises(QPURequestError, match=message):
        requests.request_of(Job("g", {}, members=members))


@dataclass
class Chooser:
    """Stands in for the choice, and remembers what it was asked for."""

    answers: list[str | Exception] = field(default_factory=lambda: ["fez"])
    asked: list[tuple[str, object]] = field(default_factory=list)

    def choose(self, constraints, asker, **_):
        self.asked.append((" + ".join(map(str, constraints)), asker))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        names = answer.split("+")
        return tuple(
            Choice(qpu=each.name or name, request=str(each), why="least busy")
            for each, name in zip(constraints, names, strict=True)
        )


@pytest.fixture
def chooser(monkeypatch, tmp_path):
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    chooser = Chooser()
    monkeypatch.setattr("qrmi_workflows.choice.resumed.choose", chooser.choose)
    monkeypatch.setattr("qrmi_workflows.choice.choose.require_possible", lambda *_: None)
    return chooser


def test_a_qpu_is_chosen_once_for_each_attempt_and_named_in_the_resources(requests, chooser):
    any_of = job(qpu=1, qpu_name="fez|quad", slurm_account="chem")
    chooser.answers = ["quad", "fez"]

    requests.check_workflow(DAG([any_of]))
    assert chooser.asked == [], "not before the job is ready"
    for _ in range(2):
        assert asked(requests.request_of(any_of)) == {"quad": 1}
    ((request, asker),) = chooser.asked
    assert (request, asker.for_job, asker.account) == ("fez|quad", True, "chem")
    assert any_of.resources.qpu_name == "quad"
    assert "least busy" in requests.choices.variables(any_of)["QPU_CHOICE"]

    any_of.retry()
    assert any_of.resources.qpu_name == "fez|quad"
    assert asked(requests.request_of(any_of)) == {"fez": 1}


def test_an_attempt_goes_to_the_qpu_that_has_the_tasks_of_the_last_one(requests, chooser):
    any_of = job(qpu=1, qpu_name="fez|quad", qpu_where="queue < 3")
    entry, _ = Journal().step(step_name(any_of)).claim("0" * 64, qpu="quad", program="sampler")
    entry.submitted("task")

    assert asked(requests.request_of(any_of)) == {"quad": 1}
    assert [request for request, _ in chooser.asked] == ["quad"]
    (choice,) = requests.choices.of_attempt(any_of)
    assert choice.why == "it has 1 task(s) of an earlier attempt at the step"


@pytest.mark.parametrize(
    ("resources", "request_"),
    [
        ({"qpu_min_qubits": 100}, "min_qubits=100"),
        ({"qpu_name": "f*", "qpu_type": "ibm-*"}, "f* with type='ibm-*'"),
        ({"qpu_name": "fez", "qpu_where": "queue < 9"}, "fez with where='queue < 9'"),
        ({"qpu_name": "f*", "qpu_type": "", "qpu_where": ""}, "f*"),
    ],
)
def test_conditions_are_part_of_what_is_asked_for(requests, chooser, resources, request_):
    requests.request_of(job(qpu=1, **resources))

    assert [request for request, _ in chooser.asked] == [request_]


def test_all_units_are_those_of_the_chosen_qpu(requests, chooser):
    chooser.answers = ["quad"]

    assert asked(requests.request_of(job(qpu=1, qpu_name="*", qpu_exclusive=1))) == {"quad": 4}


def test_in_a_group_each_rule_gets_the_names_of_its_own_qpus(requests, chooser):
    chooser.answers = ["fez+quad"]
    members = (
        job("a", qpu=1, qpu_name="f*|quad"),
        job("b", qpu=1, qpu_name="fez+f*|quad"),
        job("c"),
    )

    request = requests.request_of(Job("g", {}, members=members))

    assert asked(request) == {"fez": 1, "quad": 1}
    assert [member.resources.get("qpu_name") for member in members] == ["quad", "fez+quad", None]


def test_while_nothing_fits_the_job_may_wait(requests, chooser):
    chooser.answers = [LeaseError("no QPU satisfies it now", "", True), "fez"]
    later = job(qpu=1, qpu_name="f*", qpu_where="queue < 3")

    with pytest.raises(LeaseError, match="now") as caught:
        requests.request_of(later)
    assert caught.value.retryable
    assert asked(requests.request_of(later)) == {"fez": 1}


def test_what_can_never_be_satisfied_is_refused_before_any_job_runs(requests, chooser, monkeypatch):
    def refuse(*_):
        raise RequestError("no QPU can satisfy f* with min_qubits=999. The nearest: …")

    monkeypatch.setattr("qrmi_workflows.choice.choose.require_possible", refuse)

    with pytest.raises(QPURequestError, match=r"^rule 'a': no QPU can satisfy f\*.*The nearest"):
        requests.check_workflow(DAG([job(qpu=1, qpu_name="f*", qpu_min_qubits=999)]))


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"qpu_min_qubits": 100}, "it sets qpu_min_qubits=100 but not `qpu`"),
        ({"qpu_where": "queue < 3"}, "it sets qpu_where='queue < 3' but not `qpu`"),
        ({"qpu": 1, "qpu_minqubits": 5}, "unknown resource 'qpu_minqubits'; .* 'qpu_min_qubits'"),
        ({"qpus": 1}, "unknown resource 'qpus'.*Did you mean 'qpu'"),
        ({"qpu": 1, "qpu_min_qubits": "many"}, "min_qubits='many': must be a positive integer"),
        ({"qpu": -1, "qpu_name": "f*"}, r"qpu=-1 for QPU 'f\*': must be a positive"),
    ],
)
def test_a_condition_without_a_qpu_and_a_typo_are_refused(requests, chooser, resources, message):
    with pytest.raises(QPURequestError, match=message):
        requests.check_workflow(DAG([job(**resources)]))


@pytest.fixture
def defined(monkeypatch, tmp_path):
    """All QPUs are defined."""
    resources = [{"name": name, "type": "t"} for name in ("fez", "quad", "far")]
    (tmp_path / "qrmi_config.json").write_text(json.dumps({"resources": resources}))
    monkeypatch.setenv("QPU_CONFIG", str(tmp_path / "qrmi_config.json"))


def test_a_job_whose_qpu_was_chosen_falls_back_to_the_others(requests, chooser, defined, tmp_path):
    any_of = job(qpu=1, qpu_name="fez|quad", qpu_fallback="quad|far")
    chooser.answers = ["quad"]

    requests.check_workflow(DAG([any_of]))
    own = requests.request_of(any_of)
    options = requests.fallbacks.options(
        any_of, tmp_path, own=[each.qpu for each in own], is_in_stage=False
    )

    assert asked(own) == {"quad": 1}
    assert options[:2] == ["--fallback", "far"]
    moved = {"left": ["quad"], "qpu": "far", "rest": [], "reason": "offline"}
    Path(options[-1]).write_text(json.dumps(moved))
    assert requests.fallbacks.take(any_of).qpu == "far"
    assert asked(requests.request_of(any_of)) == {"far": 1}


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"qpu_name": "f*", "qpu_fallback": "absent"}, "unknown QPU 'absent'"),
        ({"qpu_name": "fez+quad", "qpu_fallback": "far"}, "several QPUs, .* can have no fallback"),
        ({"qpu_name": "f*|quad", "qpu_fallback": "far", "qpu": 3}, "no node .* more than 1"),
    ],
)
def test_a_fallback_that_the_job_cannot_use_is_refused(
    requests, chooser, defined, resources, message
):
    with pytest.raises(QPURequestError, match=message):
        requests.check_workflow(DAG([job(**({"qpu": 1} | resources))]))

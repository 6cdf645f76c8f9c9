"""Choosing a QPU: what fits, what is least busy, what waits, and what is refused."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from qrmi_workflows.choice import candidates, gather
from qrmi_workflows.choice.candidates import Asker
from qrmi_workflows.choice.choose import Choice, choose, require_possible
from qrmi_workflows.choice.survey import survey
from qrmi_workflows.client.states import Answer
from qrmi_workflows.client.targets import QPUTarget
from qrmi_workflows.config.constraints import parse_qpus
from qrmi_workflows.config.qpus import QPUDefinition
from qrmi_workflows.errors import LeaseError, RequestError, ResourceError, UnknownQPUError
from qrmi_workflows.schedulers.admission import Capacity

SITE = """
[qpus.ibm_fez]
licence = "qpu_fez"
lanes = 5
[qpus.ibm_torino]
licence = "qpu_torino"
[qpus.FRESNEL]
licence = "pasqal"
partition = "quantum"
users = ["nobody-else"]
[qpus.small]
licence = "qpu_small"
"""
TYPES = {
    "ibm_fez": "ibm-quantum-compute-service",
    "ibm_torino": "ibm-quantum-compute-service",
    "FRESNEL": "pasqal-cloud",
    "small": "oqtopus",
}
QUBITS = {"ibm_fez": 156, "ibm_torino": 133, "FRESNEL": 80, "small": 5}
ONLINE = Answer(state="online", is_operational=True, queue=0)
OFFLINE = Answer(state="offline", is_operational=False)
JOB, HERE = Asker(for_job=True), Asker(for_job=False)


@dataclass
class World:
    """What vendors and scheduler answer, and how often they were asked."""

    folder: Path
    answers: dict[str, Answer | Exception] = field(default_factory=dict)
    capacities: dict[str, Capacity] = field(default_factory=dict)
    qubits: dict[str, int | Exception] = field(default_factory=lambda: dict(QUBITS))
    asked: Counter[str] = field(default_factory=Counter)

    def set_queues(self, **queues: int) -> None:
        """Let vendors answer with these numbers of tasks."""
        self.answers |= {name: replace(ONLINE, queue=n) for name, n in queues.items()}

    def forget(self) -> None:
        """Forget all that is cached."""
        for path in (self.folder / "cache").rglob("*.*"):
            if path.is_file():
                path.unlink()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Set up a site with four QPUs, all of them online and idle."""
    found = World(tmp_path)
    (tmp_path / "site.toml").write_text(f'[site]\nstate = "{tmp_path}/state"\n{SITE}')
    resources = [{"name": name, "type": type_, "environment": {}} for name, type_ in TYPES.items()]
    (tmp_path / "qrmi_config.json").write_text(json.dumps({"resources": resources}))
    monkeypatch.setenv("QPU_SITE", str(tmp_path / "site.toml"))
    monkeypatch.setenv("QPU_CONFIG", str(tmp_path / "qrmi_config.json"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("QRMI_JOB_QPU_RESOURCES", "SLURM_JOB_QPU_RESOURCES", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)

    def ask_state(qpu: Any, *, seconds: float) -> Answer:
        found.asked[qpu.name] += 1
        answer = found.answers.get(qpu.name, ONLINE)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def fetch_target(qpu: Any, **_: Any) -> QPUTarget:
        found.asked[f"target of {qpu.name}"] += 1
        qubits = found.qubits[qpu.name]
        if isinstance(qubits, Exception):
            raise qubits
        documents = {
            "ibm-quantum-compute-service": {
                "configuration": {"n_qubits": qubits, "basis_gates": ["cz", "sx"]},
                "properties": {},
            },
            "pasqal-cloud": {"specs": json.dumps({"name": "F", "max_atom_num": qubits})},
            "oqtopus": {"n_qubits": qubits, "basis_gates": ["cx"]},
        }
        return QPUTarget(
            qpu=qpu.name,
            fetched="2026-11-26T00:00:00+00:00",
            calibrated="2026-11-26T00:00:00+00:00",
            text=json.dumps(documents[qpu.type]),
        )

    monkeypatch.setattr(gather, "FRESH_SECONDS", 60.0)  # on a loaded machine, 5 s pass quickly
    monkeypatch.setattr(gather, "ask_state", ask_state)
    monkeypatch.setattr(gather, "fetch_target", fetch_target)
    monkeypatch.setattr(gather, "_ask_capacities", lambda *_: (found.capacities, False))
    return found


def one(request: str | None, asker: Asker = JOB, **options: Any) -> Choice:
    """Choose one QPU."""
    conditions = {k: options.pop(k) for k in ("min_qubits", "type", "where") if k in options}
    (choice,) = choose(parse_qpus(request, **conditions), asker, **options)
    return choice


def test_a_qpu_that_is_asked_for_by_name_is_taken_without_a_question(world):
    choice = one("anything")

    assert (choice.qpu, choice.request) == ("anything", "anything")
    assert world.asked == {}


def test_the_least_busy_one_of_those_that_match_is_chosen(world):
    world.set_queues(ibm_fez=7, ibm_torino=2, small=0)

    choice = one("ibm_*")

    assert choice.qpu == "ibm_torino"
    assert choice.why == "least busy of 2 that fit: 2 ahead (ibm_fez: 7)"
    assert choice.rejected == {"ibm_fez": "7 tasks and jobs ahead"}
    assert str(choice).startswith("chose QPU 'ibm_torino' for ibm_*: least busy of 2")


def test_a_qpu_that_the_scheduler_does_not_have_is_no_candidate_while_it_has_another(world):
    """Its licence is missing, or the nodes with its GRES are drained."""
    world.set_queues(ibm_fez=0, ibm_torino=3)
    world.capacities = {"ibm_torino": Capacity(free=1, total=1, waiting=0)}

    choice = one("ibm_*")
    assert choice.qpu == "ibm_torino"
    assert choice.rejected["ibm_fez"] == "the scheduler has none of it"


def test_jobs_that_hold_or_wait_for_a_qpu_count_as_well_as_tasks(world):
    world.set_queues(ibm_fez=0, ibm_torino=3)
    world.capacities = {
        "ibm_fez": Capacity(free=0, total=1, waiting=4),
        "ibm_torino": Capacity(free=1, total=1, waiting=0),
    }
    assert one("ibm_*").qpu == "ibm_torino"


@pytest.mark.parametrize(
    ("conditions", "chosen"),
    [
        ({"min_qubits": 140}, "ibm_fez"),
        ({"min_qubits": 100, "where": "qubits < 150"}, "ibm_torino"),
        ({"type": "oqtopus"}, "small"),
        ({"type": "ibm-*", "where": 'name != "ibm_fez"'}, "ibm_torino"),
        ({"where": '"cx" in gates'}, "small"),
        ({"where": "lanes == 5"}, "ibm_fez"),
        ({"where": 'vendor == "oqtopus" and state == "online"'}, "small"),
    ],
)
def test_conditions_choose_by_target_type_and_policy(world, conditions, chosen):
    assert one(None, **conditions).qpu == chosen


def test_a_qpu_that_the_user_may_not_use_is_no_candidate_and_the_reason_is_given(world):
    assert one("FRESNEL|small").qpu == "small"
    with pytest.raises(RequestError, match=r"FRESNEL: user .* may not use it; must be one of"):
        one("FRES*")


def test_a_qpu_that_is_away_is_no_candidate_while_another_is_available(world):
    world.answers["ibm_fez"] = OFFLINE
    world.set_queues(ibm_torino=100)

    choice = one("ibm_*")

    assert choice.qpu == "ibm_torino"
    assert choice.rejected["ibm_fez"] == "it is offline"


def test_a_qpu_in_maintenance_is_no_candidate_while_another_is_available(world):
    folder = world.folder / "state" / "maintenance"
    folder.mkdir(parents=True)
    entry = {"ibm_fez": {"message": "new cryostat", "since": 86400}}
    (folder / "by-hand.json").write_text(json.dumps(entry))
    world.set_queues(ibm_torino=100)

    choice = one("ibm_*")
    assert choice.qpu == "ibm_torino"
    assert "in maintenance since 1970-01-02 00:00 UTC: new cryostat" in choice.rejected["ibm_fez"]
    assert "new cryostat" in one("ibm_f*").waits


def test_a_silent_vendor_is_unknown_and_comes_after_those_that_answer(world):
    world.answers["ibm_fez"] = ResourceError("no answer")
    world.set_queues(ibm_torino=100)

    assert one("ibm_*").qpu == "ibm_torino"
    choice = one("ibm_f*")
    assert (choice.qpu, choice.waits) == ("ibm_fez", "")


def test_a_job_waits_in_the_queue_of_a_qpu_that_is_away_but_a_process_does_not_use_it(world):
    world.answers |= {"ibm_fez": OFFLINE, "ibm_torino": replace(OFFLINE, reason="calibrating")}

    choice = one("ibm_*")
    assert choice.waits in ("it is offline", "calibrating")
    with pytest.raises(LeaseError, match=r"no QPU for ibm_.* is available: ibm_") as caught:
        one("ibm_*", HERE)
    assert caught.value.retryable


def test_a_condition_that_no_qpu_can_ever_satisfy_is_refused_with_the_nearest_qpus(world):
    with pytest.raises(RequestError) as caught:
        one(None, min_qubits=200, where='"cz" in gates and queue < 5')
    text = str(caught.value)
    assert text.startswith(
        "no QPU can satisfy min_qubits=200, where='\"cz\" in gates and queue < 5'. "
        "The nearest: ibm_fez: it has 156 qubits, not 200; ibm_torino: it has 133 qubits, not 200;"
    )
    assert "small: it has 5 qubits, not 200; `'cz' in gates`: gates is cx" in text


def test_a_condition_that_no_qpu_satisfies_now_may_be_waited_for(world, monkeypatch):
    world.set_queues(ibm_fez=9, ibm_torino=12, small=7)

    with pytest.raises(LeaseError, match="no QPU satisfies where='queue < 5' now") as e:
        one(None, where="queue < 5")
    assert e.value.retryable
    assert "small: `queue < 5`: queue is 7" in str(e.value)

    monkeypatch.setattr(gather, "FRESH_SECONDS", 0.0)
    answered = world.asked["small"]

    def soon() -> None:
        if world.asked["small"] > answered + 1:
            world.set_queues(small=3)

    _after_each(monkeypatch, soon)
    assert one(None, where="queue < 5", wait=60.0).qpu == "small"


def _after_each(monkeypatch: pytest.MonkeyPatch, then: Callable[[], None]) -> None:
    ask = gather.ask_state

    def ask_state(qpu: Any, *, seconds: float) -> Answer:
        answer = ask(qpu, seconds=seconds)
        then()
        return answer

    monkeypatch.setattr(gather, "ask_state", ask_state)


def test_waiting_says_why_once_for_each_reason(world, monkeypatch, caplog):
    world.set_queues(ibm_fez=9)
    monkeypatch.setattr(gather, "FRESH_SECONDS", 0.0)

    with pytest.raises(LeaseError):
        one("ibm_f*", where="queue < 5", wait=4.0)

    told = [each for each in caplog.records if each.getMessage().startswith("waiting for a QPU")]
    assert len(told) == 1
    assert "`queue < 5`: queue is 9" in told[0].getMessage()


def test_a_target_that_cannot_be_fetched_may_be_known_later(world):
    world.qubits = dict.fromkeys(QUBITS, ResourceError("503 Service Unavailable"))

    with pytest.raises(LeaseError, match="its number of qubits is not known: 503") as caught:
        one(None, min_qubits=100)
    assert caught.value.retryable


def test_without_readable_definitions_only_names_and_the_scheduler_count(world):
    (world.folder / "qrmi_config.json").unlink()
    world.capacities = {
        "ibm_fez": Capacity(free=0, total=1, waiting=2),
        "ibm_torino": Capacity(free=1, total=1, waiting=0),
    }
    assert one("ibm_*").qpu == "ibm_torino"
    with pytest.raises(RequestError, match="number of qubits is not known: no definition of it"):
        one("ibm_*", min_qubits=10)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("ibm_fes|ibm_tor", "unknown QPU 'ibm_fes' in the site policy .*Did you mean 'ibm_fez'"),
        ("xyz*", r"no QPU in the site policy .* matches 'xyz\*'; must match one of: FRESNEL"),
    ],
)
def test_names_that_are_not_known_are_refused(world, request_, message):
    with pytest.raises((RequestError, UnknownQPUError), match=message):
        one(request_)


def test_one_unknown_name_among_alternatives_is_only_reported(world, caplog):
    choice = one("ibm_fez|ibm_elsewhere")
    assert "unknown QPU 'ibm_elsewhere' in the site policy" in caplog.text
    assert choice.qpu == "ibm_fez"
    assert choice.rejected["ibm_elsewhere"].startswith("unknown in the site policy")


def test_a_typo_in_an_expression_is_refused_before_anybody_is_asked(world):
    with pytest.raises(RequestError, match="unknown field 'qbits'; did you mean 'qubits'"):
        one(None, where="qbits > 5")
    assert world.asked == {}


def test_an_emulated_alternative_is_taken_only_if_no_qpu_is_available(world):
    assert one("ibm_fez|emulated:fez").qpu == "ibm_fez"
    world.answers["ibm_fez"] = OFFLINE
    world.forget()
    choice = one("ibm_fez|emulated:fez")
    assert choice.qpu == "emulated:fez"
    assert choice.rejected["ibm_fez"] == "it is offline"


@pytest.mark.parametrize("request_", ["ibm_fez|ibm_torino+small", "ibm_*+small"])
def test_qpus_are_chosen_that_the_site_grants_together(world, request_):
    """Jobs for ibm_fez have a partition of their own, although nobody uses it."""
    site = world.folder / "site.toml"
    policies = site.read_text().replace("lanes = 5", 'lanes = 5\npartition = "a"')
    site.write_text(policies.replace('"qpu_small"', '"qpu_small"\npartition = "b"'))
    world.set_queues(ibm_torino=9)

    found = choose(parse_qpus(request_), JOB)

    assert [each.qpu for each in found] == ["ibm_torino", "small"]


def test_no_emulated_qpu_is_taken_twice(world):
    world.answers["ibm_fez"] = OFFLINE
    found = choose(parse_qpus("ibm_fez|emulated:fez|emulated:torino+emulated:fez"), JOB)
    assert [each.qpu for each in found] == ["emulated:torino", "emulated:fez"]
    with pytest.raises(RequestError, match=r"left for emulated:.*the rest of the request needs"):
        choose(parse_qpus("emulated:fez|emulated:kyiv+emulated:fez+emulated:kyiv"), JOB)


def test_a_wrong_emulated_alternative_is_refused_before_it_is_needed(world):
    with pytest.raises(RequestError, match=r"unknown model 'fes'.*Did you mean 'emulated:fez'"):
        one("ibm_fez|emulated:fes")
    with pytest.raises(RequestError, match="unknown model 'fes'"):
        require_possible(parse_qpus("ibm_fez|emulated:fes"), JOB)
    assert world.asked == {}


def test_emulated_qpus_are_chosen_without_a_site_and_definitions(monkeypatch, tmp_path):
    monkeypatch.setenv("QPU_SITE", str(tmp_path / "missing.toml"))
    monkeypatch.setenv("QPU_CONFIG", str(tmp_path / "missing.json"))
    for asker in (JOB, HERE):
        found = choose(parse_qpus("emulated:fez|emulated:torino", min_qubits=5), asker)
        assert [each.qpu for each in found] == ["emulated:fez"]


def test_several_qpus_are_all_different(world):
    world.set_queues(ibm_fez=1, ibm_torino=2, small=0)

    def names(request: str) -> list[str]:
        world.forget()
        return [each.qpu for each in choose(parse_qpus(request), JOB)]

    assert names("ibm_*+ibm_*") == ["ibm_fez", "ibm_torino"]
    assert names("ibm_fez+ibm_*") == ["ibm_fez", "ibm_torino"]
    assert names("ibm_*|small+small|ibm_fez") == ["small", "ibm_fez"]
    # The second can only be ibm_fez, so the first is not.
    assert names("ibm_*+ibm_fez|nowhere") == ["ibm_torino", "ibm_fez"]
    with pytest.raises(RequestError, match=r"left for ibm_.*the rest of the request needs"):
        names("ibm_*+ibm_*+ibm_*")


def test_choices_that_are_made_one_after_the_other_are_spread(world):
    """The vendors' answers are cached meanwhile, so the queues that they show do not grow."""
    world.set_queues(ibm_fez=0, ibm_torino=2)

    chosen = Counter(one("ibm_*").qpu for _ in range(10))

    assert chosen == {"ibm_fez": 6, "ibm_torino": 4}
    assert world.asked == {"ibm_fez": 1, "ibm_torino": 1}


def test_heads_that_choose_at_once_are_spread_among_equals(world):
    chosen = Counter()
    for head in range(40):
        (world.folder / "cache").joinpath("qrmi-workflows/choice/recent.log").unlink(
            missing_ok=True
        )
        chosen[one("ibm_*", replace(JOB, key=f"head {head}")).qpu] += 1

    assert min(chosen["ibm_fez"], chosen["ibm_torino"]) >= 10
    assert one("ibm_*", replace(JOB, key="a")).qpu


def test_the_same_head_makes_the_same_choice_among_equals(world):
    def choice() -> str:
        world.forget()
        return one("ibm_*", replace(JOB, key="step 5")).qpu

    assert len({choice() for _ in range(5)}) == 1


def test_a_qpu_that_has_just_refused_is_avoided(world):
    world.set_queues(ibm_fez=0, ibm_torino=50)
    assert one("ibm_*", HERE, avoid={"ibm_fez"}).qpu == "ibm_torino"


def test_only_the_qpus_that_a_job_holds_are_candidates_in_it(world):
    held = replace(HERE, only=frozenset({"ibm_torino", "small"}))
    world.set_queues(ibm_fez=0, ibm_torino=9)
    assert one("ibm_*", held).qpu == "ibm_torino"
    with pytest.raises(UnknownQPUError, match="'ibm_fez' among the QPUs that this job holds"):
        one("ibm_fez|ibm_fez", replace(held, only=frozenset({"small"})), min_qubits=1)


def test_a_silent_vendor_delays_only_the_first_choice(world):
    world.answers["ibm_fez"] = ResourceError("no answer")
    for _ in range(3):
        one("ibm_*")
    assert world.asked["ibm_fez"] == 1


def test_targets_are_asked_for_only_if_they_matter(world):
    one("ibm_*")
    assert not any(name.startswith("target") for name in world.asked)
    one("ibm_*", where="queue < 5")
    assert not any(name.startswith("target") for name in world.asked)
    one("ibm_*", min_qubits=5)
    assert world.asked["target of ibm_fez"] == 1


def test_a_survey_has_all_candidates_in_the_order_of_choice(world):
    world.set_queues(ibm_fez=3, ibm_torino=1)
    (constraint,) = parse_qpus(None, where="qubits > 100 and queue < 10")

    found = survey(constraint, HERE)

    assert [each.name for each in found.ranked][:2] == ["ibm_torino", "ibm_fez"]
    assert [each.name for each in found.fitting] == ["ibm_torino", "ibm_fez"]
    assert found.ranked[-1].reason


def test_an_account_is_expanded_and_listed_once(world, monkeypatch):
    account = {"name": "all", "type": "oqtopus", "environment": {}, "is_dynamic": True}
    (world.folder / "qrmi_config.json").write_text(json.dumps({"resources": [account]}))
    listed = []

    def list_discovered(found: QPUDefinition) -> list[QPUDefinition]:
        listed.append(found.name)
        return [replace(found, name=name, is_dynamic=False) for name in ("small", "other")]

    monkeypatch.setattr(candidates, "list_discovered", list_discovered)
    world.qubits["other"] = 64

    for _ in range(2):
        assert one(None, HERE, min_qubits=20).qpu == "other"
    assert listed == ["all"]
    assert one("small|ibm_fez", min_qubits=5).qpu == "small"


def test_an_account_whose_qpus_cannot_be_listed_is_said_to_be_one(world, monkeypatch):
    account = {"name": "all", "type": "iqm-server", "environment": {}, "is_dynamic": True}
    (world.folder / "qrmi_config.json").write_text(json.dumps({"resources": [account]}))

    def refuse(_: QPUDefinition) -> list[QPUDefinition]:
        raise RequestError("'all': QRMI cannot list the QPUs of type 'iqm-server'.")

    monkeypatch.setattr(candidates, "list_discovered", refuse)
    with pytest.raises(RequestError, match="'all': QRMI cannot list the QPUs of type"):
        one("*", HERE)


def test_a_cache_that_cannot_be_written_only_costs_time(world, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nothing")
    assert one("ibm_*", min_qubits=140).qpu == "ibm_fez"


def test_choosing_with_warm_caches_asks_nobody(world):
    one("*", min_qubits=5)
    before = Counter(world.asked)
    begun = time.process_time()
    one("*", min_qubits=5)
    assert time.process_time() - begun < 5
    states = {name: n for name, n in world.asked.items() if not name.startswith("target")}
    assert states == {name: n for name, n in before.items() if not name.startswith("target")}


def test_a_request_is_possible_if_a_qpu_fits_or_may_come_to_fit(world):
    world.set_queues(ibm_fez=9, ibm_torino=9)
    world.answers["small"] = OFFLINE

    for request, conditions in (
        ("ibm_*", {}),
        ("ibm_*", {"where": "queue < 5"}),
        ("small", {"min_qubits": 5}),
        ("ibm_fez+ibm_*", {}),
        ("anything", {}),
    ):
        require_possible(parse_qpus(request, **conditions), JOB)
    assert not (world.folder / "cache" / "qrmi-workflows" / "choice" / "recent.log").exists()


@pytest.mark.parametrize(
    ("request_", "conditions", "message"),
    [
        ("ibm_*", {"min_qubits": 1000}, "The nearest: ibm_fez: it has 156 qubits, not 1000"),
        ("ibm_fes|ibm_torin", {}, "unknown QPU 'ibm_fes' .* Did you mean 'ibm_fez'"),
        ("ibm_fez+ibm_torino+ibm_*", {}, "no QPU is left for ibm_"),
        ("ibm_*", {"where": "qbits > 5"}, "qubits"),
    ],
)
def test_what_can_never_be_satisfied_is_refused_at_once(world, request_, conditions, message):
    with pytest.raises((RequestError, UnknownQPUError), match=message):
        require_possible(parse_qpus(request_, **conditions), JOB)

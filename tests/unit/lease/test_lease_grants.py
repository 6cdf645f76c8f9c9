"""A QPU that the scheduler has not granted to the job is refused, and why."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from qrmi_workflows.config import site
from qrmi_workflows.config.job import JobQPU, write_job
from qrmi_workflows.config.site import SitePolicy
from qrmi_workflows.errors import ConfigError, RequestError, SchedulerError
from qrmi_workflows.lease import grants
from qrmi_workflows.lease.acquire import find_qpu
from qrmi_workflows.lease.grants import assume_granted, granted_qpus, require_grant
from qrmi_workflows.lease.shared import count_lanes
from qrmi_workflows.schedulers.slurm import Slurm

POLICY = """
[defaults]
gres = "qpu:{qpu}"
licence = "qpu_{qpu}"
[qpus.a]
[qpus.b]
"""

Answer = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def no_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what the scheduler has answered before."""
    monkeypatch.setattr(grants, "_answers", {})
    monkeypatch.setattr(grants, "_assumed", set())


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a job at a site with the QPUs a and b; c is defined, but not offered."""
    (tmp_path / "site.toml").write_text(POLICY)
    qpus = [{"name": name, "type": "pasqal-cloud"} for name in "abc"]
    (tmp_path / "qrmi_config.json").write_text(json.dumps({"resources": qpus}))
    return {
        "SLURM_JOB_ID": "17",
        "QPU_SITE": str(tmp_path / "site.toml"),
        "QPU_CONFIG": str(tmp_path / "qrmi_config.json"),
    }


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Answer:
    """Let Slurm answer that the job holds these QPUs; return the jobs that were asked for."""

    def answer(held: set[str] | None, error: SchedulerError | None = None) -> list[str]:
        asked: list[str] = []

        def granted_qpus(
            self: Slurm, site: SitePolicy, environ: Mapping[str, str], *, timeout: float
        ) -> dict[str, int] | None:
            assert 0 < timeout <= 10
            asked.append(environ["SLURM_JOB_ID"])
            if error is not None:
                raise error
            return None if held is None else dict.fromkeys(held, 1)

        monkeypatch.setattr(Slurm, "granted_qpus", granted_qpus)
        return asked

    return answer


def test_a_job_may_use_what_it_holds_and_is_asked_for_once(environ, answer):
    asked = answer({"a", "b"})

    for qpu in ("a", "b", "a"):
        require_grant(qpu, environ)

    assert asked == ["17"]


@pytest.mark.parametrize(("held", "shown"), [({"b"}, "b"), (set(), "no QPU of the site policy")])
def test_another_qpu_is_refused_with_the_options_that_request_it(environ, answer, held, shown):
    answer(held)

    with pytest.raises(RequestError) as refused:
        require_grant("a", environ)

    assert str(refused.value) == (
        f"QPU 'a' was not granted to job 17, which holds {shown}. Submit the job with "
        "`--gres=qpu:a:1 --licenses=qpu_a:1`. (A site lets jobs use the QPU without a grant by "
        f"setting `require_grant = false` in {environ['QPU_SITE']}.)"
    )


def test_nothing_is_asked_about_the_qpu_that_an_engine_submitted_the_job_for(environ, answer):
    asked = answer(set())
    assume_granted(["a"])

    require_grant("a", environ)

    assert asked == []
    with pytest.raises(RequestError):
        require_grant("b", environ)


def test_nothing_is_asked_outside_of_jobs(environ, answer):
    asked = answer(set())

    require_grant("a", {**environ, "SLURM_JOB_ID": ""})

    assert asked == []


def test_nothing_is_asked_for_a_qpu_that_the_site_does_not_offer(environ, answer):
    asked = answer(set())

    require_grant("c", environ)
    require_grant("a", {"SLURM_JOB_ID": "17", "XDG_CONFIG_HOME": "/nonexistent"})

    assert asked == []


@pytest.mark.parametrize("table", ["[defaults]", "[qpus.a]"])
def test_a_site_may_let_jobs_use_a_qpu_without_a_grant(environ, answer, table):
    asked = answer(set())
    policy = POLICY.replace(table, f"{table}\nrequire_grant = false")
    Path(environ["QPU_SITE"]).write_text(policy)

    require_grant("a", environ)

    assert asked == []


@pytest.mark.parametrize("error", [None, SchedulerError("`scontrol` did not end within 10 s.")])
def test_if_slurm_does_not_tell_the_qpu_may_be_used_and_a_warning_says_so(
    environ, answer, caplog, error
):
    asked = answer(None, error)

    with caplog.at_level(logging.WARNING):
        require_grant("a", environ)
        require_grant("a", environ)  # the next one asks again

    assert asked == ["17", "17"]
    reason = "the scheduler does not know the job" if error is None else str(error)
    assert f"cannot tell which QPUs job 17 was granted: {reason}" in caplog.text


def test_under_a_malformed_policy_the_qpu_may_be_used_and_a_warning_says_so(
    environ, answer, caplog
):
    asked = answer(set())
    Path(environ["QPU_SITE"]).write_text("[")

    require_grant("a", environ)

    assert asked == []
    assert "not valid TOML" in caplog.text


def test_the_name_may_be_omitted_if_the_job_holds_one_qpu(environ, answer):
    asked = answer({"b"})

    assert find_qpu(None, environ=environ).name == "b"
    require_grant("b", environ)
    assert asked == ["17"]


@pytest.mark.parametrize(
    ("held", "choices"),
    [
        ({"a", "b"}, "this job was granted 2: a, b"),
        (set(), "defines 3: a, b, c"),
        (None, "defines 3: a, b, c"),
    ],
)
def test_the_name_is_needed_if_the_job_holds_several_qpus_or_none(environ, answer, held, choices):
    answer(held)

    with pytest.raises(ConfigError, match=f"no QPU named, and .*{choices}. Name one: `--qpu NAME`"):
        find_qpu(None, environ=environ)


def test_of_the_qpus_that_a_site_has_acquired_the_granted_one_is_taken(environ, answer):
    """A site's plugin may describe all of its QPUs in each job's environment."""
    described = write_job(
        JobQPU(name=name, type="pasqal-cloud", environment={}, token=None) for name in "ab"
    )
    answer({"b"})

    assert find_qpu(None, environ=environ | described).name == "b"


def test_outside_of_jobs_nothing_is_granted(environ, answer):
    answer({"a"})

    assert granted_qpus({**environ, "SLURM_JOB_ID": ""}) == frozenset()


@pytest.mark.parametrize(
    ("sharing", "job", "lanes"),
    [("false", "17", 2), ("true", "17", 5), ("false", "", 5)],
)
def test_of_a_shared_qpu_a_job_has_as_many_lanes_as_it_holds_units(
    environ, monkeypatch, sharing, job, lanes
):
    policy = f'[qpus.a]\nlicence = "qpu_a"\nlanes = 5\nexclusive = {sharing}\n'
    Path(environ["QPU_SITE"]).write_text(policy)
    for name, value in {**environ, "SLURM_JOB_ID": job}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("QPU_LANES", raising=False)
    monkeypatch.setattr(Slurm, "granted_qpus", lambda *_, timeout: {"a": 2})

    assert count_lanes("a", None) == lanes
    monkeypatch.setenv("QPU_LANES", "3")
    assert count_lanes("a", None) == 3


def test_a_mistake_in_the_policy_is_reported_once_and_no_lease_fails(environ, monkeypatch, caplog):
    Path(environ["QPU_SITE"]).write_text("[qpus.a]\nlanes = 0\n")
    monkeypatch.setattr(site, "_warned", set())

    for _ in range(2):
        require_grant("a", environ)

    (warned,) = caplog.records
    assert f"{environ['QPU_SITE']}:2: [qpus.a]: lanes = 0: must be" in warned.getMessage()

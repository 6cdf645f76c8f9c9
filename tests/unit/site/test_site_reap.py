"""The order in which root ends the jobs of a site, and how long it relies on an answer."""

import os
from types import SimpleNamespace

import pytest

from qrmi_workflows.config.variables import QPU_STATE
from qrmi_workflows.errors import ConfigError, SchedulerError
from qrmi_workflows.lease.reap import Reaped
from qrmi_workflows.lease.records import OpenLease
from qrmi_workflows.site import reap
from qrmi_workflows.site.reap import reap_site
from qrmi_workflows.site.scripts import SitePaths

TWO_SILENT = {"1": "silent", "2": "silent", "3": "fez", "4": "fez"}
ALL_SILENT = dict.fromkeys(TWO_SILENT, "silent")


@pytest.fixture
def site(tmp_path, monkeypatch, request):
    """A site with a lease for each of four jobs; a silent QPU takes 20 seconds a job."""
    qpus = request.param
    monkeypatch.setenv(QPU_STATE, str(tmp_path))
    for job, qpu in qpus.items():
        monkeypatch.setenv("SLURM_JOB_ID", job)
        OpenLease.create(
            qpu=qpu, type="ibm-quantum-system", step="", acquire=0.1, config=None, token="t"
        )
    site = SimpleNamespace(state=tmp_path, now=0.0, ended=[], answers=[set(), set(), set()])

    def end_job(_state, job, **_options):
        qpu, is_silent = qpus[job], qpus[job] == "silent"
        site.ended.append(job)
        site.now += 20.0 if is_silent else 0.0
        return [Reaped(lease="x", qpu=qpu, released=not is_silent, error="-" * is_silent)]

    def live_jobs(**_options):
        if isinstance(answer := site.answers.pop(0), Exception):
            raise answer
        return answer

    monkeypatch.setattr(reap, "end_job", end_job)
    monkeypatch.setattr(reap, "live_jobs", live_jobs)
    monkeypatch.setattr(reap, "time", SimpleNamespace(monotonic=lambda: site.now))
    return site


@pytest.mark.parametrize("site", [TWO_SILENT], indirect=True)
def test_a_silent_vendor_is_not_at_the_expense_of_another(site):
    outcomes = reap_site(site.state, [])

    *before, last = site.ended
    assert (set(before), last) == ({"1", "3", "4"}, "2")  # each vendor has a thread of its own
    assert [each.outcome.released for each in outcomes] == [False, True, True, False]


@pytest.mark.parametrize("site", [ALL_SILENT], indirect=True)
def test_a_job_that_runs_again_in_the_meantime_keeps_its_lease(site):
    """It was requeued: what the scheduler said before is too old."""
    site.answers = [set(), {"3"}, {"3"}]

    reap_site(site.state, [])

    assert site.ended == ["1", "2", "4"]


@pytest.mark.parametrize("site", [ALL_SILENT], indirect=True)
def test_a_scheduler_that_falls_silent_is_an_error(site):
    site.answers = [set(), SchedulerError("no answer")]

    with pytest.raises(SchedulerError, match="no answer"):
        reap_site(site.state, [])

    assert site.ended == ["1", "2"]


@pytest.mark.root
def test_a_user_is_told_that_reaping_a_site_is_for_root(tmp_path, monkeypatch):
    """And not to make root's folder their own."""
    (tmp_path / "site.toml").write_text(f'[site]\nstate = "{tmp_path}"\n[qpus.fez]\n')
    (tmp_path / "qrmi.json").write_text('{"resources": []}')
    monkeypatch.setenv("QPU_SITE", str(tmp_path / "site.toml"))
    monkeypatch.setenv("QPU_CONFIG", str(tmp_path / "qrmi.json"))
    monkeypatch.setattr(os, "geteuid", lambda: 65534)

    with pytest.raises(ConfigError, match=r"are root's .*Run the command as root"):
        SitePaths.of_site()

"""How many jobs wait for each QPU in Slurm."""

from __future__ import annotations

from pathlib import Path

from qrmi_workflows.config.site import QPUPolicy, SitePolicy
from qrmi_workflows.schedulers.slurm_demand import parse_waiting_jobs


def site(*policies: QPUPolicy) -> SitePolicy:
    """Return a policy of these QPUs."""
    return SitePolicy(path=Path("site.toml"), qpus={each.name: each for each in policies})


FEZ = QPUPolicy(name="fez", gres="qpu:fez", licence="qpu_fez")
FRESNEL = QPUPolicy(name="FRESNEL", licence="pasqal")


def test_a_pending_job_waits_for_the_qpus_that_it_asks_for():
    shown = """\
gres:qpu:fez:1|qpu_fez|Licenses
gres/qpu:fez|qpu_fez:1,pasqal:1|Resources
N/A|pasqal|Priority
N/A||Priority
(null)|(null)|Priority
"""
    assert parse_waiting_jobs(site(FEZ, FRESNEL), shown) == {"fez": 2, "FRESNEL": 2}


def test_a_job_that_waits_for_another_job_or_is_held_is_not_counted():
    shown = "N/A|pasqal|Dependency\nN/A|pasqal|JobHeldUser\nN/A|pasqal|BeginTime\n"
    assert parse_waiting_jobs(site(FRESNEL), shown) == {"FRESNEL": 0}


def test_a_qpu_that_slurm_does_not_count_is_left_out():
    assert parse_waiting_jobs(site(QPUPolicy(name="other", partition="q")), "N/A||Priority\n") == {}

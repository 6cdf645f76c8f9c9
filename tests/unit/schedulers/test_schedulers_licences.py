"""Slurm's licences, parsed from recorded output."""

from __future__ import annotations

from pathlib import Path

import pytest

from qrmi_workflows.config.site import QPUPolicy, SitePolicy, load_site_policy
from qrmi_workflows.errors import RequestError
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.licences import offered_licences, require_licence

RECORDED = """\
LicenseName=qpu_FRESNEL Total=1 Used=0 Free=1 Reserved=0 Remote=no
LicenseName=qpu_ibm_fez Total=5 Used=2 Free=3 Reserved=0 Remote=no
LicenseName=qpu_far@slurmdb Total=2 Used=0 Free=2 Reserved=0 Remote=yes
"""
OFFERED = {"qpu_FRESNEL": 1, "qpu_ibm_fez": 5, "qpu_far@slurmdb": 2}


def site(licence: str | None) -> SitePolicy:
    """A site that grants QPU a by this licence."""
    return SitePolicy(path=Path("site.toml"), qpus={"a": QPUPolicy(name="a", licence=licence)})


def test_the_licences_of_a_cluster_are_read():
    assert offered_licences(RECORDED) == OFFERED
    assert offered_licences("No licenses configured in Slurm.\n") == {}


@pytest.mark.parametrize("licence", ["qpu_ibm_fez", "qpu_far@slurmdb", "qpu_far", None])
def test_a_licence_that_slurm_has_is_accepted(licence):
    require_licence(QPURequest(qpu="a"), site(licence), OFFERED)


def test_a_licence_that_slurm_lacks_is_refused_with_the_line_to_correct(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text('[qpus.a]\nlicence = "qpu_{qpu}"\n')

    with pytest.raises(RequestError) as caught:
        require_licence(QPURequest(qpu="a"), load_site_policy(path), OFFERED)

    assert str(caught.value) == (
        "QPU 'a': this Slurm has no licence 'qpu_a', which the site policy sets for it; it has: "
        f"qpu_FRESNEL, qpu_far@slurmdb, qpu_ibm_fez. Correct `licence` in {path}:2, or add "
        "`Licenses=qpu_a:1` to slurm.conf."
    )


def test_more_than_slurm_has_of_a_licence_are_refused():
    with pytest.raises(RequestError, match=r"this Slurm has 5 of licence.* Ask for qpu=5 or fewer"):
        require_licence(QPURequest(qpu="a", count=6), site("qpu_ibm_fez"), OFFERED)

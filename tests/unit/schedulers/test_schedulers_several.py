"""Several QPUs in one job: the options that ask for all of them, and what no job can hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from qrmi_workflows.config.site import QPUPolicy, SitePolicy
from qrmi_workflows.errors import RequestError
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.gres import require_one_node
from qrmi_workflows.schedulers.licences import require_licences
from qrmi_workflows.schedulers.several import (
    check_all_offered,
    compile_requests,
    join_options,
    qpu_names,
)
from qrmi_workflows.schedulers.slurm import Slurm

BOTH = [QPURequest(qpu="a"), QPURequest(qpu="b")]


def site(a: dict[str, object], b: dict[str, object]) -> SitePolicy:
    """A site with two QPUs."""
    qpus = {name: QPUPolicy(name=name, **keys) for name, keys in (("a", a), ("b", b))}
    return SitePolicy(path=Path("site.toml"), qpus=qpus)


@pytest.mark.parametrize("asked", ["a+b", "a, b", "a + b", ["a", "b"], ("a", "b")])
def test_names_are_read_from_a_text_or_a_list(asked):
    assert qpu_names(asked) == ("a", "b")


@pytest.mark.parametrize("asked", ["", "a+", "a++b", "a+a", [], ["a", ""], "a,b,a"])
def test_each_qpu_must_be_named_once(asked):
    with pytest.raises(RequestError, match=r"^--qpu=.*: must name one or more QPUs, each once"):
        qpu_names(asked, "--qpu")


def test_the_options_of_several_qpus_are_joined():
    a = ["--gres=qpu:a:1", "--licenses=a:1", "--partition=quantum"]
    b = ["--gres=qpu:b:1", "--qpu=b", "--partition=quantum"]
    both = ["--gres=qpu:a:1,qpu:b:1", "--licenses=a:1", "--partition=quantum", "--qpu=b"]

    assert join_options([a, b]) == both
    assert join_options([["--qpu=a"], ["--qpu=b"]]) == ["--qpu=a,b"]


def test_units_of_a_gres_that_several_qpus_have_add_up():
    """Without types, each QPU's unit is one of the same GRES."""
    a = ["--gres=qpu:1", "--licenses=qpu_a:1"]
    b = ["--gres=qpu:1", "--licenses=qpu_b:2"]

    assert join_options([a, b]) == ["--gres=qpu:2", "--licenses=qpu_a:1,qpu_b:2"]


def test_the_partitions_are_those_that_grant_all():
    lists = {"partitions": ("debug", "quantum", "long")}, {"partitions": ("long", "quantum")}

    assert compile_requests(BOTH, site(*lists), Slurm()) == ["--partition=quantum,long"]


def test_qpus_of_different_partitions_are_refused_unless_the_user_chooses_one():
    apart = site({"partition": "one", "licence": "a"}, {"partition": "two"})

    message = r"QPUs 'a' and 'b': they need different values of --partition \(one and two\), so one"
    with pytest.raises(RequestError, match=message):
        compile_requests(BOTH, apart, Slurm())
    assert compile_requests(BOTH, apart, Slurm(), partition="all") == ["--licenses=a:1"]


def test_qpus_that_no_node_has_together_are_refused():
    policy = site({"gres": "qpu:a"}, {"gres": "qpu:b"})

    require_one_node(BOTH, policy, ["qpu:a:1", "qpu:b:1,qpu:A:1(S:0)"])
    require_one_node(BOTH, site({"gres": "qpu"}, {"gres": "qpu"}), ["qpu:2"])
    require_one_node(BOTH, site({"gres": "qpu:a"}, {"licence": "b"}), ["qpu:a:1", "(null)"])
    message = r"'a' and 'b': no node of this Slurm has GRES qpu:a:1, qpu:b:1 together.*Use them in"
    with pytest.raises(RequestError, match=message):
        require_one_node(BOTH, policy, ["qpu:a:1,gpu:4", "qpu:b:1"])
    with pytest.raises(RequestError, match="GRES qpu:2 together"):
        require_one_node(BOTH, site({"gres": "qpu"}, {"gres": "qpu"}), ["qpu:1", "qpu:1"])


def test_qpus_that_share_a_licence_need_as_many_of_it():
    shared = site({"licence": "qpu"}, {"licence": "qpu"})

    require_licences(BOTH, shared, {"qpu": 2})
    require_licences(
        BOTH, site({"licence": "qpu_a"}, {"licence": "qpu_b"}), {"qpu_a": 1, "qpu_b@far": 1}
    )
    with pytest.raises(RequestError, match=r"needs 2 of licence 'qpu' .* Slurm has 1\. Use"):
        require_licences(BOTH, shared, {"qpu": 1})


def test_slurm_is_asked_for_each_qpu_and_for_all_together(commands):
    policy = site({"gres": "qpu:a"}, {"gres": "qpu:b", "licence": "b"})
    commands.write("scontrol", "echo LicenseName=b Total=1 Used=0")
    commands.write("sinfo", "printf 'qpu:a:1\\nqpu:b:1\\n'")

    check_all_offered(BOTH[:1], policy, Slurm())
    with pytest.raises(RequestError, match="together"):
        check_all_offered(BOTH, policy, Slurm())
    commands.write("sinfo", "echo qpu:a:1,qpu:b:1")
    check_all_offered(BOTH, policy, Slurm())
    commands.write("sinfo", "echo qpu:a:1")
    with pytest.raises(RequestError, match="no node of this Slurm has GRES 'qpu:b'"):
        check_all_offered(BOTH, policy, Slurm())

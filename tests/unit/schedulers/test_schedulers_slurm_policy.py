"""The site policy that Slurm's configuration suggests."""

from __future__ import annotations

import pytest

from qrmi_workflows.errors import ConfigError
from qrmi_workflows.schedulers.slurm_facts import Node, Partition, SlurmFacts
from qrmi_workflows.schedulers.slurm_policy import propose_settings


def facts(
    nodes: dict[str, dict[str, int]],
    licences: dict[str, int] | None = None,
    partitions: dict[str, Partition] | None = None,
    **more: object,
) -> SlurmFacts:
    """A Slurm with these nodes and licences."""
    made = {name: Node(host=name, version="", gres=gres) for name, gres in nodes.items()}
    everything = {
        "main": Partition(nodes=frozenset(nodes), groups=None, accounts=None, is_default=True)
    }
    return SlurmFacts(
        config={},
        nodes=made,
        licences=licences or {},
        partitions=partitions or everything,
        **more,  # type: ignore[arg-type]
    )


def test_a_typed_gres_and_a_licence_are_found():
    slurm = facts({"n1": {"qpu": 1, "qpu:a": 1}, "n2": {}}, {"qpu_a": 1, "matlab": 9})

    assert propose_settings(slurm, ["a"]) == {
        "a": {"gres": "qpu:{qpu}", "gres_nodes": "n1", "licence": "qpu_{qpu}"}
    }


def test_a_gres_without_types_is_that_of_all_qpus():
    slurm = facts({"gw": {"qpu": 2}}, {"a_lic": 1, "b": 3})

    assert propose_settings(slurm, ["a", "b"]) == {
        "a": {"gres": "qpu", "gres_nodes": "gw", "licence": "{qpu}_lic"},
        "b": {
            "gres": "qpu",
            "gres_nodes": "gw",
            "licence": "{qpu}",
            "lanes": 3,
            "exclusive": False,
        },
    }


def test_several_units_are_lanes_that_jobs_share():
    slurm = facts({"gw": {"qpu": 5, "qpu:a": 5}})

    assert propose_settings(slurm, ["a"])["a"] == {
        "gres": "qpu:{qpu}",
        "gres_nodes": "gw",
        "lanes": 5,
        "exclusive": False,
    }


def test_a_name_that_is_spelled_otherwise_is_kept_as_slurm_spells_it():
    slurm = facts({"gw": {"qpu:FEZ": 1}})

    assert propose_settings(slurm, ["fez"])["fez"]["gres"] == "qpu:FEZ"


def test_partitions_and_their_limits_are_found_if_a_job_must_name_one():
    main = Partition(nodes=frozenset({"n1"}), groups=None, accounts=None, is_default=True)
    limited = Partition(
        nodes=frozenset({"gw"}),
        groups=frozenset({"qc"}),
        accounts=frozenset({"bio", "chem"}),
        is_default=False,
    )
    nodes: dict[str, dict[str, int]] = {"n1": {}, "gw": {"qpu:a": 1}}
    one = facts(nodes, partitions={"main": main, "quantum": limited})
    two = facts(nodes, partitions={"main": main, "quantum": limited, "debug": limited})

    assert propose_settings(one, ["a"])["a"] == {
        "gres": "qpu:{qpu}",
        "gres_nodes": "gw",
        "partition": "quantum",
        "groups": ["qc"],
        "accounts": ["bio", "chem"],
    }
    assert propose_settings(two, ["a"])["a"]["partitions"] == ["debug", "quantum"]


def test_the_spank_plugin_is_found():
    assert propose_settings(facts({"n1": {}}, has_qpu_option=True), ["a"]) == {
        "a": {"qpu_option": True}
    }


def test_qpus_that_nothing_defines_are_those_of_the_gres():
    assert list(propose_settings(facts({"n1": {"qpu:b": 1, "qpu:a": 1, "gpu:x": 1}}), [])) == [
        "a",
        "b",
    ]


def test_a_licence_of_another_qpu_with_a_longer_name_is_not_taken():
    assert propose_settings(facts({}, {"qpu_ibm_fez2": 1, "qpu_ibm_fez": 1}), ["ibm_fez"]) == {
        "ibm_fez": {"licence": "qpu_{qpu}"}
    }


def test_a_slurm_that_grants_no_qpu_is_an_error_that_says_how():
    with pytest.raises(ConfigError, match=r"for any of the QPUs a; its GRES are gpu, its licences"):
        propose_settings(facts({"n1": {"gpu": 1}}, {"matlab": 1}), ["a"])

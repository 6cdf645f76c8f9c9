"""What a rule itself says about its QPU, with Snakemake's own resources."""

from types import SimpleNamespace

import pytest
from snakemake import api  # noqa: F401 - first, because the modules below import each other
from snakemake.resources import Resources
from snakemake.rules import Rule

from qrmi_workflows.errors import RequestError
from snakemake_executor_plugin_slurm_qpu.stated_resources import (
    require_whole_count,
    stated_resources,
    stray_resource,
)


def parse(written):
    """Parse resources as written on the command line or in a profile."""
    written = [f"{name}={value}" for name, value in (written or {}).items()]
    return Resources.parse(written, allow_expressions=True)


def job(defaults=None, overwritten=None, **own):
    """Return a job of a rule, whose resources Snakemake has merged and rounded."""
    parsed = parse(overwritten)
    resources = parse(defaults)
    resources.update(Resources.from_mapping(own))
    resources.update(parsed)
    rule = SimpleNamespace(
        name="a",
        resources=resources,
        ruleinfo=SimpleNamespace(resources=((), own) if own else None),
        workflow=SimpleNamespace(
            resource_settings=SimpleNamespace(_parsed_overwrite_resources={"a": parsed})
        ),
    )
    rule.apply_input_function = lambda *args, **others: Rule.apply_input_function(
        rule, *args, **others
    )
    wildcards = {"i": "1"}
    known = {"input": (), "attempt": 1, "threads": 1, "rulename": "a", "async_run": None}
    values = {name: each.evaluate(wildcards, **known).value for name, each in resources.items()}
    return SimpleNamespace(
        rule=rule,
        is_norun=False,
        wildcards=wildcards,
        input=(),
        attempt=1,
        threads=1,
        resources=values,
    )


@pytest.mark.parametrize(
    ("resources", "found"),
    [
        ({"qpu_name": "a"}, ("qpu_name", "a")),
        ({"qpu_exclusive": 1}, ("qpu_exclusive", 1)),
        ({"qpu_name": "a", "qpu": None}, ("qpu_name", "a")),
        ({"qpu_name": lambda wildcards: "a"}, ("qpu_name", "a")),
        ({"qpu_name": "a", "qpu": 0}, None),
        ({"qpu_name": "a", "qpu": lambda wildcards: 0}, None),
        ({"qpu_exclusive": 0}, None),
        ({"mem_mb": 5}, None),
        ({}, None),
    ],
)
def test_a_name_without_a_count_is_a_mistake_of_the_rule(resources, found):
    assert stray_resource(job(**resources)) == found


def test_a_name_by_default_is_none_but_a_count_by_default_does_not_excuse_the_rules_own():
    assert stray_resource(job({"qpu_name": "'a'", "qpu": "0"})) is None
    assert stray_resource(job({"qpu_name": "'a'"})) is None
    assert stray_resource(job({"qpu": "0"}, qpu_name="a")) == ("qpu_name", "a")


def test_what_the_command_line_sets_for_the_rule_counts_as_its_own():
    assert "qpu" in stated_resources(job(overwritten={"qpu": "0"}, qpu_name="a").rule)
    assert stray_resource(job(overwritten={"qpu": "0"}, qpu_name="a")) is None
    assert stray_resource(job(overwritten={"qpu_name": "'a'"})) == ("qpu_name", "a")


@pytest.mark.parametrize(
    "bad",
    [
        job(qpu=0.5),
        job(qpu=1.5),
        job(qpu=lambda wildcards: 0.5),
        job(qpu=lambda wildcards, attempt: attempt / 2),
        job({"qpu": "0.5"}),
        job({"qpu": "0"}, overwritten={"qpu": "0.5"}),
    ],
)
def test_a_count_that_snakemake_rounds_is_refused(bad):
    with pytest.raises(RequestError, match=r"qpu=\d\.5: must be a positive integer, .* round"):
        require_whole_count(bad)


@pytest.mark.parametrize(
    "good",
    [
        job(),
        job(qpu=1),
        job(qpu=1.0),
        job(qpu=0),
        job(qpu=lambda wildcards: 2),
        job({"qpu": "1"}),
        job({"qpu": "0.5"}, qpu=1),
        job({"qpu": "1 if True else 0"}),
    ],
)
def test_a_whole_count_is_accepted(good):
    require_whole_count(good)

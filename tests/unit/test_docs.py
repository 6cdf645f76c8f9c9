"""The pages for users and administrators: their examples are what the code takes."""

import re
from pathlib import Path

import pytest
from pages import blocks

from qrmi_workflows.cli import qpu
from qrmi_workflows.config.qpus import load_qpus
from qrmi_workflows.config.site import load_site_policy
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.slurm import qpu_options

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def test_the_configuration_that_is_shown_is_read(tmp_path):
    path = tmp_path / "qrmi_config.json"
    path.write_text(blocks(DOCS / "site.md", "json")[0])

    assert load_qpus(path)["ibm_fez"].type == "ibm-quantum-compute-service"


def test_the_policy_that_is_shown_means_what_is_said(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text(blocks(DOCS / "site.md", "toml")[0])
    site = load_site_policy(path)

    options = {name: qpu_options(QPURequest(qpu=name), site.qpu(name)) for name in site.qpus}

    assert options["ibm_fez"] == ["--gres=qpu:ibm_fez:1", "--licenses=qpu_ibm_fez:1"]
    assert {"--qpu=FRESNEL", "--partition=quantum"} < set(options["FRESNEL"])
    assert site.qpu("ibm_fez").lanes == 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_that_is_named_exists(page):
    import click

    text = page.read_text(encoding="utf-8")
    for words in re.findall(r"`qpu ([a-z][a-z -]*)", text):
        context, command = click.Context(qpu), qpu
        for word in words.split():
            if isinstance(command, click.Group) and not word.startswith("-"):
                found = command.get_command(context, word)
                assert found is not None, f"{page.name}: qpu {words}"
                command = found
            elif word.startswith("--") and word != "--":
                known = {name for option in command.params for name in option.opts}
                assert word in known, f"{page.name}: qpu {words}"


def test_the_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\((?!https://)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_record_that_is_described_has_no_other_fields():
    from qrmi_workflows.lease.records import LeaseRecord

    assert not {"token", "environment"} & set(LeaseRecord.__dataclass_fields__)

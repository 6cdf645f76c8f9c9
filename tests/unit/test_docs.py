"""The pages: their examples are valid, and the names and links in them exist."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from pages import blocks

from qrmi_workflows.cli import qpu
from qrmi_workflows.config.qpus import load_qpus
from qrmi_workflows.config.site import load_site_policy
from qrmi_workflows.lease.record import LeaseRecord
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.slurm_options import qpu_options

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def name_of(page: Path) -> str:
    """Return a page's file name, as the test's id."""
    return page.name


def test_the_configuration_of_the_administrators_page_is_valid(tmp_path):
    path = tmp_path / "qrmi_config.json"
    path.write_text(blocks(DOCS / "site.md", "json")[0])

    assert load_qpus(path)["ibm_fez"].type == "ibm-quantum-compute-service"


def test_the_policy_of_the_administrators_page_has_the_effect_that_the_page_describes(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text(blocks(DOCS / "site.md", "toml")[0])
    site = load_site_policy(path)

    options = {name: qpu_options(QPURequest(qpu=name), site.qpu(name)) for name in site.qpus}

    assert options["ibm_fez"] == ["--gres=qpu:ibm_fez:1", "--licenses=qpu_ibm_fez:1"]
    assert {"--qpu=FRESNEL", "--partition=quantum"} < set(options["FRESNEL"])
    assert site.qpu("ibm_fez").lanes == 5


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_and_option_exists(page):
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


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file(page):
    for link in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_a_lease_record_has_no_field_for_secrets():
    assert not {"token", "environment"} & set(LeaseRecord.__dataclass_fields__)

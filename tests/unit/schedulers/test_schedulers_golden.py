"""Golden scripts: one request under every combination of what a site policy may set.

Each file in golden/ is for one kind of grant, and has the lines of site.toml above those of the job
script. To write the files anew: `python tests/unit/schedulers/test_schedulers_golden.py`.
"""

from __future__ import annotations

import itertools
import re
import sys
import tempfile
from pathlib import Path

import pytest

from qrmi_workflows.config.site import load_site_policy
from qrmi_workflows.errors import ConfigError
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.request import compile_request
from qrmi_workflows.schedulers.slurm import Slurm

GOLDEN = Path(__file__).parent / "golden"

GRES = {"no-gres": [], "typed-gres": ['gres = "qpu:{qpu}"'], "untyped-gres": ['gres = "qpu"']}
LICENCE = {"no-licence": [], "licence": ['licence = "qpu_{qpu}"']}
OPTION = {"no-option": [], "qpu-option": ["qpu_option = true"]}
SHARING: list[tuple[list[str], int]] = [
    ([], 1),
    (["lanes = 5", "exclusive = true"], 1),
    (["lanes = 5", "exclusive = true"], 2),
    (["lanes = 5", "exclusive = false"], 3),
    (["lanes = 5", "exclusive = false"], 6),
]
PARTITION = [[], ['partition = "quantum"'], ['partitions = ["quantum", "debug"]']]
KINDS = ["_".join(names) for names in itertools.product(GRES, LICENCE, OPTION)]


def render(kind: str, folder: Path) -> str:
    """Render the scripts of one kind of grant."""
    gres, licence, option = kind.split("_")
    grant = [*GRES[gres], *LICENCE[licence], *OPTION[option]]
    sections = [
        render_script([*grant, *sharing, *partition], count, folder)
        for (sharing, count), partition in itertools.product(SHARING, PARTITION)
    ]
    return "\n".join(sections)


def render_script(settings: list[str], count: int, folder: Path) -> str:
    """Render the script of a job that requests `count` units, or why it is refused."""
    path = folder / "site.toml"
    path.write_text("\n".join(["[qpus.ibm_fez]", *settings, ""]))
    lines = ["# [qpus.ibm_fez]", *(f"# {line}" for line in settings), f"# qpu={count}:"]
    try:
        request = QPURequest(qpu="ibm_fez", count=count)
        options = compile_request(request, load_site_policy(path), Slurm())
    except ConfigError as error:
        text = str(error).replace(str(path), "site.toml")
        return "\n".join([*lines, f"# refused: {text}", ""])
    return "\n".join(["#!/bin/sh", *lines, *map(Slurm().directive, options), ""])


def test_there_is_one_file_for_each_kind_of_grant():
    assert {path.name for path in GOLDEN.iterdir()} == {f"{kind}.sh" for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_becomes_the_options_in_the_golden_file(kind, tmp_path):
    assert render(kind, tmp_path) == (GOLDEN / f"{kind}.sh").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_counts_a_request_counts_the_same(kind):
    for script in (GOLDEN / f"{kind}.sh").read_text(encoding="utf-8").split("\n\n"):
        asked = re.search(r"^# qpu=(\d+):$", script, re.MULTILINE)
        counts = re.findall(r"^#SBATCH --(?:gres|licenses)=\S*:(\d+)$", script, re.MULTILINE)
        assert asked is not None
        assert set(counts) <= {asked[1]}
        if "refused" not in script:
            grants = re.findall(r"^# (gres|licence|qpu_option|partitions?) =", script, re.MULTILINE)
            assert len(re.findall(r"^#SBATCH ", script, re.MULTILINE)) == len(grants)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        for each in KINDS:
            (GOLDEN / f"{each}.sh").write_text(render(each, Path(temporary)))
    sys.exit(0)

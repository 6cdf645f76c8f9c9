"""tools/structure.py, on a tree whose numbers are known."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools/structure.py"
ENGINE = "snakemake_ext/snakemake_executor_plugin_slurm_qpu"
FILES = {
    "qrmi_workflows/__init__.py": "",
    "qrmi_workflows/errors.py": '''"""Errors."""

__all__ = ["A", "B", "c"]
A = B = 1  # noqa: S105
# Why.
c = """
# no comment"""  # noqa: S105 - a reason
''',
    "qrmi_workflows/state.py": """from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qrmi_workflows.config.site import Site, Sites
else:
    from qrmi_workflows import errors


def owner(_x):  # type: ignore[x]
    def inner():
        return 1

    return inner
""",
    "qrmi_workflows/config/__init__.py": "",
    "qrmi_workflows/config/site.py": """import qrmi_workflows.state as state


class Site:
    async def lease(self):
        from qrmi_workflows.lease import Lease
        return Lease


class _Sites: ...
""",
    "qrmi_workflows/lease.py": "from qrmi_workflows import held, errors\nLease = held.x\n",
    "qrmi_workflows/held.py": "def x():\n    from qrmi_workflows.lease import Lease\n",
    "parsl_ext/apps/one.py": "import qrmi_workflows\nimport parsl\n",
    f"{ENGINE}/executor.py": "import snakemake_executor_plugin_slurm_qpu.executor\n",
    "examples/bell.py": "import this_is_not_read\n",
}
TYPING_CYCLE = ["qrmi_workflows.config.site", "qrmi_workflows.state"]
CYCLE = ["qrmi_workflows.held", "qrmi_workflows.lease"]


@pytest.fixture
def checkout(tmp_path):
    for name, source in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return tmp_path


def run(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def found(checkout):
    return json.loads(run(checkout, "--json").stdout)


def test_modules_lines_and_comments_are_counted_by_layer(found):
    assert {layer: list(sizes.values()) for layer, sizes in found["layers"].items()} == {
        "qrmi_workflows.errors": [1, 7, 4, 50.0],
        "qrmi_workflows.state": [1, 13, 9, 0.0],
        "qrmi_workflows.config": [2, 10, 6, 0.0],
        "qrmi_workflows.lease": [1, 2, 2, 0.0],
        "parsl_ext.apps": [1, 2, 2, 0.0],
        "qrmi_workflows": [1, 0, 0, 0.0],
        "qrmi_workflows.held": [1, 2, 2, 0.0],
        "snakemake_executor_plugin_slurm_qpu.executor": [1, 1, 1, 0.0],
        "total": [9, 37, 26, 7.7],
    }
    assert list(found["layers"]["total"]) == ["modules", "lines", "code", "comments per 100"]


def test_an_import_cycle_for_types_only_is_not_one_at_run_time(found):
    assert found["cycles"] == [TYPING_CYCLE, CYCLE]
    assert found["cycles at run time"] == [CYCLE]


def test_upward_imports_are_found_wherever_they_stand(found):
    assert found["upward imports"] == [
        "qrmi_workflows.config.site:6 imports qrmi_workflows.lease (function)",
        "qrmi_workflows.state:4 imports qrmi_workflows.config.site (typing)",
    ]
    assert found["not placed"] == ["qrmi_workflows.held"]


def test_sizes_are_summed_up(found):
    lines = {"median": 2, "90th": 13, "max": 13, "of": "qrmi_workflows.state"}
    functions = {"median": 2.5, "90th": 5, "max": 5, "of": "qrmi_workflows.state.owner"}
    names = {"median": 1, "90th": 3, "max": 3, "of": "qrmi_workflows.errors"}

    assert found["lines per module"] == lines
    assert found["lines per function"] == functions
    assert found["public names per module"] == names


def test_the_text_says_the_same(checkout):
    text = run(checkout).stdout.splitlines()

    assert text[0].split() == ["layer", "modules", "lines", "code", "comments", "per", "100"]
    assert text[9].split() == ["total", "9", "37", "26", "7.7"]
    assert text[10:13] == ["cycles: 2", "  2 modules:", f"    {TYPING_CYCLE[0]}"]
    assert "upward imports: 2" in text
    last = "public names per module: median 1, 90th percentile 3, max 3 (qrmi_workflows.errors)"
    assert text[-1] == last


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    refused = run(tmp_path)

    assert refused.returncode == 2
    assert f"{tmp_path} holds none of qrmi_workflows, parsl_ext" in refused.stderr

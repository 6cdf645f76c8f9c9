"""The plugin as users install it: from wheels, beside the stock executor."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from snakemake_runs import Project

from qrmi_workflows.sandbox import Sandbox

pytestmark = [pytest.mark.slurm, pytest.mark.engines, pytest.mark.slow, pytest.mark.timeout(400)]

STOCK = ["--slurm-status-command=squeue", "--slurm-init-seconds-before-status-checks=2"]
ROOT = Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a clean environment with our wheels, without our source tree."""
    folder = tmp_path_factory.mktemp("wheels")
    wheels, venv = folder / "wheels", folder / "venv"
    call(*PIP, "wheel", "--quiet", "--no-deps", "-w", wheels, ROOT, ROOT / "snakemake_ext")
    call(sys.executable, "-m", "venv", "--without-pip", venv)
    found = venv / "bin" / "python"
    call(*PIP, "--python", found, "install", "--quiet", "--no-deps", *wheels.iterdir())
    (site,) = venv.glob("lib/python*/site-packages")
    # The dependencies come from this environment. A .pth file is not read in a folder that another
    # .pth names, so this brings no editable installs.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return found


def call(*argv: str | Path) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheels_contain_the_code_and_the_ready_made_rules(python: Path):
    shown = call(
        python,
        "-P",  # do not import from the folder that the tests run in
        "-c",
        "import qrmi_workflows as core, snakemake_executor_plugin_slurm_qpu.rules as rules, os\n"
        "print(core.__file__, rules.SNAKEFILE, os.path.exists(rules.SNAKEFILE), sep='\\n')",
    ).split()

    assert all(path.startswith(str(python.parents[1])) for path in shown[:2])
    assert shown[2] == "True"


@pytest.mark.parametrize(
    ("executor", "resources"),
    [
        (["slurm-qpu"], 'qpu=1, qpu_name="ibm_fez"'),
        (["slurm", *STOCK], 'gres="qpu:ibm_fez:1"'),
    ],
)
def test_both_executors_run_a_rule(python: Path, tmp_path, sandbox: Sandbox, executor, resources):
    project = Project(tmp_path, sandbox)
    project.write(
        f"""
        rule any:
            output: "any.txt"
            resources: {resources}
            shell: "scontrol show job $SLURM_JOB_ID > {{output}}"
        """
    )

    done = subprocess.run(
        [python, "-m", "snakemake", "--jobs", "2", "--executor", *executor],
        cwd=tmp_path,
        env=project.environ,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "qpu:ibm_fez:1" in project.read("any.txt")

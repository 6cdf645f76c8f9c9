"""The set-up script and the Makefile, on machines where something is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("sh", "make", "cat", "cksum", "dirname", "rm", "mkdir", "chmod")
SLURM = (
    "munged",
    "slurmctld",
    "slurmd",
    "sbatch",
    "srun",
    "sinfo",
    "squeue",
    "scancel",
    "scontrol",
    "ps",
)
RECORD = 'echo "$(basename "$0") $*" >>"$CALLS"'


class Machine:
    """A checkout, and a PATH with only the commands that a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.checkout, self.bin = folder / "checkout", folder / "bin"
        self.calls = folder / "calls"
        self.calls.touch()
        for part in ("tools", "snakemake_ext", ".venv/bin"):
            (self.checkout / part).mkdir(parents=True)
        for name in ("Makefile", "tools/setup", "constraints.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, self.checkout / name)
        shutil.copy(ROOT / "snakemake_ext/pyproject.toml", self.checkout / "snakemake_ext")
        self.bin.mkdir()
        for name in (*TOOLS, "basename"):
            found = shutil.which(name)
            assert found is not None
            (self.bin / name).symlink_to(found)
        self.is_user(0)

    def has(self, name: str, script: str = ":") -> None:
        """Put a command on PATH."""
        self.write(self.bin / name, script)

    def write(self, path: Path, script: str) -> None:
        """Write a script."""
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def is_user(self, uid: int) -> None:
        """Set the user id that `id` prints."""
        self.has("id", f"echo {uid}")

    def has_venv(self) -> None:
        """Create a .venv whose Python records its calls."""
        self.write(self.checkout / ".venv/bin/python", RECORD)
        self.has_pip_of(self.checkout)

    def has_pip_of(self, checkout: Path) -> None:
        """Create the pip of a .venv that was made for a checkout."""
        where = f"{checkout}/.venv/lib/python3.11/site-packages/pip"
        self.write(self.checkout / ".venv/bin/pip", f'echo "pip 25.0 from {where} (python 3.11)"')

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the checkout."""
        environ = {"PATH": str(self.bin), "CALLS": str(self.calls)}
        return subprocess.run(
            argv, cwd=self.checkout, env=environ, capture_output=True, text=True, check=False
        )

    def setup(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run tools/setup."""
        return self.run(str(self.bin / "sh"), "tools/setup", *arguments)

    def called(self) -> list[str]:
        """Return the recorded calls."""
        return self.calls.read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def install(names: tuple[str, ...]) -> str:
    """Return an apt-get that records its calls, and whose `install` creates these commands."""
    create = "\n".join(f'ln -sf "$(command -v true)" "{name}"' for name in names)
    return f'{RECORD}\n[ "$1" = install ] || exit 0\ncd "$(dirname "$0")"\n{create}'


def test_an_installed_slurm_is_left_alone(machine: Machine) -> None:
    """Nothing is installed and nothing printed."""
    for name in SLURM:
        machine.has(name)
    machine.has("apt-get", RECORD)
    done = machine.setup("slurm", "x")
    assert (done.returncode, done.stdout, done.stderr, machine.called()) == (0, "", "", [])


def test_root_installs_slurm_from_the_distribution(machine: Machine) -> None:
    """The package lists are updated first, and recommended packages are left out."""
    for name in ("ln", "true"):
        found = shutil.which(name)
        assert found is not None
        (machine.bin / name).symlink_to(found)
    machine.has("apt-get", install(SLURM))
    done = machine.setup("slurm", "x")
    assert done.returncode == 0, done.stderr
    assert machine.called() == [
        "apt-get update",
        "apt-get install -y --no-install-recommends slurm-wlm munge procps",
    ]


@pytest.mark.parametrize(
    ("uid", "apt", "reason"),
    [
        (1000, RECORD, "not root"),
        (0, None, "no apt-get"),
        (0, "exit 100", "apt-get failed, see .setup.log"),
        (0, "exit 0", "apt-get failed, see .setup.log"),
    ],
)
def test_missing_slurm_is_reported_in_one_line(
    machine: Machine, uid: int, apt: str | None, reason: str
) -> None:
    """The line says why it cannot be installed and what to do."""
    machine.is_user(uid)
    if apt:
        machine.has("apt-get", apt)
    done = machine.setup("slurm", "what to do now.")
    assert done.returncode == 1
    assert done.stderr == (
        f"Slurm is missing and cannot be installed ({reason}): what to do now.\n"
    )
    assert machine.called() == []


def test_root_installs_the_accountings_database_but_no_service(machine: Machine) -> None:
    """The package mariadb-server would start a database of the system's own."""
    for name in ("ln", "true"):
        found = shutil.which(name)
        assert found is not None
        (machine.bin / name).symlink_to(found)
    programs = ("mariadbd", "mariadb-install-db", "slurmdbd")
    machine.has("apt-get", install(programs))
    assert machine.setup("accounting").returncode == 0
    wanted = [
        "apt-get update",
        "apt-get install -y --no-install-recommends mariadb-server-core mariadb-client-core "
        "slurmdbd",
    ]
    assert machine.called() == wanted
    assert machine.setup("accounting").returncode == 0
    assert machine.called() == wanted


def test_a_missing_database_is_reported_in_one_line(machine: Machine) -> None:
    """If it cannot be installed, the line says why and what to do."""
    machine.is_user(1000)
    done = machine.setup("accounting")
    assert done.returncode == 1
    assert done.stderr == (
        "MariaDB and slurmdbd are missing and cannot be installed (not root): as root, run "
        "`apt-get install mariadb-server-core mariadb-client-core slurmdbd`.\n"
    )


def test_root_installs_a_compiler_if_there_is_none(machine: Machine) -> None:
    """Any compiler that is there is used."""
    machine.has("apt-get", RECORD)
    assert machine.setup("compiler").returncode == 0
    assert machine.called() == [
        "apt-get update",
        "apt-get install -y --no-install-recommends gcc libc6-dev",
    ]
    machine.has("cc")
    assert machine.setup("compiler").returncode == 0
    assert len(machine.called()) == 2


def test_a_missing_compiler_is_reported_in_one_line(machine: Machine) -> None:
    """Only root can install one."""
    machine.is_user(1000)
    done = machine.setup("compiler")
    assert done.returncode == 1
    assert done.stderr == (
        "There is no C compiler, cc. As root, run `apt-get install gcc libc6-dev`.\n"
    )


def test_make_test_without_slurm_fails_with_one_line(machine: Machine) -> None:
    """The line says what to install and how to run the tests that need no Slurm."""
    machine.is_user(1000)
    machine.has_venv()
    done = machine.run(str(machine.bin / "make"), "test")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert "`apt-get install slurm-wlm munge procps`" in line
    assert "`make test-noslurm`" in line
    assert machine.called() == []


def test_make_demo_without_slurm_runs_on_the_emulator_alone(machine: Machine) -> None:
    """One line says so, and the demo is called with `--no-slurm`."""
    machine.is_user(1000)
    machine.has_venv()
    done = machine.run(str(machine.bin / "make"), "demo")
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "on the emulator alone" in done.stderr
    assert machine.called()[-1] == "python examples/demo.py --no-slurm"


def test_make_demo_with_slurm(machine: Machine) -> None:
    """The demo is called without `--no-slurm`."""
    for name in SLURM:
        machine.has(name)
    machine.has_venv()
    done = machine.run(str(machine.bin / "make"), "demo")
    assert done.returncode == 0, done.stderr
    assert machine.called()[-1].rstrip() == "python examples/demo.py"


def test_packages_are_installed_only_when_they_change(machine: Machine) -> None:
    """They are installed at first and after a change of the constraints, but not in between."""
    machine.has_venv()
    assert machine.setup("venv").returncode == 0
    (pip,) = [call for call in machine.called() if "install" in call]
    assert pip.endswith("-c constraints.txt -e .[dev] -e ./snakemake_ext")
    count = len(machine.called())
    assert machine.setup("venv").stdout == ""
    assert len(machine.called()) == count
    with (machine.checkout / "constraints.txt").open("a") as constraints:
        constraints.write("click==8.5.1\n")
    assert machine.setup("venv").returncode == 0
    assert len(machine.called()) == 2 * count


def test_packages_that_failed_to_install_are_tried_again(machine: Machine) -> None:
    """A failed installation is not recorded as done."""
    machine.has_venv()
    machine.write(machine.checkout / ".venv/bin/python", 'case "$*" in *install*) exit 1 ;; esac')
    assert machine.setup("venv").returncode == 1
    machine.has_venv()
    assert machine.setup("venv").returncode == 0
    assert any("install" in call for call in machine.called())


def test_a_venv_that_was_moved_is_recreated(machine: Machine) -> None:
    """Its commands would still run in the old place."""
    machine.has_venv()
    machine.has_pip_of(machine.checkout.parent)
    machine.has("python3", RECORD)
    assert machine.setup("venv").returncode == 0
    assert "python3 -m venv --clear .venv" in machine.called()


def test_another_python_gets_a_venv_of_its_own(machine: Machine) -> None:
    """A command that exists without working, as pyenv's shims do, does not count."""
    machine.has("python3.12", "exit 127")
    done = machine.setup("python", "3.12")
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        "Python 3.12 is not installed here, so the tests do not run with it."
    ]
    (machine.checkout / ".venv-3.12/bin").mkdir(parents=True)
    machine.write(machine.checkout / ".venv-3.12/bin/python", RECORD)
    machine.has("python3.12", RECORD)
    assert machine.setup("python", "3.12").returncode == 0
    assert "python3.12 -m venv --clear .venv-3.12" in machine.called()
    *_, installed, compiled = machine.called()
    assert installed.endswith("-c constraints.txt -e .[dev] -e ./snakemake_ext")
    assert "-m compileall -q qrmi_workflows parsl_ext snakemake_ext" in compiled


def test_python_without_venv(machine: Machine) -> None:
    """Debian packages it separately. Root installs the package; others are told to."""
    machine.has("python3", "exit 1")
    machine.is_user(1000)
    done = machine.setup("venv")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "Python has no module venv. As root, run `apt-get install python3-venv`."
    ]
    machine.is_user(0)
    machine.has("apt-get", RECORD)
    machine.setup("venv")
    assert machine.called()[1] == (
        "apt-get install -y --no-install-recommends python3 python3-venv"
    )


def test_the_tutorial_is_unpacked_and_its_programs_are_installed(machine: Machine) -> None:
    """This happens once, and for root only; another user is told what to do."""
    machine.has_venv()
    machine.is_user(1000)
    done = machine.setup("tutorial")
    assert done.returncode == 1
    assert "cannot be set up (not root). Run `make test-tutorial` as root" in done.stderr
    machine.is_user(0)
    programs = ("bwa", "samtools", "bcftools")
    for name in ("ln", "true"):
        machine.has(name, f'exec {shutil.which(name)} "$@"')
    machine.has("apt-get", install(programs) + "\nexit 0")
    machine.has("dpkg-deb", f"{RECORD}\nmkdir usr")
    assert machine.setup("tutorial").returncode == 0
    assert machine.called()[-3:] == [
        "apt-get install -y --no-install-recommends bwa samtools bcftools",
        "apt-get download snakemake-doc",
        "dpkg-deb -x snakemake-doc_*.deb .",
    ]
    count = len(machine.called())
    assert machine.setup("tutorial").returncode == 0
    assert len(machine.called()) == count + 1  # Python is called to look for pysam


def test_packages_on_the_primitives_share_the_venv_except_one(machine: Machine) -> None:
    """mitiq gets a venv with an older NumPy, which takes everything else from .venv."""
    machine.has_venv()
    machine.has("grep", f'exec {shutil.which("grep")} "$@"')
    (machine.checkout / ".venv/lib/python3.11/site-packages").mkdir(parents=True)
    for folder in (".venv-mitiq/bin", ".venv-mitiq/lib/python3.11/site-packages"):
        (machine.checkout / folder).mkdir(parents=True)
    machine.write(machine.checkout / ".venv-mitiq/bin/python", f'{RECORD}\ncat >>"$CALLS"')
    done = machine.setup("packages")
    assert done.returncode == 0, done.stderr
    calls = "\n".join(machine.called())
    assert "-e .[dev,sqd] -e ./snakemake_ext mthree qiskit-addon-cutting" in calls
    assert "-m venv --clear .venv-mitiq" in calls
    assert "mitiq==" in calls
    assert "\nscipy==" in calls
    assert "\nnumpy==" not in calls
    (shared,) = (machine.checkout / ".venv-mitiq/lib").glob("*/site-packages/shared.pth")
    assert f"{machine.checkout}/.venv/lib/python3.11/site-packages" in shared.read_text()
    assert machine.setup("packages").stdout == ""


def test_every_tier_has_a_target() -> None:
    """No folder of tests is missing from `make test` and `make test-packages`."""
    argv = ["make", "--dry-run", "test", "test-packages"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    words = {
        word for line in done.stdout.splitlines() if "pytest " in line for word in line.split()
    }
    folders = {f"tests/{path.parent.name}" for path in ROOT.glob("tests/*/test_*.py")}
    assert folders <= words


def test_no_two_test_modules_have_the_same_name() -> None:
    """Pytest imports them by name: in a run of several tiers, the second is an error."""
    names = Counter(path.name for path in ROOT.glob("tests/**/*.py"))

    assert {name for name, count in names.items() if count > 1} == {"conftest.py"}


def test_ci_runs_every_target() -> None:
    """Continuous integration has no set-up of its own."""
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = [line.strip() for line in script.read_text().splitlines()]
    assert [line for line in lines if "make " in line and not line.startswith("#")] == [
        "make lint",
        "make coverage",
        "make test-slurm",
        "make test-slow",
        "OTHER_SERVERS=1 make test-pythons PYTHONS=3.13",
        "make test-servers",
        "make test-accounting",
        "make test-tutorial",
        "make test-packages",
        "exec make test-parsl-suite",
    ]

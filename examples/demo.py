"""Run Snakemake and Parsl workflows on two emulated QPUs, and check their results.

    python examples/demo.py               on a personal Slurm cluster, started for the demo
    python examples/demo.py --no-slurm    the same workflows on the emulator alone

All output goes to `demo-run/`. The exit code is 1 if an answer is wrong or a lease was not
released.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from demo_report import Report, collect
from rich.console import Console

from qrmi_workflows import QPUError
from qrmi_workflows.emulator import Control, start_emulator
from qrmi_workflows.sandbox import Sandbox

EXAMPLES = Path(__file__).parent.resolve()
RUN = Path("demo-run").resolve()
STATE = RUN / "state"
ENGINE_PID = RUN / "engine.pid"
RELEASE_SECONDS = 30.0

progress = Console(stderr=True)


@dataclass(frozen=True, kw_only=True)
class Site:
    """The environment and options that the workflows run with."""

    environment: Mapping[str, str]
    snakemake: tuple[str, ...]
    parsl: tuple[str, ...]
    emulator: Path
    slurm: bool


@contextmanager
def slurm_site() -> Iterator[Site]:
    """Start a personal Slurm cluster with two emulated QPUs, and stop it at the end."""
    sandbox = Sandbox(RUN / "sandbox")
    with show_progress("Slurm with two emulated QPUs"):
        sandbox.up()
    try:
        yield Site(
            environment={**os.environ, **sandbox.environment()},
            snakemake=("--executor", "slurm-qpu", "--jobs", "4", "--slurm-qpu-mark-all"),
            parsl=(),
            emulator=RUN / "sandbox" / "emulator",
            slurm=True,
        )
    finally:
        sandbox.down()


@contextmanager
def embedded_site() -> Iterator[Site]:
    """Start two emulated QPUs; the workflows' jobs run as processes on this machine."""
    with start_emulator(RUN / "emulator") as emulator:
        no_proxy = dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1")
        yield Site(
            environment={**os.environ, **no_proxy, "QPU_CONFIG": str(emulator.config_path)},
            snakemake=("--cores", "2"),
            parsl=("--local",),
            emulator=emulator.folder,
            slurm=False,
        )


def run_workflows(site: Site) -> Report:
    """Run one workflow engine after the other, because both use the same QPU."""
    with show_progress("Snakemake: hydrogen's energy curve on ibm_fez, antennas on FRESNEL"):
        options = ("--snakefile", str(EXAMPLES / "Snakefile"), *site.snakemake)
        run("snakemake", ["python", "-m", "snakemake", *options], site)
    with show_progress("Parsl: a variational loop on ibm_fez"):
        loop = ("python", str(EXAMPLES / "h2" / "vqe.py"), "h2/target.json")
        options = ("--output", "vqe/vqe.json", "--address", "127.0.0.1", *site.parsl)
        run("vqe", [*loop, *options], site)
    wait_for_releases()
    jobs = output_of(["scontrol", "show", "job", "--oneliner"], site) if site.slurm else ""
    return collect(RUN, Control(site.emulator).counters(), jobs)


def wait_for_releases() -> None:
    """Wait until every lease is released, because Parsl exits before its last block has ended.

    The report lists a lease that is still open after the time limit.
    """
    deadline = time.monotonic() + RELEASE_SECONDS
    while any((STATE / "leases" / "open").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)


def output_of(argv: list[str], site: Site) -> str:
    """Return the output of a command."""
    return subprocess.run(
        argv, env=site.environment, check=True, capture_output=True, text=True, timeout=60
    ).stdout


def run(name: str, argv: list[str], site: Site) -> None:
    """Run a program; if it fails, print the end of its log and exit."""
    log = RUN / f"{name}.log"
    tools = os.pathsep.join([str(Path(sys.executable).parent), site.environment["PATH"]])
    environment = {**site.environment, "PATH": tools, "QPU_STATE": str(STATE)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv,
            cwd=RUN,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    ENGINE_PID.write_text(str(process.pid), encoding="utf-8")
    try:
        code = process.wait()
    except BaseException:
        interrupt(process)
        raise
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        sys.exit(
            "\n".join([*lines[-40:], f"demo: {name} failed with exit code {code}. See {log}."])
        )


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a program and its children as Ctrl-C does, so that they release their leases."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def show_progress(title: str) -> Iterator[None]:
    """Show what is running, and then how long it took."""
    start = time.monotonic()
    with progress.status(title):
        yield
    progress.print(f"{time.monotonic() - start:6.1f} s  {title}", highlight=False)


def clear() -> None:
    """Remove the files of an earlier run, and the processes if it was killed."""
    with suppress(OSError, ValueError, psutil.Error):
        engine = psutil.Process(int(ENGINE_PID.read_text(encoding="utf-8")))
        if engine.cwd() == str(RUN):
            os.killpg(engine.pid, signal.SIGKILL)
    if (RUN / "sandbox").exists():
        Sandbox(RUN / "sandbox").down()
    shutil.rmtree(RUN, ignore_errors=True)
    (RUN / "vqe").mkdir(parents=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-slurm", action="store_true", help="run on the emulator alone")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        clear()
        with embedded_site() if arguments.no_slurm else slurm_site() as site:
            report = run_workflows(site)
    except QPUError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        return 130
    report.print(as_json=arguments.json)
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())

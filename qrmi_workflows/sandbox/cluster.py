"""A sandbox's life: up, healed, down."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from qrmi_workflows.emulator.settings import read_settings
from qrmi_workflows.errors import SandboxError, SchedulerError
from qrmi_workflows.sandbox import render
from qrmi_workflows.sandbox.daemons import Daemon, daemons_of, emulator_port
from qrmi_workflows.sandbox.files import write_files
from qrmi_workflows.sandbox.layout import (
    Layout,
    Programs,
    default_directory,
    find_programs,
    is_private,
    make_runtime_directory,
)
from qrmi_workflows.sandbox.processes import (
    adopters,
    daemon_environment,
    end,
    families,
    jobs_among,
    leftovers,
    running,
    start,
    wait_until,
)
from qrmi_workflows.sandbox.state import (
    State,
    are_free,
    free_ports,
    locked,
    loopback_address,
    read_state,
    write_state,
)
from qrmi_workflows.schedulers.base import run_command

__all__ = ["DaemonStatus", "Sandbox", "SandboxStatus"]

_READY_SECONDS = 30.0
_END_SECONDS = 10.0
_POLL_SECONDS = 0.05
_MOST_NODES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonStatus:
    """One daemon of a sandbox.

    Attributes:
        name: `munged`, `emulator`, `slurmctld` or `slurmd-NODE`.
        pid: Its process id, also when that process has ended.
        port: Its TCP port, where it has one.
        alive: Whether it runs.
    """

    name: str
    pid: int
    port: int | None
    alive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxStatus:
    """How a sandbox is.

    Attributes:
        directory: Its state folder.
        state: `up`, `broken` (a daemon is gone) or `down`.
        qpus: The names of its QPUs.
        daemons: Its daemons; none when it is down.
    """

    directory: Path
    state: str
    qpus: tuple[str, ...]
    daemons: tuple[DaemonStatus, ...]

    @property
    def dead(self) -> tuple[str, ...]:
        """The names of the daemons that are gone."""
        return tuple(daemon.name for daemon in self.daemons if not daemon.alive)


class Sandbox:
    """A personal Slurm cluster with emulated QPUs, in a folder of its own.

    Args:
        directory: The state folder; `$QPU_SANDBOX` or one of the user's when it is `None`.

    Raises:
        SandboxError: slurm.conf cannot hold this path.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._layout = Layout((directory or default_directory()).expanduser().resolve())

    @property
    def directory(self) -> Path:
        """The state folder."""
        return self._layout.directory

    def up(
        self,
        *,
        nodes: int | None = None,
        qpus: Sequence[str] = (),
        config: Path | None = None,
    ) -> tuple[str, ...]:
        """Start whatever of the sandbox does not run: all of it, or what was killed.

        Args:
            nodes: How many nodes; 2 when it is `None`.
            qpus: Emulated QPUs as `NAME=TYPE[:MODEL]`; the emulator's default when empty.
            config: The emulator's settings, a TOML file.

        Returns:
            The names of the daemons that were started; none when it was up already.

        Raises:
            SandboxError: Slurm is not installed, a daemon did not start, or the sandbox is up
                with other nodes or QPUs.
            EmulatorError: A QPU that the emulator does not have.
        """
        _check_nodes(nodes)
        programs = find_programs()
        read_settings(config, qpus)  # refuses what cannot be emulated, before anything is made
        read_state(self._layout)  # and another user's sandbox
        self._layout.create()
        with locked(self._layout):
            state = read_state(self._layout)
            if state is not None:
                _refuse_changes(state, self._layout, nodes=nodes, qpus=qpus, config=config)
                return self._start(_revived(state), programs)
            _copy_settings(config, self._layout)
            try:
                return self._start(_new_state(nodes or 2, qpus), programs)
            except BaseException:
                self._stop(grace=0.0)
                raise

    def down(self, *, grace: float = 10.0) -> bool:
        """Cancel all jobs, and end every process of the sandbox.

        Args:
            grace: How long jobs may take to end by themselves, in seconds.

        Returns:
            Whether there was anything to end.

        Raises:
            SandboxError: A process could not be ended.
        """
        if read_state(self._layout) is None and not self.directory.is_dir():
            return False
        with locked(self._layout):
            if read_state(self._layout) is None and not leftovers(self._layout):
                return False
            self._stop(grace)
            return True

    def status(self) -> SandboxStatus:
        """Look at every daemon."""
        state = read_state(self._layout)
        if state is None:
            return SandboxStatus(directory=self.directory, state="down", qpus=(), daemons=())
        ports = _ports(state, self._layout)
        daemons = tuple(
            DaemonStatus(name=name, pid=record.pid, port=ports.get(name), alive=record.alive)
            for name, record in state.daemons.items()
        )
        whole = len(daemons) == state.nodes + 3 and all(daemon.alive for daemon in daemons)
        return SandboxStatus(
            directory=self.directory,
            state="up" if whole else "broken",
            qpus=tuple(self._emulated(state)),
            daemons=daemons,
        )

    def environment(self, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Return the variables that lead a process to this sandbox; none is a credential.

        Args:
            environ: That process's environment: PATH and no_proxy are added to, not replaced.
        """
        return render.environment(self._layout, environ)

    def _start(self, state: State, programs: Programs) -> tuple[str, ...]:
        layout = self._layout
        write_files(layout, state, programs, self._emulated(state))
        environ = daemon_environment(layout)
        started, waiting = [], []
        for daemon in daemons_of(state, layout, programs, environ):
            record = state.daemons.get(daemon.name)
            if record is None or not record.alive:
                record = start(daemon.argv, layout.log(daemon.name), environ)
                started.append(daemon.name)
                state = state.with_daemon(daemon.name, record)
                write_state(layout, state)
            if daemon.first:
                self._wait(daemon, state)
            else:
                waiting.append(daemon)
        for daemon in waiting:
            self._wait(daemon, state)
        return tuple(started)

    def _emulated(self, state: State) -> dict[str, int]:
        """Return the names of the QPUs, and how many lanes each has."""
        settings = read_settings(_settings_file(self._layout), state.qpus)
        return {name: qpu.lanes for name, qpu in settings.qpus.items()}

    def _wait(self, daemon: Daemon, state: State) -> None:
        name, log = daemon.name, self._layout.log(daemon.name)
        wait_until(daemon.ready, name, state.daemons[name], log, seconds=_READY_SECONDS)

    def _stop(self, grace: float) -> None:
        layout = self._layout
        state = read_state(layout)
        daemons = state.daemons if state else {}
        slurm = {name: record for name, record in daemons.items() if name.startswith("slurm")}
        services = [record for name, record in daemons.items() if name not in slurm]
        controller = slurm.get("slurmctld")
        answers = controller is not None and controller.alive
        if answers:
            _cancel_jobs(layout)
            _wait_for_jobs(layout, grace)
        else:
            _forget_jobs(layout)
        # Jobs that did not end by themselves: the emulator answers while they end their leases.
        kept = families([*services, *([controller] if controller else [])])
        kept |= {record.pid for record in slurm.values()}
        end((job for job in jobs_among(leftovers(layout)) if job.pid not in kept), grace=2.0)
        if answers:
            _wait_for_jobs(layout, _END_SECONDS)
        end(running(slurm.values()), grace=_END_SECONDS)
        end(running(services), grace=_END_SECONDS)
        self._end_leftovers()
        if state:
            shutil.rmtree(state.runtime, ignore_errors=True)
        layout.state_file.unlink(missing_ok=True)

    def _end_leftovers(self) -> None:
        deadline = time.monotonic() + _END_SECONDS
        while left := [*leftovers(self._layout), *adopters(self._layout)]:
            if time.monotonic() > deadline:
                pids = [process.pid for process in left]
                raise SandboxError(f"processes {pids} of {self.directory} outlived SIGKILL.")
            end(leftovers(self._layout), grace=0.0)
            time.sleep(_POLL_SECONDS)


def _check_nodes(nodes: int | None) -> None:
    if nodes is not None and not 1 <= nodes <= _MOST_NODES:
        raise SandboxError(f"{nodes} nodes; allowed are 1 to {_MOST_NODES}. Choose one of these.")


def _new_state(nodes: int, qpus: Sequence[str]) -> State:
    controller, *others = free_ports(nodes + 1)
    return State(
        nodes=nodes,
        qpus=tuple(qpus),
        runtime=make_runtime_directory(),
        address=loopback_address(socket.gethostname()),
        controller_port=controller,
        node_ports=tuple(others),
    )


def _revived(state: State) -> State:
    """Give a sandbox of which nothing runs (a reboot, say) what it has lost meanwhile."""
    if any(record.alive for record in state.daemons.values()):
        return state
    if not is_private(state.runtime):
        state = replace(state, runtime=make_runtime_directory())
    if not are_free([state.controller_port, *state.node_ports]):
        controller, *others = free_ports(state.nodes + 1)
        state = replace(state, controller_port=controller, node_ports=tuple(others))
    return state


def _refuse_changes(
    state: State,
    layout: Layout,
    *,
    nodes: int | None,
    qpus: Sequence[str],
    config: Path | None,
) -> None:
    settings = _settings_file(layout)
    differs = {
        f"{state.nodes} nodes": nodes not in (None, state.nodes),
        f"QPUs {', '.join(state.qpus) or 'by default'}": bool(qpus) and tuple(qpus) != state.qpus,
        "other settings of the emulator": config is not None
        and (settings is None or config.read_bytes() != settings.read_bytes()),
    }
    if found := [what for what, changed in differs.items() if changed]:
        raise SandboxError(
            f"the sandbox in {layout.directory} runs with {' and '.join(found)}. End it with "
            "`qpu sandbox down` first, or name another folder with --dir."
        )


def _settings_file(layout: Layout) -> Path | None:
    return layout.emulator_settings if layout.emulator_settings.exists() else None


def _copy_settings(config: Path | None, layout: Layout) -> None:
    if config is None:
        layout.emulator_settings.unlink(missing_ok=True)
    else:
        layout.emulator_settings.write_bytes(config.read_bytes())


def _ports(state: State, layout: Layout) -> dict[str, int | None]:
    nodes = {f"slurmd-n{number}": port for number, port in enumerate(state.node_ports, start=1)}
    return {"emulator": emulator_port(layout), "slurmctld": state.controller_port} | nodes


def _cancel_jobs(layout: Layout) -> None:
    with suppress(SchedulerError):  # slurmctld hangs: its jobs are killed instead
        run_command([str(layout.wrappers / "scancel"), "--me"])


def _wait_for_jobs(layout: Layout, seconds: float) -> None:
    """Wait until slurmctld has seen every job end, and no node has still to report it."""
    queue = [str(layout.wrappers / "squeue"), "--noheader", "--format=%i"]
    deadline = time.monotonic() + seconds
    with suppress(SchedulerError):
        while run_command(queue).stdout.strip() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)


def _forget_jobs(layout: Layout) -> None:
    """Drop the jobs of a controller that was killed: they must not run when it starts again."""
    for path in layout.controller_state.glob("job_state*"):
        path.unlink()

"""Start, repair and stop a sandbox."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from qrmi_workflows.emulator.settings_file import read_settings
from qrmi_workflows.errors import SandboxError, SchedulerError
from qrmi_workflows.sandbox import render
from qrmi_workflows.sandbox.daemons import Daemon, emulator_port, list_daemons
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
    daemon_environment,
    find_processes,
    find_reapers,
    process_tree_pids,
    running_processes,
    start_daemon,
    terminate,
    wait_until_ready,
    without_slurmstepd,
)
from qrmi_workflows.sandbox.state import (
    State,
    are_free,
    find_free_ports,
    lock_sandbox,
    loopback_address,
    read_state,
    write_state,
)
from qrmi_workflows.schedulers.command import run_command

__all__ = ["DaemonStatus", "Sandbox", "SandboxStatus"]

_READY_SECONDS = 30.0
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.05
_MAX_NODES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonStatus:
    """One daemon of a sandbox.

    Attributes:
        name: `munged`, `emulator`, `slurmctld` or `slurmd-NODE`.
        pid: Its process id, even after that process has ended.
        port: Its TCP port, if it has one.
        alive: Whether it is running.
    """

    name: str
    pid: int
    port: int | None
    alive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxStatus:
    """The state of a sandbox and of its daemons.

    Attributes:
        directory: Its state directory.
        state: `up`, `broken` (a daemon has died) or `down`.
        qpus: The names of its QPUs.
        daemons: Its daemons; empty when it is down.
    """

    directory: Path
    state: str
    qpus: tuple[str, ...]
    daemons: tuple[DaemonStatus, ...]

    @property
    def dead(self) -> tuple[str, ...]:
        """The names of the daemons that have died."""
        return tuple(daemon.name for daemon in self.daemons if not daemon.alive)


class Sandbox:
    """A personal Slurm cluster with emulated QPUs, in its own directory.

    Args:
        directory: The state directory. By default `$QPU_SANDBOX`, or else
            `qrmi-workflows/sandbox` under `$XDG_STATE_HOME` (`~/.local/state`).

    Raises:
        SandboxError: slurm.conf cannot hold this path.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._layout = Layout((directory or default_directory()).expanduser().resolve())

    @property
    def directory(self) -> Path:
        """The state directory."""
        return self._layout.directory

    def up(
        self,
        *,
        nodes: int | None = None,
        qpus: Sequence[str] = (),
        config: Path | None = None,
    ) -> tuple[str, ...]:
        """Start every daemon that is not running: all of them, or those that have died.

        Args:
            nodes: The number of nodes; 2 by default.
            qpus: Emulated QPUs as `NAME=TYPE[:MODEL]`; if empty, the emulator's defaults.
            config: The emulator's settings file (TOML).

        Returns:
            The names of the daemons that were started; empty if the sandbox was already up.

        Raises:
            SandboxError: Slurm is not installed, a daemon did not start, or the sandbox is up
                with other nodes or QPUs.
            EmulatorError: The emulator cannot emulate one of the QPUs.
        """
        _check_nodes(nodes)
        programs = find_programs()
        read_settings(config, qpus)  # raises on a bad QPU before anything is created
        read_state(self._layout)  # raises if the sandbox belongs to another user
        self._layout.create()
        with lock_sandbox(self._layout):
            state = read_state(self._layout)
            if state is not None:
                _check_unchanged(state, self._layout, nodes=nodes, qpus=qpus, config=config)
                return self._start(_prepare_restart(state), programs)
            _copy_settings(config, self._layout)
            try:
                return self._start(_new_state(nodes or 2, qpus), programs)
            except BaseException:
                self._stop(grace=0.0)
                raise

    def down(self, *, grace: float = 10.0) -> bool:
        """Cancel all jobs and stop every process of the sandbox.

        Args:
            grace: Seconds for jobs to end on their own.

        Returns:
            False if the sandbox was already down.

        Raises:
            SandboxError: A process outlived SIGKILL.
        """
        if read_state(self._layout) is None and not self.directory.is_dir():
            return False
        with lock_sandbox(self._layout):
            if read_state(self._layout) is None and not find_processes(self._layout):
                return False
            self._stop(grace)
            return True

    def status(self) -> SandboxStatus:
        """Check whether each daemon is running."""
        state = read_state(self._layout)
        if state is None:
            return SandboxStatus(directory=self.directory, state="down", qpus=(), daemons=())
        ports = _daemon_ports(state, self._layout)
        daemons = tuple(
            DaemonStatus(name=name, pid=record.pid, port=ports.get(name), alive=record.alive)
            for name, record in state.daemons.items()
        )
        complete = len(daemons) == state.nodes + 3 and all(daemon.alive for daemon in daemons)
        return SandboxStatus(
            directory=self.directory,
            state="up" if complete else "broken",
            qpus=tuple(self._lanes_by_qpu(state)),
            daemons=daemons,
        )

    def environment(self, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Return the variables that point a process at this sandbox; none is a credential.

        Args:
            environ: The process's environment; its PATH and no_proxy are extended, not replaced.
        """
        return render.environment(self._layout, environ)

    def _start(self, state: State, programs: Programs) -> tuple[str, ...]:
        layout = self._layout
        write_files(layout, state, programs, self._lanes_by_qpu(state))
        environ = daemon_environment(layout)
        started, pending = [], []
        for daemon in list_daemons(state, layout, programs, environ):
            record = state.daemons.get(daemon.name)
            if record is None or not record.alive:
                record = start_daemon(daemon.argv, layout.log(daemon.name), environ)
                started.append(daemon.name)
                state = state.with_daemon(daemon.name, record)
                write_state(layout, state)
            if daemon.blocks_next:
                self._wait_until_ready(daemon, state)
            else:
                pending.append(daemon)
        for daemon in pending:
            self._wait_until_ready(daemon, state)
        return tuple(started)

    def _lanes_by_qpu(self, state: State) -> dict[str, int]:
        """Return the number of lanes of each QPU."""
        settings = read_settings(_settings_file(self._layout), state.qpus)
        return {name: qpu.lanes for name, qpu in settings.qpus.items()}

    def _wait_until_ready(self, daemon: Daemon, state: State) -> None:
        name, log = daemon.name, self._layout.log(daemon.name)
        wait_until_ready(daemon.is_ready, name, state.daemons[name], log, seconds=_READY_SECONDS)

    def _stop(self, grace: float) -> None:
        layout = self._layout
        state = read_state(layout)
        daemons = state.daemons if state else {}
        slurm = {name: record for name, record in daemons.items() if name.startswith("slurm")}
        services = [record for name, record in daemons.items() if name not in slurm]
        controller = slurm.get("slurmctld")
        has_controller = controller is not None and controller.alive
        if has_controller:
            _cancel_jobs(layout)
            _wait_for_jobs(layout, grace)
        else:
            _delete_saved_jobs(layout)
        # Terminate jobs that have outlived the grace period while the emulator still runs, so that
        # they can release their leases.
        daemon_pids = process_tree_pids([*services, *([controller] if controller else [])])
        daemon_pids |= {record.pid for record in slurm.values()}
        job_processes = without_slurmstepd(find_processes(layout))
        terminate((job for job in job_processes if job.pid not in daemon_pids), grace=2.0)
        if has_controller:
            _wait_for_jobs(layout, _STOP_SECONDS)
        terminate(running_processes(slurm.values()), grace=_STOP_SECONDS)
        terminate(running_processes(services), grace=_STOP_SECONDS)
        self._kill_remaining()
        if state:
            shutil.rmtree(state.runtime, ignore_errors=True)
        layout.state_file.unlink(missing_ok=True)

    def _kill_remaining(self) -> None:
        deadline = time.monotonic() + _STOP_SECONDS
        while remaining := [*find_processes(self._layout), *find_reapers(self._layout)]:
            if time.monotonic() > deadline:
                pids = [process.pid for process in remaining]
                raise SandboxError(
                    f"processes {pids} of the sandbox in {self.directory} outlived SIGKILL. Use "
                    "`ps` to find out what blocks them, then run `qpu sandbox down` again."
                )
            terminate(find_processes(self._layout), grace=0.0)
            time.sleep(_POLL_SECONDS)


def _check_nodes(nodes: int | None) -> None:
    if nodes is not None and not 1 <= nodes <= _MAX_NODES:
        raise SandboxError(
            f"nodes={nodes}: must be 1 to {_MAX_NODES}. Choose a number in that range."
        )


def _new_state(nodes: int, qpus: Sequence[str]) -> State:
    controller, *others = find_free_ports(nodes + 1)
    return State(
        nodes=nodes,
        qpus=tuple(qpus),
        runtime=make_runtime_directory(),
        address=loopback_address(socket.gethostname()),
        controller_port=controller,
        node_ports=tuple(others),
    )


def _prepare_restart(state: State) -> State:
    """If no daemon is running, replace a lost runtime directory and ports now in use."""
    if any(record.alive for record in state.daemons.values()):
        return state
    if not is_private(state.runtime):
        state = replace(state, runtime=make_runtime_directory())
    if not are_free([state.controller_port, *state.node_ports]):
        controller, *others = find_free_ports(state.nodes + 1)
        state = replace(state, controller_port=controller, node_ports=tuple(others))
    return state


def _check_unchanged(
    state: State,
    layout: Layout,
    *,
    nodes: int | None,
    qpus: Sequence[str],
    config: Path | None,
) -> None:
    settings = _settings_file(layout)
    running_qpus = f"QPUs {', '.join(state.qpus)}" if state.qpus else "the default QPUs"
    is_different = {
        f"{state.nodes} nodes": nodes not in (None, state.nodes),
        running_qpus: bool(qpus) and tuple(qpus) != state.qpus,
        "other emulator settings": config is not None
        and (settings is None or config.read_bytes() != settings.read_bytes()),
    }
    if differences := [what for what, differs in is_different.items() if differs]:
        raise SandboxError(
            f"the sandbox in {layout.directory} is up with {' and '.join(differences)}. Stop it "
            "with `qpu sandbox down` first, or choose another directory with --dir."
        )


def _settings_file(layout: Layout) -> Path | None:
    return layout.emulator_settings if layout.emulator_settings.exists() else None


def _copy_settings(config: Path | None, layout: Layout) -> None:
    if config is None:
        layout.emulator_settings.unlink(missing_ok=True)
    else:
        layout.emulator_settings.write_bytes(config.read_bytes())


def _daemon_ports(state: State, layout: Layout) -> dict[str, int | None]:
    nodes = {f"slurmd-n{number}": port for number, port in enumerate(state.node_ports, start=1)}
    return {"emulator": emulator_port(layout), "slurmctld": state.controller_port} | nodes


def _cancel_jobs(layout: Layout) -> None:
    with suppress(SchedulerError):  # slurmctld hangs; _stop() kills its jobs
        run_command([str(layout.wrappers / "scancel"), "--me"])


def _wait_for_jobs(layout: Layout, seconds: float) -> None:
    """Wait until the queue is empty, also of completing jobs: their nodes have yet to report."""
    squeue = [str(layout.wrappers / "squeue"), "--noheader", "--format=%i"]
    deadline = time.monotonic() + seconds
    with suppress(SchedulerError):
        while run_command(squeue).stdout.strip() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)


def _delete_saved_jobs(layout: Layout) -> None:
    """Delete the saved jobs of a controller that has died, or its next start would run them."""
    for path in layout.controller_state.glob("job_state*"):
        path.unlink()

"""Start, repair and stop a sandbox."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qrmi_workflows.emulator.settings_file import read_settings
from qrmi_workflows.errors import SandboxError
from qrmi_workflows.sandbox import render
from qrmi_workflows.sandbox.accounting import create_database, find_database_programs
from qrmi_workflows.sandbox.changes import (
    NO_MULTIPLE_SLURMD,
    OneNodeOnlyError,
    require_unchanged,
    settings_file,
)
from qrmi_workflows.sandbox.daemons import Daemon, emulator_port, list_daemons
from qrmi_workflows.sandbox.files import first_job_id, write_files
from qrmi_workflows.sandbox.layout import (
    Layout,
    Programs,
    default_directory,
    find_programs,
    is_private,
    make_runtime_directory,
    runtime_directories,
)
from qrmi_workflows.sandbox.processes import (
    ProcessRecord,
    daemon_environment,
    find_processes,
    start_daemon,
    terminate,
    wait_until_ready,
)
from qrmi_workflows.sandbox.shutdown import stop_sandbox, stop_unrecorded
from qrmi_workflows.sandbox.state import (
    State,
    are_free,
    find_free_ports,
    lock_sandbox,
    loopback_address,
    read_state,
    write_state,
)
from qrmi_workflows.schedulers.command import require_success, run_command
from qrmi_workflows.schedulers.slurm_config import has_multiple_slurmd

__all__ = ["DaemonStatus", "Sandbox", "SandboxStatus"]

_READY_SECONDS = 30.0
_STOP_SECONDS = 10.0
_NODES = 2
_MAX_NODES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonStatus:
    """One daemon of a sandbox.

    Attributes:
        name: `munged`, `emulator`, `mariadbd`, `slurmdbd`, `slurmctld` or `slurmd-NODE`.
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
        state: `up`, `broken` (a daemon has died, or see `problem`) or `down`.
        problem: What is broken besides daemons that have died; empty if nothing is.
        remark: What differs from the usual sandbox, and why; empty if nothing does.
        qpus: The names of its QPUs.
        daemons: Its daemons; empty when it is down.
    """

    directory: Path
    state: str
    problem: str = ""
    remark: str = ""
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
        site_scripts: bool | None = None,
        accounting: bool | None = None,
    ) -> tuple[str, ...]:
        """Start every daemon that is not running: all of them, or those that have died.

        Args:
            nodes: The number of nodes; by default 2, or 1 if this Slurm cannot run several on one
                machine.
            qpus: Emulated QPUs as `NAME=TYPE[:MODEL]`; if empty, the emulator's defaults.
            config: The emulator's settings file (TOML).
            site_scripts: Whether the site's own scripts acquire and release the jobs' QPUs, as
                `qpu site install` sets them up; by default not.
            accounting: Whether Slurm keeps accounts (`sacct`), in a database of the sandbox's own;
                by default not.

        Returns:
            The names of the daemons that were started; empty if the sandbox was already up.

        Raises:
            SandboxError: Slurm is not installed or cannot run so many nodes on one machine, a
                daemon did not start, or the sandbox is up with other nodes or QPUs.
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
                require_unchanged(
                    state,
                    self._layout,
                    nodes=nodes,
                    qpus=qpus,
                    config=config,
                    site_scripts=site_scripts,
                    accounting=accounting,
                )
                return self._start(self._prepare_restart(state), programs, is_repair=True)
            if find_processes(self._layout):  # of a sandbox whose directory was deleted
                stop_sandbox(self._layout, None, grace=0.0)
                self._layout.create()
            _copy_settings(config, self._layout)
            try:
                state = _new_state(nodes or _NODES, qpus, self._layout, accounting=bool(accounting))
                state = replace(state, site_scripts=bool(site_scripts))
                return self._start_new(state, programs, is_fixed=nodes is not None)
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
        if not self.directory.is_dir():  # it was deleted, or never existed
            return self._stop_remains(grace)
        with lock_sandbox(self._layout):
            if read_state(self._layout) is None:
                return self._stop_remains(grace)
            self._stop(grace)
            return True

    def status(self) -> SandboxStatus:
        """Check whether each daemon is running."""
        state = read_state(self._layout)
        if state is None:
            lost = "its directory was deleted while it was up" if self._has_remains() else ""
            return SandboxStatus(
                directory=self.directory,
                state="broken" if lost else "down",
                problem=lost,
                qpus=(),
                daemons=(),
            )
        ports = _daemon_ports(state, self._layout)
        daemons = tuple(
            DaemonStatus(name=name, pid=record.pid, port=ports.get(name), alive=record.alive)
            for name, record in state.daemons.items()
        )
        expected = state.nodes + (3 if state.database_port is None else 5)
        complete = len(daemons) == expected and all(daemon.alive for daemon in daemons)
        lost = "" if is_private(state.runtime) else f"its directory {state.runtime} was deleted"
        return SandboxStatus(
            directory=self.directory,
            state="up" if complete and not lost else "broken",
            problem=lost,
            remark="" if state.multiple_slurmd else f"It has one node: {NO_MULTIPLE_SLURMD}.",
            qpus=tuple(self._lanes_by_qpu(state)),
            daemons=daemons,
        )

    def environment(self, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Return the variables that point a process at this sandbox; none is a credential.

        Args:
            environ: The process's environment; its PATH and no_proxy are extended, not replaced.
        """
        return render.environment(self._layout, environ)

    def _start_new(self, state: State, programs: Programs, *, is_fixed: bool) -> tuple[str, ...]:
        state = replace(state, first_job_id=first_job_id(self._layout, programs))
        try:
            self._start(state, programs)
        except OneNodeOnlyError:
            if is_fixed:  # the user wants so many nodes
                raise
            state = _with_one_node(read_state(self._layout) or state)
            self._start(state, programs)
        return tuple((read_state(self._layout) or state).daemons)

    def _start(
        self, state: State, programs: Programs, *, is_repair: bool = False
    ) -> tuple[str, ...]:
        layout = self._layout
        # Before anything is started, so that another command finds it if this one is killed.
        write_state(layout, state)
        lanes = self._lanes_by_qpu(state)
        write_files(layout, state, programs, lanes, keeps_policy=is_repair)
        if state.database_port is not None:
            create_database(layout, find_database_programs())
        environ = daemon_environment(layout)
        started, pending = [], []
        for daemon in list_daemons(state, layout, programs, environ):
            record = state.daemons.get(daemon.name)
            if record is None or not record.alive:
                record = start_daemon(
                    daemon.argv, layout.log(daemon.name), {**environ, **daemon.variables}
                )
                started.append(daemon.name)
                state = state.with_daemon(daemon.name, record)
                write_state(layout, state)
            if daemon.blocks_next:
                self._wait_until_ready(daemon, state)
            else:
                pending.append(daemon)
            if daemon.name == "slurmctld":
                _require_nodes_possible(state, programs, environ)
        for daemon in pending:
            self._wait_until_ready(daemon, state)
        return tuple(started)

    def _lanes_by_qpu(self, state: State) -> dict[str, int]:
        """Return the number of lanes of each QPU."""
        settings = read_settings(settings_file(self._layout), state.qpus)
        return {name: qpu.lanes for name, qpu in settings.qpus.items()}

    def _wait_until_ready(self, daemon: Daemon, state: State) -> None:
        name, log = daemon.name, self._layout.log(daemon.name)
        wait_until_ready(daemon.is_ready, name, state.daemons[name], log, seconds=_READY_SECONDS)

    def _prepare_restart(self, state: State) -> State:
        """Stop what cannot be repaired; replace a lost runtime directory and ports now in use."""
        stop_unrecorded(self._layout, (record.pid for record in state.daemons.values()))
        if not is_private(state.runtime):
            stop_sandbox(self._layout, state.runtime, grace=0.0)
            state = replace(state, runtime=make_runtime_directory(self._layout), daemons={})
        if any(record.alive for record in state.daemons.values()):
            return state
        database = [] if state.database_port is None else [state.database_port]
        if not are_free([state.controller_port, *state.node_ports, *database]):
            controller, other, *others = find_free_ports(state.nodes + 2)
            state = replace(state, controller_port=controller, node_ports=tuple(others))
            state = replace(state, database_port=other if database else None)
        return state

    def _stop(self, grace: float) -> None:
        state = read_state(self._layout)
        stop_sandbox(self._layout, state.runtime if state else None, grace=grace)

    def _has_remains(self) -> bool:
        return bool(find_processes(self._layout) or runtime_directories(self._layout))

    def _stop_remains(self, grace: float) -> bool:
        """Stop a sandbox whose state file was deleted; return whether there was anything left."""
        if not self._has_remains():
            return False
        self._stop(grace)
        return True


def _require_nodes_possible(state: State, programs: Programs, environ: Mapping[str, str]) -> None:
    """Refuse several nodes on a Slurm that would take their slurmd for one.

    Raises:
        SandboxError: The sandbox has several nodes, and Slurm cannot run them on one machine.
    """
    if state.nodes > 1:
        argv = [str(programs.clients["scontrol"]), "show", "config"]
        if not has_multiple_slurmd(require_success(run_command(argv, environ=environ)).stdout):
            raise OneNodeOnlyError(
                f"nodes={state.nodes}: {NO_MULTIPLE_SLURMD}. Use one node, or a Slurm that was "
                "built with that option, such as Debian's slurm-wlm."
            )


def _with_one_node(state: State) -> State:
    """Return a started sandbox's state with one node, without its controller, which is stopped."""
    daemons = dict(state.daemons)
    controller: ProcessRecord | None = daemons.pop("slurmctld", None)
    if controller is not None and (process := controller.process()):
        terminate([process], grace=_STOP_SECONDS)
    return replace(
        state, nodes=1, node_ports=state.node_ports[:1], multiple_slurmd=False, daemons=daemons
    )


def _check_nodes(nodes: int | None) -> None:
    if nodes is not None and not 1 <= nodes <= _MAX_NODES:
        raise SandboxError(
            f"nodes={nodes}: must be 1 to {_MAX_NODES}. Choose a number in that range."
        )


def _new_state(nodes: int, qpus: Sequence[str], layout: Layout, *, accounting: bool) -> State:
    controller, database, *others = find_free_ports(nodes + 2)
    return State(
        nodes=nodes,
        qpus=tuple(qpus),
        runtime=make_runtime_directory(layout),
        address=loopback_address(socket.gethostname()),
        controller_port=controller,
        node_ports=tuple(others),
        database_port=database if accounting else None,
    )


def _copy_settings(config: Path | None, layout: Layout) -> None:
    if config is None:
        layout.emulator_settings.unlink(missing_ok=True)
    else:
        layout.emulator_settings.write_bytes(config.read_bytes())


def _daemon_ports(state: State, layout: Layout) -> dict[str, int | None]:
    nodes = {f"slurmd-n{number}": port for number, port in enumerate(state.node_ports, start=1)}
    others = {"slurmctld": state.controller_port, "slurmdbd": state.database_port}
    return {"emulator": emulator_port(layout), **others, **nodes}

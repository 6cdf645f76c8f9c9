"""Write a sandbox's files."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from qrmi_workflows.sandbox import render
from qrmi_workflows.sandbox.layout import WRAPPERS_MARKER, Layout, Programs
from qrmi_workflows.sandbox.state import State
from qrmi_workflows.schedulers.command import run_command

__all__ = ["first_job_id", "write_files"]

_KEY_BYTES = 1024


def first_job_id(layout: Layout, programs: Programs) -> int:
    """Return the id of the first job if the controller has no saved state.

    What another release of Slurm has saved is deleted, because slurmctld exits if it cannot read
    it. The ids go on far above those of that state: the journal names steps by them.
    """
    release = ".".join(map(str, _slurm_version(programs)))
    written = layout.controller_state / "release"
    is_other = written.exists() and written.read_text(encoding="utf-8") != release
    if is_other:
        shutil.rmtree(layout.controller_state)
        layout.create()
    _write(written, release)
    return int(time.time()) // 60 if is_other else 1


def write_files(layout: Layout, state: State, programs: Programs, lanes: Mapping[str, int]) -> None:
    """Write the files that the daemons and commands read, except those the emulator writes.

    Args:
        layout: The sandbox's paths.
        state: Its nodes and ports.
        programs: The installed Slurm.
        lanes: The number of lanes of each QPU, by name.
    """
    cluster = render.Cluster(
        layout=layout,
        runtime=state.runtime,
        host=socket.gethostname().split(".")[0],
        address=state.address,
        user=_user_name(),
        controller_port=state.controller_port,
        first_job_id=state.first_job_id,
        node_ports=state.node_ports,
        qpus=tuple(lanes),
        # The only node is as large as the two that a sandbox has by default.
        cpus=8 if state.multiple_slurmd else 16,
    )
    _write(layout.slurm_conf, render.render_slurm_conf(cluster))
    _write(layout.etc / "gres.conf", render.render_gres_conf(lanes))
    _write(layout.etc / "cgroup.conf", render.render_cgroup_conf(_slurm_version(programs)))
    _write(layout.etc / "plugstack.conf", "")
    _write(layout.etc / "task_prolog", render.render_task_prolog(layout), mode=0o700)
    _write(layout.etc / "epilog", render.render_epilog(layout), mode=0o700)
    _write(layout.site_policy, render.render_site_policy(lanes))
    if not layout.munge_key.exists():
        _write(layout.munge_key, os.urandom(_KEY_BYTES))
    _write_wrappers(layout, programs)


def _write_wrappers(layout: Layout, programs: Programs) -> None:
    variables = {"SLURM_CONF": str(layout.slurm_conf)}
    commands: dict[str, list[str | Path]] = {
        name: [path] for name, path in programs.clients.items()
    }
    commands["qpu"] = [sys.executable, "-m", "qrmi_workflows"]
    (layout.wrappers / WRAPPERS_MARKER).touch()
    for name, argv in commands.items():
        _write(layout.wrappers / name, render.render_wrapper(argv, variables), mode=0o700)


def _write(path: Path, content: str | bytes, mode: int = 0o600) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    # The content may be secret: restrict the file before writing to it.
    temporary.touch(mode=mode)
    temporary.chmod(mode)
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _slurm_version(programs: Programs) -> tuple[int, ...]:
    """Return Slurm's version, such as `(22, 5)` for `slurm-wlm 22.05.8`, or `(0, 0)`."""
    found = re.search(r"(\d+)\.(\d+)", run_command([str(programs.slurmctld), "-V"]).stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)

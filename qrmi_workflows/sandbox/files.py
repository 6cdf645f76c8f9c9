"""Write a sandbox's files."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from qrmi_workflows.sandbox import render
from qrmi_workflows.sandbox.accounting import render_slurmdbd_conf
from qrmi_workflows.sandbox.layout import WRAPPERS_MARKER, Layout, Programs
from qrmi_workflows.sandbox.state import State
from qrmi_workflows.schedulers.command import run_command
from qrmi_workflows.site.install import SiteScripts
from qrmi_workflows.state.users import user_name

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


def write_files(
    layout: Layout,
    state: State,
    programs: Programs,
    lanes: Mapping[str, int],
    *,
    keeps_policy: bool = False,
) -> None:
    """Write the files that the daemons and commands read, except those the emulator writes.

    Args:
        layout: The sandbox's paths.
        state: Its nodes and ports.
        programs: The installed Slurm.
        lanes: The number of lanes of each QPU, by name.
        keeps_policy: Whether to keep a site policy that is there: its user may have edited it.
    """
    cluster = render.Cluster(
        layout=layout,
        runtime=state.runtime,
        host=socket.gethostname().split(".")[0],
        address=state.address,
        user=user_name(),
        controller_port=state.controller_port,
        first_job_id=state.first_job_id,
        node_ports=state.node_ports,
        qpus=tuple(lanes),
        # The only node is as large as the two that a sandbox has by default.
        cpus=8 if state.multiple_slurmd else 16,
        database_port=state.database_port,
        site_scripts=state.site_scripts,
    )
    _write(layout.slurm_conf, render.render_slurm_conf(cluster))
    _write(layout.etc / "gres.conf", render.render_gres_conf(lanes))
    _write(layout.etc / "cgroup.conf", render.render_cgroup_conf(_slurm_version(programs)))
    _write(layout.etc / "plugstack.conf", "")
    task_prolog = render.render_task_prolog(layout, site_scripts=state.site_scripts)
    _write(layout.etc / "task_prolog", task_prolog, mode=0o700)
    _write(layout.etc / "epilog", render.render_epilog(layout), mode=0o700)
    # Also without the site's scripts: root's files of a sandbox are not the machine's.
    if not (keeps_policy and layout.site_policy.exists()):
        policy = render.render_site_policy(lanes, state=layout.site / "state")
        _write(layout.site_policy, policy)
    if state.site_scripts:
        _write_site_scripts(layout, state.runtime)
    if state.database_port is not None:
        slurmdbd_conf = render_slurmdbd_conf(state.database_port, state.runtime)
        _write(layout.slurmdbd_conf, slurmdbd_conf)
    if not layout.munge_key.exists():
        _write(layout.munge_key, os.urandom(_KEY_BYTES))
    _write_wrappers(layout, programs)
    if state.site_scripts and os.geteuid() == 0:
        _open_to_all_users(layout)


def _open_to_all_users(layout: Layout) -> None:
    """Let the jobs of all users run Slurm's commands, as at a site; the keepers of stages do."""
    layout.wrappers.chmod(0o755)
    for path in layout.wrappers.iterdir():
        path.chmod(0o755)
    for name in ("slurm.conf", "gres.conf", "cgroup.conf", "plugstack.conf"):
        (layout.etc / name).chmod(0o644)


def _write_site_scripts(layout: Layout, runtime: Path) -> None:
    """Write the scripts that a site installs; they run the sandbox's own ones first.

    If root runs the sandbox, its jobs may be those of any user.
    """
    layout.site.mkdir(exist_ok=True)
    for folder in (layout.directory, layout.etc, layout.site, runtime):
        folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
    for path in (layout.etc / "task_prolog", layout.site_policy):
        path.chmod(0o755)
    scripts = SiteScripts(
        state=layout.site / "state",
        config=layout.qrmi_config,
        policy=layout.site_policy,
        path=str(layout.wrappers),
    )
    earlier = {name: [str(layout.etc / name)] for name in ("task_prolog", "epilog")}
    for name, text in scripts.render(earlier).items():
        _write(layout.site / name, text, mode=0o755)


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


def _slurm_version(programs: Programs) -> tuple[int, ...]:
    """Return Slurm's version, such as `(22, 5)` for `slurm-wlm 22.05.8`, or `(0, 0)`."""
    found = re.search(r"(\d+)\.(\d+)", run_command([str(programs.slurmctld), "-V"]).stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)

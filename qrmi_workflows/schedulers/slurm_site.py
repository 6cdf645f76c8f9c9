"""Slurm: the scripts that a site installs, and its lines in slurm.conf and gres.conf.

All but `find_conf` is pure. The scripts are short shell scripts that run the site's own ones first:
Slurm has room for one TaskProlog only. The Prolog and the Epilog then run Python. The TaskProlog
does not, because it runs for each task of each job step; it prints what the Prolog has prepared.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

__all__ = [
    "EPILOG_SECONDS",
    "PROLOG_SECONDS",
    "find_conf",
    "has_no_lease",
    "render_script",
    "render_task_prolog",
]

PROLOG_SECONDS = 75
"""After so many seconds, the Prolog is killed; Slurm's `PrologEpilogTimeout` must be longer."""

EPILOG_SECONDS = 60
"""After so many seconds, the Epilog is killed."""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NO_PROLOG = (
    "print qpu: Slurm ran no Prolog for this run of the job, as after a requeue within a second. "
    "So nobody has acquired its QPU. Submit the job again."
)
_HEAD = """\
#!/bin/sh
# Written by `qpu site install`, which overwrites it. Undo it with `qpu site uninstall`.
"""


def find_conf(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the path of slurm.conf: `$SLURM_CONF`, or the usual one."""
    return Path(environ.get("SLURM_CONF") or "/etc/slurm/slurm.conf")


def render_script(
    argv: Sequence[str | Path],
    *,
    seconds: float,
    earlier: Iterable[str] = (),
    path: str = "",
    unless: str = "",
) -> str:
    """Render a Prolog or an Epilog.

    Args:
        argv: The Python program.
        seconds: After how many seconds it is killed.
        earlier: The site's own scripts, which may be patterns; one that fails ends this one with
            its exit code, so that Slurm drains the node as before.
        path: Folders for the front of PATH.
        unless: A shell command that says whether there is nothing to do.
    """
    command = shlex.join(map(str, argv))
    return (
        f"{_HEAD}"
        f"PATH={shlex.quote(f'{path}:' if path else '')}{_PATH}; export PATH\n"
        f"{''.join(_run_earlier(pattern) for pattern in earlier)}"
        f"{f'{unless} && exit 0{chr(10)}' if unless else ''}"
        # Its own exit code is always 0: another one would drain the node.
        f"timeout --signal=KILL {seconds:g} {command} </dev/null\n"
        "exit 0\n"
    )


def render_task_prolog(state: Path, *, earlier: Iterable[str] = ()) -> str:
    """Render the TaskProlog.

    Args:
        state: The folder of root's files.
        earlier: The site's own scripts.
    """
    jobs = shlex.quote(str(state / "jobs"))
    own = "".join(f"{shlex.quote(script)} || exit $?\n" for script in earlier)
    return (
        f"{_HEAD}"
        f"{own}"
        "PATH=/usr/bin:/bin\n"
        f"job={jobs}/${{SLURM_JOB_ID:-none}}\n"
        'if [ -e "$job.ended" ]; then\n'
        f'  [ "${{SLURM_PROCID:-0}}" != 0 ] || echo {shlex.quote(_NO_PROLOG)}\n'
        "  exit 1\n"
        "fi\n"
        'if [ -r "$job/refused" ]; then\n'
        '  [ "${SLURM_PROCID:-0}" != 0 ] || cat "$job/refused"\n'
        "  exit 1\n"
        "fi\n"
        '[ ! -r "$job/environment" ] || cat "$job/environment"\n'
        # On the job's other nodes: there, the folder is not on the disk.
        "usage=${QPU_LEASE_USAGE%%:*}\n"
        '[ -z "$usage" ] || [ -d "${usage%/*}" ] || echo unset QPU_LEASE_USAGE\n'
        "exit 0\n"
    )


def has_no_lease(state: Path) -> str:
    """Return a shell command that says whether this node has acquired nothing for a job.

    That is so for most jobs of a site, and Python would take 0.1 s of processor time to find out.
    """
    file = f"{shlex.quote(str(state / 'jobs'))}/${{SLURM_JOB_ID:-none}}/node"
    return f'[ "$(cat {file} 2>/dev/null)" != "$SLURMD_NODENAME" ]'


def _run_earlier(pattern: str) -> str:
    # Not quoted: Slurm allows patterns such as /etc/slurm/prolog.d/*. Like Slurm, pass over one
    # that matches nothing: the shell leaves it as it is, and running that would drain the node.
    run = '[ ! -e "$script" ] || "$script" || exit $?'
    return f"for script in {pattern}; do {run}; done\n"

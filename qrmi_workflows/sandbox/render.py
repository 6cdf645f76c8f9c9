"""The files of a sandbox as text: Slurm's configuration, the site policy, the wrappers. All pure.

The settings hold for Slurm 22.05 and later. What each is for stands beside it in slurm.conf.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qrmi_workflows.config import CONFIG_VARIABLE, SITE_VARIABLE, STATE_VARIABLE
from qrmi_workflows.sandbox.layout import DIRECTORY_VARIABLE, Layout

__all__ = [
    "Cluster",
    "environment",
    "render_cgroup_conf",
    "render_gres_conf",
    "render_site_policy",
    "render_slurm_conf",
    "render_task_prolog",
    "render_wrapper",
]

_LOOPBACK = "127.0.0.1"
_PROXY_VARIABLES = ("no_proxy", "NO_PROXY")
_PATH = "/usr/local/bin:/usr/bin:/bin"
_LISTEN_ON_HOST = "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny"
_DISABLES_CGROUPS = (24, 5)

_SLURM_CONF = """\
# Written by `qpu sandbox up`, anew each time.
ClusterName=sandbox
SlurmctldHost={host}({address})
SlurmctldPort={controller_port}

# Admits its own user alone: the socket of a private munged in a folder of mode 0700.
AuthType=auth/munge
AuthInfo=socket={runtime}/munge.socket
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
{listen}

StateSaveLocation={layout.controller_state}
SlurmdSpoolDir={runtime}/%n
SlurmctldPidFile={runtime}/slurmctld.pid
SlurmdPidFile={runtime}/slurmd-%n.pid
SlurmdLogFile={layout.logs}/%n.log
SlurmctldSyslogDebug=quiet
SlurmdSyslogDebug=quiet
PlugStackConfig={layout.etc}/plugstack.conf
TaskProlog={layout.etc}/task_prolog
MailProg=/bin/true

# Needs neither root nor cgroups.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none

# Starts a job within a second; a node that comes back is used again.
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MinJobAge=300

# A licence excludes across the cluster, a GRES counts per node.
GresTypes=qpu
Licenses={licences}

# The nodes pretend to their sizes: they are all this one machine.
SlurmdParameters=config_overrides
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What a sandbox's Slurm consists of.

    Attributes:
        layout: The sandbox's paths.
        runtime: The short folder for sockets.
        host: This machine's short host name.
        address: The loopback address that the host name resolves to; `None` when it resolves to
            another one.
        user: Who runs it, and whom alone it admits.
        controller_port: slurmctld's TCP port.
        node_ports: The TCP port of each node's slurmd.
        qpus: The names of the QPUs.
    """

    layout: Layout
    runtime: Path
    host: str
    address: str | None
    user: str
    controller_port: int
    node_ports: tuple[int, ...]
    qpus: tuple[str, ...]


def render_slurm_conf(cluster: Cluster) -> str:
    """Render slurm.conf.

    Slurm listens on all addresses, or on the one that the host name resolves to: on the loopback
    interface alone where that is one of its addresses.
    """
    address = cluster.address or _LOOPBACK
    gres = ",".join(f"qpu:{name}:1" for name in cluster.qpus)
    nodes = (
        f"NodeName=n{number} NodeHostname=localhost NodeAddr={address} Port={port} "
        f"CPUs=8 RealMemory=65536 Gres={gres} State=UNKNOWN"
        for number, port in enumerate(cluster.node_ports, start=1)
    )
    return _SLURM_CONF.format(
        layout=cluster.layout,
        runtime=cluster.runtime,
        host=cluster.host,
        address=address,
        listen=_LISTEN_ON_HOST if cluster.address else "# The host name is no loopback address.",
        user=cluster.user,
        controller_port=cluster.controller_port,
        licences=",".join(f"qpu_{name}:1" for name in cluster.qpus),
        nodes="\n".join(nodes),
    )


def render_gres_conf(qpus: Iterable[str]) -> str:
    """Render gres.conf: one type of the GRES `qpu` for each QPU; no device file stands for it."""
    return "".join(f"Name=qpu Type={name} Count=1 Flags=CountOnly\n" for name in qpus)


def render_cgroup_conf(version: tuple[int, ...]) -> str:
    """Render cgroup.conf: from 24.05 on, slurmd asks for cgroups unless it is told not to.

    Args:
        version: Slurm's (`(22, 5)`); earlier ones refuse the word.
    """
    return "CgroupPlugin=disabled\n" if version >= _DISABLES_CGROUPS else ""


def render_site_policy(qpus: Mapping[str, int]) -> str:
    """Render site.toml (`qrmi_workflows.config.load_site_policy` reads it)."""
    tables = "".join(f'\n[qpus."{name}"]\nlanes = {lanes}\n' for name, lanes in qpus.items())
    return f'[defaults]\ngres = "qpu:{{qpu}}"\nlicence = "qpu_{{qpu}}"\n{tables}'


def render_wrapper(argv: Iterable[str | Path], variables: Mapping[str, str]) -> str:
    """Render a command that finds the sandbox whatever became of its caller's environment.

    For bash: Debian's sh drops the variables of a lease whose QPU has a `-` or `.` in its name.
    """
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    command = " ".join(shlex.quote(str(word)) for word in argv)
    return f'#!/bin/bash\n{exports}exec {command} "$@"\n'


def render_task_prolog(layout: Layout) -> str:
    """Render the TaskProlog: jobs find the sandbox too, `--export=NONE` or not.

    Slurm runs it in the environment of each task and sets what it prints as `export NAME=value`.
    QPU_CONFIG, QPU_SITE and QPU_STATE stay as the user set them.
    """
    always = {"SLURM_CONF": layout.slurm_conf, DIRECTORY_VARIABLE: layout.directory}
    lines = [
        "#!/bin/sh",
        'say() { printf \'export %s=%s\\n\' "$1" "$2"; }',
        f"bin={shlex.quote(str(layout.wrappers))}",
        *(f"say {name} {shlex.quote(str(path))}" for name, path in always.items()),
        *(
            f'[ -n "${name}" ] || say {name} {shlex.quote(str(path))}'
            for name, path in _places(layout).items()
        ),
        f'case "$PATH" in "$bin":*) ;; *) say PATH "$bin:${{PATH:-{_PATH}}}" ;; esac',
        *(
            f'case ",${name}," in *,{_LOOPBACK},*) ;; '
            f'*) say {name} "${{{name}:+${name},}}{_LOOPBACK}" ;; esac'
            for name in _PROXY_VARIABLES
        ),
    ]
    return "\n".join(lines) + "\n"


def environment(layout: Layout, environ: Mapping[str, str]) -> dict[str, str]:
    """Render the variables that lead a process to the sandbox; no credential is among them.

    Args:
        layout: The sandbox's paths.
        environ: The process's environment: PATH and no_proxy are added to, not replaced, and
            QPU_STATE stays as the user set it.
    """
    wrappers = str(layout.wrappers)
    path = [entry for entry in environ.get("PATH", os.defpath).split(os.pathsep) if entry]
    others = [entry for entry in path if entry != wrappers]
    variables = {
        "PATH": os.pathsep.join([wrappers, *others]),
        "SLURM_CONF": str(layout.slurm_conf),
        DIRECTORY_VARIABLE: str(layout.directory),
        **{name: str(place) for name, place in _places(layout).items()},
    }
    if chosen := _chosen_state(environ):
        variables[STATE_VARIABLE] = chosen
    for name in _PROXY_VARIABLES:
        hosts = [host for host in environ.get(name, "").split(",") if host]
        variables[name] = ",".join(hosts if _LOOPBACK in hosts else [*hosts, _LOOPBACK])
    return variables


def _places(layout: Layout) -> dict[str, Path]:
    return {
        CONFIG_VARIABLE: layout.qrmi_config,
        SITE_VARIABLE: layout.site_policy,
        STATE_VARIABLE: layout.leases,
    }


def _chosen_state(environ: Mapping[str, str]) -> str | None:
    """Return the user's QPU_STATE; another sandbox's, in whose shell we may be, does not count."""
    state, other = environ.get(STATE_VARIABLE), environ.get(DIRECTORY_VARIABLE)
    return None if other and state == f"{other}/state" else state

"""Render a sandbox's files: Slurm's configuration, the site policy and the wrappers.

Every function is pure. The settings suit Slurm 22.05 and later; comments in slurm.conf explain
them.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qrmi_workflows.config.variables import QPU_CONFIG, QPU_SANDBOX, QPU_SITE, QPU_STATE
from qrmi_workflows.sandbox import epilog, reaper
from qrmi_workflows.sandbox.accounting import render_accounting
from qrmi_workflows.sandbox.layout import Layout

__all__ = [
    "Cluster",
    "environment",
    "render_cgroup_conf",
    "render_epilog",
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
_LISTEN_EVERYWHERE = "# The host name does not resolve to a loopback address."
_CGROUPS_OPTIONAL_SINCE = (24, 5)

_SLURM_CONF = """\
# Written by `qpu sandbox up`, which overwrites it each time.
ClusterName=sandbox
SlurmctldHost={host}({address})
SlurmctldPort={controller_port}

# Only this user can authenticate: the private munged's socket is in a directory of mode 0700.
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
TaskProlog={scripts}/task_prolog
{prolog}MailProg=/bin/true

# Works without root and without cgroups. Linuxproc loses processes whose parent has ended; the
# Epilog kills what a job has left of them.
ProctrackType=proctrack/linuxproc
Epilog={scripts}/epilog
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/{gather}
SwitchType=switch/none
MpiDefault=none

# Jobs start within a second, and a node that comes back up returns to service.
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MinJobAge=300
FirstJobId={first_job_id}

# A GRES is counted per node; only a licence is exclusive across the cluster.
GresTypes=qpu
Licenses={licences}

# Every node is this machine; config_overrides makes slurmd accept the sizes below.
SlurmdParameters=config_overrides
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


_PROLOG = """\
Prolog={scripts}/prolog
PrologFlags=Alloc
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The parameters of a sandbox's slurm.conf.

    Attributes:
        layout: The sandbox's paths.
        runtime: The runtime directory for sockets.
        host: This machine's short host name.
        address: The loopback address that the host name resolves to, if any.
        user: The user who runs Slurm, and the only one who may use it.
        controller_port: slurmctld's TCP port.
        node_ports: The TCP port of each node's slurmd.
        qpus: The names of the QPUs.
        first_job_id: The id of the first job.
        cpus: The number of CPUs of each node.
        database_port: slurmdbd's TCP port; `None` without accounting.
        site_scripts: Whether the site's own scripts acquire and release the jobs' QPUs.
    """

    layout: Layout
    runtime: Path
    host: str
    address: str | None
    user: str
    controller_port: int
    node_ports: tuple[int, ...]
    qpus: tuple[str, ...]
    first_job_id: int = 1
    cpus: int = 8
    database_port: int | None = None
    site_scripts: bool = False


def render_slurm_conf(cluster: Cluster) -> str:
    """Render slurm.conf.

    Slurm can listen either on all addresses or on the one that the host name resolves to. So it
    is confined to the loopback interface only if the host name resolves to a loopback address.
    """
    address = cluster.address or _LOOPBACK
    gres = ",".join(f"qpu:{name}:1" for name in cluster.qpus)
    nodes = (
        f"NodeName=n{number} NodeHostname=localhost NodeAddr={address} Port={port} "
        f"CPUs={cluster.cpus} RealMemory={cluster.cpus * 8192} Gres={gres} State=UNKNOWN"
        for number, port in enumerate(cluster.node_ports, start=1)
    )
    scripts = cluster.layout.site if cluster.site_scripts else cluster.layout.etc
    return _SLURM_CONF.format(
        scripts=scripts,
        prolog=_PROLOG.format(scripts=scripts) if cluster.site_scripts else "",
        layout=cluster.layout,
        runtime=cluster.runtime,
        host=cluster.host,
        address=address,
        listen=_LISTEN_ON_HOST if cluster.address else _LISTEN_EVERYWHERE,
        user=cluster.user,
        controller_port=cluster.controller_port,
        first_job_id=cluster.first_job_id,
        licences=",".join(f"qpu_{name}:1" for name in cluster.qpus),
        nodes="\n".join(nodes),
        gather="none" if cluster.database_port is None else "linux",
    ) + (
        ""
        if cluster.database_port is None
        else render_accounting(cluster.database_port, cluster.runtime, cluster.qpus)
    )


def render_gres_conf(qpus: Iterable[str]) -> str:
    """Render gres.conf: each QPU is a type of the GRES `qpu`, without a device file."""
    return "".join(f"Name=qpu Type={name} Count=1 Flags=CountOnly\n" for name in qpus)


def render_cgroup_conf(version: tuple[int, ...]) -> str:
    """Render cgroup.conf, which disables cgroups in Slurm 24.05 and later.

    Those versions require cgroups otherwise; earlier ones reject the setting.

    Args:
        version: Slurm's version, such as `(22, 5)`.
    """
    return "CgroupPlugin=disabled\n" if version >= _CGROUPS_OPTIONAL_SINCE else ""


def render_site_policy(qpus: Mapping[str, int], *, state: Path | None = None) -> str:
    """Render site.toml, as `load_site_policy` reads it.

    Args:
        qpus: The number of lanes of each QPU, by name.
        state: The folder of root's files; the machine's own if `None`.
    """
    site = "" if state is None else f'[site]\nstate = "{state}"\n\n'
    tables = "".join(f'\n[qpus."{name}"]\nlanes = {lanes}\n' for name, lanes in qpus.items())
    return f'{site}[defaults]\ngres = "qpu:{{qpu}}"\nlicence = "qpu_{{qpu}}"\n{tables}'


def render_wrapper(argv: Iterable[str | Path], variables: Mapping[str, str]) -> str:
    """Render a script that runs a command in the sandbox, regardless of its caller's environment.

    The script needs bash. Debian's sh drops environment variables whose names contain `-` or `.`,
    as a lease's variables do if the QPU's name does.
    """
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    command = " ".join(shlex.quote(str(word)) for word in argv)
    return f'#!/bin/bash\n{exports}exec {command} "$@"\n'


def render_task_prolog(layout: Layout, *, site_scripts: bool = False) -> str:
    """Render the TaskProlog, which points jobs at the sandbox even under `--export=NONE`.

    Slurm runs the script in the environment of each of a job's tasks, and sets the variables that
    it prints as `export NAME=value`. QPU_CONFIG, QPU_SITE and QPU_STATE keep the user's values.

    Args:
        layout: The sandbox's paths.
        site_scripts: Whether the site's own scripts give the jobs their QPUs: then they need no
            credentials, and each user has their own state folder.
    """
    defaults = {QPU_SITE: layout.site_policy} if site_scripts else _default_paths(layout)
    forced = {"SLURM_CONF": layout.slurm_conf, QPU_SANDBOX: layout.directory}
    lines = [
        "#!/bin/sh",
        'emit() { printf \'export %s=%s\\n\' "$1" "$2"; }',
        f"bin={shlex.quote(str(layout.wrappers))}",
        *(f"emit {name} {shlex.quote(str(path))}" for name, path in forced.items()),
        *(
            f'[ -n "${name}" ] || emit {name} {shlex.quote(str(path))}'
            for name, path in defaults.items()
        ),
        f'case "$PATH" in "$bin":*) ;; *) emit PATH "$bin:${{PATH:-{_PATH}}}" ;; esac',
        *(
            f'case ",${name}," in *,{_LOOPBACK},*) ;; '
            f'*) emit {name} "${{{name}:+${name},}}{_LOOPBACK}" ;; esac'
            for name in _PROXY_VARIABLES
        ),
    ]
    return "\n".join(lines) + "\n"


def render_epilog(layout: Layout) -> str:
    """Render the Epilog, which runs `sandbox.epilog`."""
    argv = [sys.executable, "-I", "-S", epilog.__file__, reaper.__file__, layout.slurm_conf]
    return f"#!/bin/sh\nexec {shlex.join(map(str, argv))}\n"


def environment(layout: Layout, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that point a process at the sandbox; none is a credential.

    Args:
        layout: The sandbox's paths.
        environ: The process's environment. PATH and no_proxy are extended, not replaced, and
            QPU_STATE keeps the user's value.
    """
    wrappers = str(layout.wrappers)
    entries = [entry for entry in environ.get("PATH", os.defpath).split(os.pathsep) if entry]
    others = [entry for entry in entries if entry != wrappers]
    variables = {
        "PATH": os.pathsep.join([wrappers, *others]),
        "SLURM_CONF": str(layout.slurm_conf),
        QPU_SANDBOX: str(layout.directory),
        **{name: str(path) for name, path in _default_paths(layout).items()},
    }
    if user_state := _user_state(environ):
        variables[QPU_STATE] = user_state
    for name in _PROXY_VARIABLES:
        hosts = [host for host in environ.get(name, "").split(",") if host]
        variables[name] = ",".join(hosts if _LOOPBACK in hosts else [*hosts, _LOOPBACK])
    return variables


def _default_paths(layout: Layout) -> dict[str, Path]:
    return {
        QPU_CONFIG: layout.qrmi_config,
        QPU_SITE: layout.site_policy,
        QPU_STATE: layout.leases,
    }


def _user_state(environ: Mapping[str, str]) -> str | None:
    """Return the QPU_STATE that the user set, ignoring one set by another sandbox's shell."""
    state, other = environ.get(QPU_STATE), environ.get(QPU_SANDBOX)
    return None if other and state == f"{other}/state" else state

"""What a site installs for Slurm: scripts, lines of slurm.conf and gres.conf, a timer.

`plan_installation` says what would be written; `write` writes it, and `uninstall` takes it back.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qrmi_workflows.config.site import SitePolicy
from qrmi_workflows.errors import ConfigError
from qrmi_workflows.schedulers.slurm_conf import add_to_gres_conf, add_to_slurm_conf, take_back
from qrmi_workflows.schedulers.slurm_site import (
    EPILOG_SECONDS,
    PROLOG_SECONDS,
    has_no_lease,
    render_script,
    render_task_prolog,
)

__all__ = [
    "Installation",
    "InstalledFile",
    "SiteScripts",
    "plan_installation",
    "plan_removal",
    "require_safe_python",
    "write",
]

SCRIPTS_FOLDER = Path("/etc/qrmi-workflows/slurm")
_UNITS_FOLDER = Path("/etc/systemd/system")
_BACKUP = ".before-qpu"
_SERVICE = """\
# Written by `qpu site install`.
[Unit]
Description=Release QPUs whose jobs have ended

[Service]
Type=oneshot
Environment=QPU_CONFIG={config} QPU_SITE={policy}
ExecStart={python} -I -m qrmi_workflows reap --all
TimeoutStartSec=10min
"""
_TIMER = """\
# Written by `qpu site install`. Enable it on one host: systemctl enable --now qpu-reap.timer
[Unit]
Description=Release QPUs whose jobs have ended, every few minutes

[Timer]
OnBootSec=2min
OnUnitInactiveSec=5min

[Install]
WantedBy=timers.target
"""
_FOLLOW_SERVICE = """\
# Written by `qpu site install`.
[Unit]
Description=Keep jobs pending while their QPUs are away

[Service]
Type=oneshot
Environment=QPU_CONFIG={config} QPU_SITE={policy}
ExecStart={python} -I -m qrmi_workflows site reconcile
TimeoutStartSec=3min
"""
_FOLLOW_TIMER = """\
# Written by `qpu site install`. Enable it on one host: systemctl enable --now qpu-reconcile.timer
[Unit]
Description=Keep jobs pending while their QPUs are away, every minute

[Timer]
OnBootSec=1min
OnUnitInactiveSec=1min

[Install]
WantedBy=timers.target
"""
_UNITS = {
    "qpu-reap.service": _SERVICE,
    "qpu-reap.timer": _TIMER,
    "qpu-reconcile.service": _FOLLOW_SERVICE,
    "qpu-reconcile.timer": _FOLLOW_TIMER,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteScripts:
    """The site's Prolog, TaskProlog and Epilog.

    Attributes:
        state: The folder of root's files.
        config: The site's `qrmi_config.json`, which only root can read.
        policy: The site policy.
        python: The Python that runs them.
        path: Folders in which the scheduler's commands are, besides the usual ones.
    """

    state: Path
    config: Path
    policy: Path
    python: Path = Path(sys.executable)
    path: str = ""

    def render(self, earlier: Mapping[str, Sequence[str]]) -> dict[str, str]:
        """Render the scripts, by name.

        Args:
            earlier: The site's own scripts that each of them runs first.
        """
        files = ("--state", self.state, "--config", self.config, "--policy", self.policy)

        def script(name: str, seconds: float, unless: str = "") -> str:
            argv = (self.python, "-I", "-m", f"qrmi_workflows.site.{name}", *files)
            return render_script(
                argv,
                seconds=seconds,
                earlier=earlier.get(name, ()),
                path=self.path,
                unless=unless,
            )

        return {
            "prolog": script("prolog", PROLOG_SECONDS),
            "task_prolog": render_task_prolog(self.state, earlier=earlier.get("task_prolog", ())),
            "epilog": script("epilog", EPILOG_SECONDS, has_no_lease(self.state)),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledFile:
    """A file to be written or removed.

    Attributes:
        path: The file, without the prefix.
        text: Its content; `None` if it is removed.
        mode: Its mode, if it is new.
        added: The lines that are added to it, if it is one of Slurm's.
    """

    path: Path
    text: str | None
    mode: int = 0o644
    added: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What is to be written, and what is left to do.

    Attributes:
        files: The files.
        by_hand: What only an administrator can do.
    """

    files: tuple[InstalledFile, ...]
    by_hand: tuple[str, ...]


def plan_installation(
    site: SitePolicy, scripts: SiteScripts, *, slurm_conf: Path, prefix: Path
) -> Installation:
    """Say what is to be written.

    Args:
        site: The site policy.
        scripts: The scripts.
        slurm_conf: Slurm's configuration file; gres.conf is in the same folder.
        prefix: The folder that stands for `/`.

    Raises:
        ConfigError: slurm.conf does not exist, or has a line that cannot be replaced.
    """
    gres_conf = slurm_conf.with_name("gres.conf")
    qpus = list(site.qpus.values())
    places = {name: str(SCRIPTS_FOLDER / name) for name in ("prolog", "task_prolog", "epilog")}
    slurm = add_to_slurm_conf(_read(slurm_conf, prefix, must_exist=True), qpus, places)
    gres = add_to_gres_conf(_read(gres_conf, prefix), qpus)
    files = [
        InstalledFile(path=SCRIPTS_FOLDER / name, text=text, mode=0o755)
        for name, text in scripts.render(slurm.earlier).items()
    ]
    files.append(InstalledFile(path=slurm_conf, text=slurm.text, added=slurm.added))
    if gres.added:
        files.append(InstalledFile(path=gres_conf, text=gres.text, added=gres.added))
    files += [
        InstalledFile(path=_UNITS_FOLDER / name, text=text)
        for name, text in _units(scripts).items()
    ]
    by_hand = [*slurm.by_hand, *_credentials(scripts.config, prefix)]
    by_hand += [
        f"Copy {SCRIPTS_FOLDER}, {scripts.policy}, {scripts.config} and Slurm's files to all "
        "nodes, with their owners and modes, and restart slurmctld and the slurmd daemons.",
        "Enable the timers on one host: `systemctl enable --now qpu-reap.timer "
        "qpu-reconcile.timer`.",
    ]
    return Installation(files=tuple(files), by_hand=tuple(by_hand))


def _units(scripts: SiteScripts) -> dict[str, str]:
    files = {"config": scripts.config, "policy": scripts.policy, "python": scripts.python}
    return {
        name: text.format(**files) if name.endswith(".service") else text
        for name, text in _UNITS.items()
    }


def plan_removal(*, slurm_conf: Path, prefix: Path) -> Installation:
    """Say what is to be written to take an installation back."""
    files = []
    for conf in (slurm_conf, slurm_conf.with_name("gres.conf")):
        text = _read(conf, prefix)
        if (before := take_back(text)) == text:
            continue
        backup = conf.with_name(f"{conf.name}{_BACKUP}")
        was_there = before or _at(backup, prefix).exists()
        files.append(InstalledFile(path=conf, text=before if was_there else None))
        # If the site has changed other lines since, the copy is of use.
        if was_there and _read(backup, prefix) == before:
            files.append(InstalledFile(path=backup, text=None))
    ours = [SCRIPTS_FOLDER / name for name in ("prolog", "task_prolog", "epilog")]
    ours += [_UNITS_FOLDER / name for name in _UNITS]
    files += [InstalledFile(path=path, text=None) for path in ours if _at(path, prefix).exists()]
    by_hand = ["Restart slurmctld and the slurmd daemons once no job holds a QPU."] if files else []
    return Installation(files=tuple(files), by_hand=tuple(by_hand))


def write(files: Iterable[InstalledFile], prefix: Path) -> list[Path]:
    """Write files that differ; keep a copy of what Slurm's files were before the first time.

    Returns:
        The files that have changed.

    Raises:
        OSError: A file could not be written.
    """
    changed = []
    for each in files:
        path = _at(each.path, prefix)
        if each.text is None:
            path.unlink(missing_ok=True)
        elif not path.exists() or path.read_text(encoding="utf-8") != each.text:
            _replace(path, each)
        else:
            continue
        changed.append(path)
    return changed


def _replace(path: Path, file: InstalledFile) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    status = path.stat() if path.exists() else None
    backup = path.with_name(f"{path.name}{_BACKUP}")
    if file.added and status is not None and not backup.exists():
        shutil.copy2(path, backup)
    temporary = path.with_name(f".{path.name}.qpu")
    temporary.write_text(file.text or "", encoding="utf-8")
    temporary.chmod(file.mode if status is None else stat.S_IMODE(status.st_mode))
    if status is not None and os.geteuid() == 0:
        os.chown(temporary, status.st_uid, status.st_gid)
    temporary.replace(path)


def require_safe_python(scripts: SiteScripts) -> None:
    """Refuse to have root run a Python that others could change.

    Raises:
        ConfigError: Somebody else owns, or may write to, the interpreter, this package, or a folder
            above them.
    """
    package = Path(__file__).resolve().parents[1]
    for start in (scripts.python.absolute(), scripts.python.resolve(), package):
        for path in (start, *start.parents):
            status = path.stat()
            is_sticky = status.st_mode & stat.S_ISVTX
            if status.st_uid != 0 or (status.st_mode & 0o022 and not is_sticky):
                raise ConfigError(
                    f"{path}: must belong to root, and nobody else may write to it, because root "
                    "would run it in each job's Prolog. Install this package for root (`python3 -m "
                    "venv /opt/qrmi-workflows`), and run `qpu site install` from there."
                )


def _credentials(config: Path, prefix: Path) -> list[str]:
    path = _at(config, prefix)
    try:
        status = path.stat()
    except OSError:
        return [f"Write QRMI's configuration to {config}, with mode 0600: it does not exist."]
    if status.st_mode & 0o077 or (status.st_uid != 0 and os.geteuid() == 0):
        return [f"{config}: others can read it: `chown root: {config}; chmod 600 {config}`."]
    return []


def _at(path: Path, prefix: Path) -> Path:
    return prefix / path.relative_to("/")


def _read(path: Path, prefix: Path, *, must_exist: bool = False) -> str:
    try:
        return _at(path, prefix).read_text(encoding="utf-8")
    except FileNotFoundError:
        if must_exist:
            raise ConfigError(
                f"{_at(path, prefix)} does not exist. Name it with --slurm-conf."
            ) from None
        return ""

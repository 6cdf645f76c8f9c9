"""What the site's Prolog and Epilog have in common: where things are, and how they fail."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import syslog
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from qrmi_workflows.config.job import describe_other_job
from qrmi_workflows.config.qpus import find_config
from qrmi_workflows.config.site import find_site_policy, load_site_policy
from qrmi_workflows.config.variables import QPU_CONFIG, QPU_SITE, QPU_STATE
from qrmi_workflows.errors import ConfigError
from qrmi_workflows.schedulers.slurm_scripts import ScriptJob
from qrmi_workflows.site.job_folder import require_own_folder
from qrmi_workflows.state.users import user_name

__all__ = ["SitePaths", "note", "run_script"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePaths:
    """The site's files.

    Attributes:
        state: The folder of root's files.
        config: The site's `qrmi_config.json`, which only root can read.
        policy: The site policy.
    """

    state: Path
    config: Path
    policy: Path

    @classmethod
    def of_site(cls) -> SitePaths:
        """Find the files of this site.

        Raises:
            ConfigError: It has none, the folder of root's files belongs to somebody else, or this
                user is not root.
        """
        policy = find_site_policy()
        paths = cls(
            state=load_site_policy(policy).folders.state, config=find_config(), policy=policy
        )
        if paths.state.exists():
            if paths.state.lstat().st_uid == 0 != os.geteuid():
                raise ConfigError(
                    f"user {user_name(os.geteuid())!r}: the leases that the site holds are root's "
                    f"({paths.state}). Run the command as root; `qpu reap` releases your own."
                )
            require_own_folder(paths.state)
        return paths

    def use(self, job: ScriptJob | None, environ: MutableMapping[str, str] = os.environ) -> None:
        """Have this process use these files, for a job of another user."""
        files = {QPU_STATE: self.state, QPU_CONFIG: self.config, QPU_SITE: self.policy}
        environ.update({name: str(path) for name, path in files.items()})
        if job is not None:
            # Under these, vendors that distinguish users open the session for the job's.
            environ.update(job.variables())
            environ.update(describe_other_job(job.id, job.uid))


def run_script(
    name: str, main: Callable[[ScriptJob, SitePaths], None], argv: Sequence[str] | None = None
) -> NoReturn:
    """Run a Prolog or an Epilog; exit with 0 whatever happens, because Slurm drains the node else.

    Args:
        name: Its name in the system's log.
        main: The script.
        argv: Its arguments; those of the process if `None`.
    """
    parser = argparse.ArgumentParser(prog=f"qpu-{name}")
    for option in ("--state", "--config", "--policy"):
        parser.add_argument(option, type=Path, required=True)
    try:
        paths = SitePaths(**vars(parser.parse_args(argv)))
        os.umask(0o077)
        logging.basicConfig(handlers=[_SystemLog()])
        if (job := ScriptJob.from_environ(os.environ)) is not None:
            paths.use(job)
            main(job, paths)
    except (Exception, SystemExit) as error:
        note(f"{name}: {type(error).__name__}: {error}")
    finally:
        sys.stdout.flush()
        os._exit(0)  # without waiting for the threads of a silent vendor


class _SystemLog(logging.Handler):
    """Passes warnings on to the system's log, except those of QRMI's client."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING and record.name.startswith("qrmi_workflows"):
            note(record.getMessage())


def note(text: str) -> None:
    """Write a line into the system's log, and to Slurm's own log of the script."""
    print(f"qpu: {text}", file=sys.stderr)
    syslog.openlog("qpu-site", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_WARNING, text)

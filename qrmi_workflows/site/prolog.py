"""Slurm's Prolog: acquire the QPUs that a job was granted, and leave it their variables.

It runs as root on each node of a job, before the job starts; the first node's acquires. The job's
TaskProlog then gives each task the variables, or has it fail with the reason. The Prolog itself
exits with 0 in any case: otherwise Slurm would drain the node and requeue the job.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NoReturn

from qrmi_workflows.config.job import TIMEOUT, JobQPU, describe_other_job, write_job
from qrmi_workflows.config.notices import read_notice, refusal
from qrmi_workflows.config.qpus import load_qpus
from qrmi_workflows.config.site import SitePolicy, load_site_policy
from qrmi_workflows.config.variables import QPU_LEASE_JOB, QPU_LEASE_USAGE
from qrmi_workflows.errors import ConfigError, LeaseError, QPUError, SchedulerError
from qrmi_workflows.schedulers.access import require_account, require_user
from qrmi_workflows.schedulers.slurm_grants import GrantedJob
from qrmi_workflows.schedulers.slurm_scripts import (
    ScriptJob,
    ask_granted,
    cancel_job,
    report_failure,
)
from qrmi_workflows.site.job_folder import JobFolder
from qrmi_workflows.site.scripts import SitePaths, note, run_script
from qrmi_workflows.site.unread_policy import asks_for_qpu, keep_copy

if TYPE_CHECKING:
    from qrmi_workflows.lease.reap import Reaped

__all__ = ["main"]

_ASK_SECONDS = 10.0
_REPORT_SECONDS = 5.0
_LEFTOVER_SECONDS = 5.0
_LONGEST_SECONDS = 7 * 86400  # QRMI signs URLs for as long, which cannot exceed a week
_UNFINISHED = (
    "the site's Prolog, which acquires the QPU for this job, did not finish. Submit the job again; "
    "if that fails too, tell your administrators."
)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the Prolog."""
    run_script("prolog", _prolog, argv)


def _prolog(job: ScriptJob, paths: SitePaths) -> None:
    folder = JobFolder(paths.state, job.id)
    folder.begin_run()  # on each node: another one may have been the first of an earlier run
    if not job.is_on_first_node:
        return
    try:
        site = load_site_policy(paths.policy)
    except ConfigError as error:
        _refuse_without_policy(job, folder, paths, error)
        return
    granted = _ask(job, site)
    names = [] if granted is None else granted.qpus(site.qpus.values(), job.plugin_qpus)
    if granted is None or not names:
        folder.remove()
        return
    try:
        folder.create(job.node, job.uid, job.gid)
        # Replaced at the end: whatever stops the Prolog, the job does not run without its lease.
        folder.refuse(_UNFINISHED, job.uid, job.gid)
        keep_copy(paths.policy, paths.state)
        for name in names:
            _require_admission(name, site, job, granted)
        _acquire(job, granted, names, paths, folder)
    except Exception as error:
        is_foreseen = isinstance(error, (QPUError, OSError))
        _fail(job, folder, str(error) if is_foreseen else f"{type(error).__name__}: {error}")


def _ask(job: ScriptJob, site: SitePolicy | None) -> GrantedJob | None:
    try:
        policies = () if site is None else site.qpus.values()
        return ask_granted(job, policies, timeout=_ASK_SECONDS)
    except SchedulerError as error:
        # Nobody knows whether the job holds a QPU. Most do not, so let it run.
        note(f"cannot tell which QPUs job {job.id} was granted: {error}")
        return None


def _require_admission(name: str, site: SitePolicy, job: ScriptJob, granted: GrantedJob) -> None:
    # Not all jobs come from programs that check this.
    require_user(name, site, job.user)
    require_account(name, site, granted.account)
    # Slurm has no way to keep the jobs of every QPU pending, and this one may have been about to
    # start.
    if (notice := read_notice(name, site)) is not None:
        raise LeaseError(refusal(notice), name, True)


def _refuse_without_policy(
    job: ScriptJob, folder: JobFolder, paths: SitePaths, error: ConfigError
) -> None:
    """Have a job fail that asks for a QPU, and leave all others alone."""
    granted = _ask(job, None)
    files = {"policy": paths.policy, "state": paths.state, "config": paths.config}
    if granted is None or not asks_for_qpu(granted, job, **files):
        note(f"job {job.id} starts without a look at the site policy: {error}")
        folder.remove()
        return
    reason = f"the site policy, which says what a job with a QPU needs, cannot be read: {error}"
    try:
        folder.create(job.node, job.uid, job.gid)
    except (QPUError, OSError) as failure:
        reason = f"{reason} {failure}"
    _fail(job, folder, f"{reason} Tell your administrators.")


def _acquire(
    job: ScriptJob, granted: GrantedJob, names: Sequence[str], paths: SitePaths, folder: JobFolder
) -> None:
    # With QRMI's client, which most jobs do not need.
    from qrmi_workflows.site.job_end import end_leases
    from qrmi_workflows.site.leases import Expected, acquire_all

    qpus = _defined(names, granted, paths)
    # An earlier run of the job, whose node has crashed, may have left some.
    _note_open(job, end_leases(job.id, seconds=_LEFTOVER_SECONDS))
    expected = Expected(paths.state, job.id, job.user, granted.account)
    expected.begin()
    try:
        opened = acquire_all(qpus, expected, config=paths.config)
        held = [
            JobQPU(
                name=qpu.name,
                type=qpu.type,
                environment=qpu.environment,
                token=opened[qpu.name].token,
            )
            for qpu in qpus
        ]
        folder.publish(_variables(job, held, folder), job.uid, job.gid)
    except BaseException:
        expected.end()
        _note_open(job, end_leases(job.id))
        raise
    expected.end()


def _note_open(job: ScriptJob, ended: Iterable[Reaped]) -> None:
    for each in ended:
        if each.error:
            note(f"lease {each.lease} of job {job.id} is still open: {each.error}")


def _defined(names: Iterable[str], granted: GrantedJob, paths: SitePaths) -> list[JobQPU]:
    """Return the QPUs as the site defines them, with the settings of their types."""
    from qrmi_workflows.vendors.registry import registered_type

    limit = granted.limit
    timeout = {} if limit is None else {TIMEOUT: str(min(limit, _LONGEST_SECONDS))}
    defined, found = load_qpus(paths.config), []
    for name in names:
        if name not in defined:
            raise ConfigError(
                f"QPU {name!r} was granted to this job, but the site does not define it. Tell your "
                "administrators: qrmi_config.json has no such QPU."
            )
        qpu = defined[name]
        known = registered_type(qpu.type)
        settings = {**(known.settings if known else {}), **timeout, **qpu.environment}
        found.append(JobQPU(name=name, type=qpu.type, environment=settings, token=None))
    return found


def _variables(job: ScriptJob, held: Sequence[JobQPU], folder: JobFolder) -> dict[str, str]:
    usage = [str(folder.usage / f"{qpu.name}.usage") for qpu in held]
    return {
        **write_job(held),
        **describe_other_job(job.id, job.uid),
        QPU_LEASE_JOB: job.id,
        QPU_LEASE_USAGE: ":".join(usage),
    }


def _fail(job: ScriptJob, folder: JobFolder, reason: str) -> None:
    """Have the job fail with a reason: in its output, and in its record at the scheduler."""
    note(f"job {job.id} of {job.user} is refused: {reason}")
    is_refused = True
    try:
        folder.refuse(reason, job.uid, job.gid)
    except OSError as error:
        is_refused = False
        note(f"job {job.id} is cancelled, because its TaskProlog could not be told: {error}")
    try:
        report_failure(job.id, f"qpu: {reason}", timeout=_REPORT_SECONDS)
        if not is_refused:
            cancel_job(job.id, timeout=_REPORT_SECONDS)
    except SchedulerError as error:
        note(f"job {job.id}: {error}")


if __name__ == "__main__":
    main()

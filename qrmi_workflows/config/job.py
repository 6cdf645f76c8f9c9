"""The job's environment contract: the only reader and writer of `QRMI_*` variables.

The contract is QRMI's: its SPANK plugin writes these variables, and `qrmi.QRMIService` and
`task_runner` read them. Programs written for QRMI run unchanged here, and the other way round:

=================================  ==================================================
`QRMI_JOB_QPU_RESOURCES`           comma-separated names (legacy: `SLURM_JOB_QPU_RESOURCES`)
`QRMI_JOB_QPU_TYPES`               their types, in the same order (`SLURM_JOB_QPU_TYPES`)
`QRMI_LIST_DELIMITER`              a separator other than the comma
`NAME_QRMI_JOB_ACQUISITION_TOKEN`  the token that `acquire()` returned
`NAME_QRMI_JOB_TIMEOUT_SECONDS`    the job's time limit, at most a week
`QRMI_JOB_ID`, `QRMI_JOB_UID`      the job and its owner
`NAME_QRMI_<VENDOR>_…`             the QPU's endpoint and credentials
`NAME_QRMI_EMULATED`               ours: the QPU is emulated, and this is what users call it
=================================  ==================================================

QRMI knows an emulated QPU by another name than its users: shells drop variables whose names have
colons.

The two legacy names belong to QRMI, not to Slurm: they are read and written under any scheduler.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field

from qrmi_workflows.config.variables import STAGE_VARIABLES
from qrmi_workflows.errors import ConfigError

__all__ = [
    "EMULATED",
    "RESOURCE_ID",
    "JobQPU",
    "add_job",
    "describe_job",
    "describe_other_job",
    "drop_leases",
    "job_of_leases",
    "read_job",
    "require_reachable",
    "without_leases",
    "write_job",
]

TOKEN = "QRMI_JOB_ACQUISITION_TOKEN"  # noqa: S105 - a variable's name, not a token
TIMEOUT = "QRMI_JOB_TIMEOUT_SECONDS"
EMULATED = "QRMI_EMULATED"
"""The setting with the name that users give to an emulated QPU."""
RESOURCE_ID = "QRMI_RESOURCE_ID"
"""The setting with the name by which QRMI knows an emulated QPU."""
RESOURCES = ("QRMI_JOB_QPU_RESOURCES", "SLURM_JOB_QPU_RESOURCES")
TYPES = ("QRMI_JOB_QPU_TYPES", "SLURM_JOB_QPU_TYPES")
_DELIMITER = "QRMI_LIST_DELIMITER"
_JOB_ID, _JOB_UID = "QRMI_JOB_ID", "QRMI_JOB_UID"
# Where a QPU is, but not where one signs in for it or keeps its data.
_PLACE = re.compile(r"(?<!IAM_)(?<!AUTH_)(?<!S3_)(ENDPOINT|URL)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQPU:
    """A QPU as described by a job's environment.

    Attributes:
        name: The QPU's name.
        type: QRMI's resource type.
        environment: QRMI's settings, keys without the `NAME_` prefix; holds credentials.
        token: The acquisition token, or `None` if the QPU was not acquired for this job.
    """

    name: str
    type: str
    environment: Mapping[str, str] = field(repr=False)
    token: str | None = field(repr=False)

    @property
    def identity(self) -> str:
        """What tells this QPU from others of its name: a digest of its type and its endpoints.

        An emulated QPU may have the name of a real one. Credentials are not part of it. A private
        emulator is at another address each time, and yet emulates the same QPU.
        """
        import hashlib  # slow to import, and a lease alone does not need it

        if emulated := self.environment.get(EMULATED):
            return hashlib.sha256(f"{self.type}\n{emulated}".encode()).hexdigest()[:16]
        places = sorted(key for key in self.environment if _PLACE.search(key))
        where = [f"{key}={self.environment[key].rstrip('/')}" for key in places]
        return hashlib.sha256("\n".join([self.type, *where]).encode()).hexdigest()[:16]

    @property
    def resource_id(self) -> str:
        """The name by which QRMI knows it."""
        return self.environment.get(RESOURCE_ID, self.name)


def read_job(environ: Mapping[str, str] = os.environ) -> dict[str, JobQPU]:
    """Read the QPUs that a job's environment describes, by name; empty if it describes none.

    Raises:
        ConfigError: The two lists differ in length.
    """
    delimiter = environ.get(_DELIMITER) or ","
    names = _read_list(environ, RESOURCES, delimiter)
    types = _read_list(environ, TYPES, delimiter)
    if len(names) != len(types):
        raise ConfigError(
            f"QRMI_JOB_QPU_RESOURCES names {len(names)} QPUs ({', '.join(names)}) and "
            f"QRMI_JOB_QPU_TYPES {len(types)} types ({', '.join(types)}): each QPU needs its type. "
            "Set both in the same order, or unset both."
        )
    pairs = zip(names, types, strict=True)
    qpus = (_read_qpu(name, type_, environ) for name, type_ in pairs)
    return {qpu.name: qpu for qpu in qpus}


def write_job(qpus: Iterable[JobQPU]) -> dict[str, str]:
    """Render the variables that give a child process these QPUs.

    Args:
        qpus: The QPUs, each with its token if it is acquired.

    Raises:
        ConfigError: QRMI knows two of them by the same name.
    """
    carried = tuple(qpus)
    _require_distinct(carried)
    variables = {
        _DELIMITER: ",",
        # Programs written for earlier releases of QRMI know only the legacy names.
        **dict.fromkeys(RESOURCES, ",".join(qpu.resource_id for qpu in carried)),
        **dict.fromkeys(TYPES, ",".join(qpu.type for qpu in carried)),
    }
    for qpu in carried:
        prefix = qpu.resource_id
        own = {key: value for key, value in qpu.environment.items() if key != RESOURCE_ID}
        variables |= {f"{prefix}_{key}": value for key, value in own.items()}
        if qpu.token is not None:
            variables[f"{prefix}_{TOKEN}"] = qpu.token
    return variables


def require_reachable(qpu: str, environment: Mapping[str, str]) -> None:
    """Refuse to reach an emulated QPU whose emulator has not been started.

    QRMI would take the vendor's own address for some types.

    Args:
        qpu: The QPU's name.
        environment: QRMI's settings for it, without the `NAME_` prefix.

    Raises:
        ConfigError: The settings say that it is emulated, but not where.
    """
    if EMULATED in environment and not any(map(_PLACE.search, environment)):
        raise ConfigError(
            f"QPU {qpu!r} is emulated by the lease that uses it, and there is none here. Open a "
            "lease on it first."
        )


def add_job(environ: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """Return an environment with the variables of a job's QPUs, and no others of the same QPUs.

    A setting that is left from another QPU of the same name would lead to the wrong one.

    Args:
        environ: The environment.
        variables: The variables, as `write_job` renders them.
    """
    ids = _read_list(variables, RESOURCES, variables.get(_DELIMITER) or ",")
    prefixes = tuple(f"{id_}_QRMI_" for id_ in ids)
    return {k: v for k, v in environ.items() if not k.startswith(prefixes)} | dict(variables)


def _require_distinct(qpus: tuple[JobQPU, ...]) -> None:
    names: dict[str, str] = {}
    for qpu in qpus:
        other = names.setdefault(qpu.resource_id, qpu.name)
        if other != qpu.name:
            raise ConfigError(
                f"QPUs {other!r} and {qpu.name!r}: one process cannot have both in its "
                f"environment, because QRMI knows both as {qpu.resource_id!r}. Use them in "
                "different steps."
            )


def describe_job(job_id: str | None, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Render `QRMI_JOB_ID` and `QRMI_JOB_UID`; keep the values that the site has set.

    Outside a job, the id names this process instead (`login1.4711`): Pasqal Local needs some id to
    open a session.

    Args:
        job_id: The scheduler's id of this process's job, if it runs in one.
        environ: The environment, in which the site may have set either.
    """
    process = f"{os.uname().nodename}.{os.getpid()}"
    return {
        _JOB_UID: environ.get(_JOB_UID) or str(os.getuid()),
        _JOB_ID: environ.get(_JOB_ID) or job_id or process,
    }


def describe_other_job(job_id: str, uid: int) -> dict[str, str]:
    """Render `QRMI_JOB_ID` and `QRMI_JOB_UID` for a job of another user."""
    return {_JOB_ID: job_id, _JOB_UID: str(uid)}


def job_of_leases(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the id of the job for which an environment's QPUs were acquired, if it says so."""
    return environ.get(_JOB_ID) or None


def without_leases(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return an environment without this job's leases, for the submission of another job.

    The other job has leases of its own, and a scheduler may store a submission's environment on
    disk. QPUs without a token are kept: the user has set them.

    Raises:
        ConfigError: The two lists of QPUs and types differ in length.
    """
    carried = read_job(environ)
    leased = tuple(f"{qpu.resource_id}_QRMI_" for qpu in carried.values() if qpu.token is not None)
    stage = STAGE_VARIABLES if leased else ()
    dropped = {*RESOURCES, *TYPES, _JOB_ID, _JOB_UID, _DELIMITER, *stage}
    kept = {k: v for k, v in environ.items() if k not in dropped and not k.startswith(leased)}
    others = [qpu for qpu in carried.values() if qpu.token is None]
    return kept | (write_job(others) if others else {})


def drop_leases(environ: MutableMapping[str, str] = os.environ) -> None:
    """Change this process's environment to what `without_leases` returns.

    Raises:
        ConfigError: The two lists of QPUs and types differ in length.
    """
    kept = without_leases(environ)
    for name in environ.keys() - kept.keys():
        del environ[name]
    environ.update(kept)


def _read_list(environ: Mapping[str, str], names: tuple[str, ...], delimiter: str) -> list[str]:
    value = next((environ[name] for name in names if name in environ), "")
    return [item.strip() for item in value.split(delimiter)] if value else []


def _read_qpu(name: str, type_: str, environ: Mapping[str, str]) -> JobQPU:
    prefix = f"{name}_QRMI_"
    settings = {
        key.removeprefix(f"{name}_"): value
        for key, value in environ.items()
        if key.startswith(prefix)
    }
    token = settings.pop(TOKEN, None)
    if EMULATED in settings:
        settings[RESOURCE_ID], name = name, settings[EMULATED]
    return JobQPU(name=name, type=type_, environment=settings, token=token)

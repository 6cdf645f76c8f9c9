"""A stage of several jobs: one QPU, held by a keeper, for all jobs of a user that join.

The keeper (`stages.keeper`) holds the lease. It publishes the variables that adopt the lease in the
stage's folder, from which the stage's other processes take them. Each publication has a number, the
*generation*: a process whose session has ended waits for the next one.
"""

from __future__ import annotations

import functools
import json
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self

from qrmi_workflows.config.job import JobQPU, read_job
from qrmi_workflows.config.variables import QPU_LEASE_USAGE
from qrmi_workflows.errors import ConfigError, QPUError, RequestError
from qrmi_workflows.lease.stage_folder import StageFolder, stage_folders
from qrmi_workflows.state.files import write_atomically
from qrmi_workflows.state.process import Owner

__all__ = [
    "IDLE_SECONDS",
    "Published",
    "Stage",
    "StageState",
    "find_stage",
    "list_stages",
    "update_stage",
]

logger = logging.getLogger(__name__)

IDLE_SECONDS = 600.0
"""By default, a stage ends if for so long it has had no job, no process and no task."""


class StageState(StrEnum):
    """Whether a stage's lease can be used: not yet, now, or no longer."""

    OPENING = "opening"
    READY = "ready"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage, as its folder describes it.

    Attributes:
        name: Its name, which is unique among this user's open stages.
        id: The id of this opening of the name.
        qpu: The QPU's name.
        type: QRMI's resource type.
        config: The `qrmi_config.json` that defines the QPU; `None` if the keeper's job finds it.
        mode: The kind of session that was asked for: `auto`, `dedicated` or `batch`.
        session_mode: The mode of its session, once the keeper has chosen it; `None` if the vendor
            has no modes.
        mode_reason: Why the keeper has chosen it.
        warm_up: Whether the keeper may run tasks of its own to make the session active.
        lanes: How many tasks of the stage may run at once; `None` until the keeper knows.
        idle_limit: The stage ends after so many seconds without a job, a process and a task.
        created: When it was opened, in seconds since the epoch.
        keeper_job: The id of the keeper's job; `None` if it runs in none.
        guard_job: The id of the job that cleans up if the keeper is killed.
        cluster: The cluster of these jobs, where the scheduler has several.
        keeper: The keeper's process, once it has started.
        state: Whether its lease can be used.
        reason: Why it has ended, or what it waits for; empty if there is nothing to say.
        closing: Whether it ends once its present jobs have ended.
        generation: The number of the publication that is valid now.
        openers: The workflows that have opened it and not closed it yet.
        budget: What its tasks may take in total (`1000 shots`); empty if that is not limited.
    """

    name: str
    qpu: str
    type: str
    config: str | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    mode: str = "auto"
    session_mode: str | None = None
    mode_reason: str = ""
    warm_up: bool = True
    lanes: int | None = None
    idle_limit: float = IDLE_SECONDS
    created: float = field(default_factory=time.time)
    keeper_job: str | None = None
    guard_job: str | None = None
    cluster: str | None = None
    keeper: Owner | None = None
    state: StageState = StageState.OPENING
    reason: str = ""
    closing: bool = False
    generation: int = 0
    openers: tuple[str, ...] = ()
    budget: str = ""

    @property
    def folder(self) -> StageFolder:
        """Its folder."""
        return StageFolder.of(self.name)

    @property
    def lanes_folder(self) -> Path:
        """The folder in which the stage's processes lock the QPU's lanes.

        It outlives this opening of the stage: processes may hold lanes, whose tasks still run.
        """
        return self.folder.lanes / self.qpu

    @property
    def is_ended(self) -> bool:
        """Whether its lease can no longer be used."""
        return self.state is StageState.ENDED

    @classmethod
    def load(cls, folder: StageFolder) -> Self:
        """Read a stage from its folder.

        Raises:
            FileNotFoundError: There is no such stage.
            RequestError: The folder is not this user's own.
            ConfigError: Its file is malformed.
        """
        text = folder.read(folder.stage)
        try:
            document = json.loads(text)
            keeper = document["keeper"]
            return cls(
                **document
                | {
                    "name": _require_equal(document["name"], folder.path.name),
                    "keeper": None if keeper is None else Owner(**keeper),
                    "state": StageState(document["state"]),
                    "lanes": None if document["lanes"] is None else int(document["lanes"]),
                    "idle_limit": float(document["idle_limit"]),
                    "created": float(document["created"]),
                    "generation": int(document["generation"]),
                    "openers": tuple(document["openers"]),
                }
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"{folder.stage}: not the file of a stage: {error!r}. Remove its folder."
            ) from error

    def save(self) -> None:
        """Write the stage to its folder, whose lock the caller must hold (`StageFolder.locked`).

        Raises:
            OSError: The file could not be written.
        """
        write_atomically(self.folder.stage, json.dumps(asdict(self)), mode=0o600)


def _require_equal(name: str, folder: str) -> str:
    """Refuse a copy of another stage's folder, which is no stage of its own."""
    if name != folder:
        raise ValueError(f"name {name!r} in folder {folder!r}")
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What the keeper has published: how to adopt the lease. Holds credentials.

    Attributes:
        stage: The id of the stage.
        generation: The number of this publication.
        variables: The variables, as `lease_environment` returns them.
    """

    stage: str
    generation: int
    variables: Mapping[str, str] = field(repr=False)

    @property
    def qpu(self) -> JobQPU:
        """The QPU with its acquisition token."""
        (qpu,) = read_job(self.variables).values()
        return qpu

    def is_of(self, stage: Stage) -> bool:
        """Return whether this is the publication that is valid in a stage now."""
        return (self.stage, self.generation) == (stage.id, stage.generation)

    @property
    def usage(self) -> Path | None:
        """The lease's usage file."""
        usage = self.variables.get(QPU_LEASE_USAGE)
        return Path(usage) if usage else None

    @classmethod
    def load(cls, folder: StageFolder) -> Self | None:
        """Read what the keeper has published; `None` if it has published nothing.

        Raises:
            RequestError: The folder is not this user's own.
            ConfigError: The file is malformed.
        """
        try:
            return cls(**json.loads(folder.read(folder.environment)))
        except FileNotFoundError:
            return None
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"{folder.environment}: not what a keeper has published: {error!r}. Close the "
                "stage and open it again."
            ) from error

    def save(self, folder: StageFolder) -> None:
        """Publish.

        Raises:
            OSError: The file could not be written.
        """
        write_atomically(folder.environment, json.dumps(asdict(self)), mode=0o600)


def find_stage(name: str) -> Stage:
    """Return this user's stage of that name, which may have ended.

    Raises:
        RequestError: There is none, or its folder is not this user's own.
        ConfigError: Its file is malformed.
    """
    folder = StageFolder.of(name)
    try:
        return Stage.load(folder)
    except FileNotFoundError as error:
        known = ", ".join(stage.name for stage in list_stages() if not stage.is_ended) or "none"
        raise RequestError(
            f"no stage {name!r} in {folder.path.parent}; open stages: {known}. Open it first: "
            f"`qpu stage open {name} --qpu NAME`."
        ) from error


def list_stages() -> list[Stage]:
    """Return all stages of this user, ended ones included, in the order of their names."""
    stages = []
    for folder in stage_folders():
        try:
            with suppress(FileNotFoundError):
                stages.append(Stage.load(folder))
        except QPUError as error:
            _warn_once(str(error))
    return stages


@functools.cache
def _warn_once(what: str) -> None:
    """Log a warning, once in a process: a command lists the stages several times."""
    logger.warning("%s", what)


def update_stage(name: str, change: Callable[[Stage], Stage]) -> Stage:
    """Change a stage, while nobody else does.

    Args:
        name: The stage's name.
        change: Returns the changed stage; the same one if there is nothing to change.

    Raises:
        RequestError: There is no such stage, or its folder is not this user's own.
        OSError: Its file could not be written.
    """
    with StageFolder.of(name).locked():
        before = find_stage(name)
        after = change(before)
        if after != before:
            after.save()
        return after

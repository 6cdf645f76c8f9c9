"""The folder of a stage on the shared file system: its files, and who may use them.

A stage's folder holds the acquisition token of its lease, so everything in it is private to its
user. Links are not followed and another user's files are not read, even where the state folder is
shared by mistake.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qrmi_workflows.config.folders import state_folder
from qrmi_workflows.errors import RequestError
from qrmi_workflows.state.locks import hold_lock

__all__ = ["StageFolder", "require_stage_name", "stage_folders"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


def require_stage_name(name: str) -> str:
    """Return a stage's name, which is also the name of its folder.

    Raises:
        RequestError: It is not a plain name.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(
            f"stage {name!r}: must be 1 to 64 letters, digits, `_`, `-` or `.`, and not begin with "
            "`-` or `.`. Choose another name."
        )
    return name


@dataclass(frozen=True, slots=True)
class StageFolder:
    """The folder of one stage.

    Attributes:
        path: The folder.
    """

    path: Path

    @classmethod
    def of(cls, name: str) -> StageFolder:
        """Return the folder of this user's stage of that name, which need not exist.

        Raises:
            RequestError: The name is not a plain name.
        """
        return cls(_stages_folder() / require_stage_name(name))

    @property
    def stage(self) -> Path:
        """The file that describes the stage."""
        return self.path / "stage.json"

    @property
    def environment(self) -> Path:
        """The file with the variables that let a process adopt the stage's lease."""
        return self.path / "environment.json"

    @property
    def members(self) -> Path:
        """The folder with a locked file for each process that has joined."""
        return self.path / "members"

    @property
    def wishes(self) -> Path:
        """The folder of files with which others ask something of the keeper."""
        return self.path / "wishes"

    @property
    def lanes(self) -> Path:
        """The folder of the lanes of the QPUs that the stage has had, a folder for each."""
        return self.path / "lanes"

    @property
    def alive(self) -> Path:
        """The file that the keeper touches, and holds locked, as long as it lives."""
        return self.path / "keeper.alive"

    @property
    def log(self) -> Path:
        """The output of the keeper's job."""
        return self.path / "keeper.log"

    def create(self) -> None:
        """Create the folder if it does not exist.

        Raises:
            RequestError: It exists and is not this user's own.
            OSError: It could not be created.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (self.path, self.members, self.wishes):
            folder.mkdir(exist_ok=True, mode=0o700)
            _require_private(folder)

    def exists(self) -> bool:
        """Return whether the folder exists.

        Raises:
            RequestError: It exists and is not this user's own.
        """
        try:
            _require_private(self.path)
        except FileNotFoundError:
            return False
        return True

    def read(self, file: Path) -> str:
        """Read a file of the folder.

        Raises:
            FileNotFoundError: There is no such file.
            RequestError: The folder or the file is not this user's own.
        """
        _require_private(self.path)
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise RequestError(
                f"{file}: cannot be read: {error.strerror}. It must be a file of your own, and no "
                "link. Remove it, or choose another name for the stage."
            ) from error
        with os.fdopen(descriptor, encoding="utf-8") as opened:
            _require_own(file, os.fstat(opened.fileno()))
            return opened.read()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock under which the stage's file is changed; create the folder if needed.

        Raises:
            RequestError: The folder is not this user's own.
            OSError: The folder could not be created, or its file system has no locks.
        """
        self.create()
        with hold_lock(self.path / "lock"):
            yield


def stage_folders() -> Iterator[StageFolder]:
    """Return the folders of all stages of this user, in the order of their names."""
    for path in sorted(_stages_folder().glob("*")):
        if _NAME.fullmatch(path.name):
            yield StageFolder(path)


def _stages_folder() -> Path:
    return state_folder() / "stages"


def _require_private(folder: Path) -> None:
    try:
        found = folder.lstat()
    except PermissionError as error:
        raise RequestError(
            f"{folder}: cannot be read: {error.strerror}. A stage belongs to one user. Set "
            "$QPU_STATE to a folder of your own."
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        raise RequestError(
            f"{folder}: must be a folder, and no link to one. Remove it, or choose another name "
            "for the stage."
        )
    _require_own(folder, found)


def _require_own(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.getuid():
        raise RequestError(
            f"{path}: belongs to user {found.st_uid}. A stage can be used only by the user who "
            "opened it. Open a stage of your own, with $QPU_STATE set to a folder of your own."
        )
    if found.st_mode & 0o077:
        raise RequestError(
            f"{path}: has mode {stat.S_IMODE(found.st_mode):04o}; must not be accessible to other "
            "users, because it gives access to the QPU. Check what is in it, then run "
            f"`chmod go-rwx {path}`."
        )

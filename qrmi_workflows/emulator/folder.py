"""The emulator's state folder: its credentials, lock and database, and the files clients read."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from qrmi_workflows.emulator.dialects import load_dialect
from qrmi_workflows.emulator.settings import EmulatorSettings
from qrmi_workflows.errors import EmulatorError

__all__ = ["Credentials", "Folder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The credentials that clients must present.

    They are kept across restarts, so that clients' configuration and tokens stay valid.

    Attributes:
        key: The key that signs access tokens, in hexadecimal.
        control_token: The bearer token of the control endpoint.
        port: The last port served.
        secrets: The credentials of each vendor's account, by resource type.
    """

    key: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)
    control_token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    port: int = 0
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)

    @property
    def signing_key(self) -> bytes:
        """The key that signs access tokens."""
        return bytes.fromhex(self.key)

    def complete(self, settings: EmulatorSettings, port: int) -> Credentials:
        """Return a copy with the port and an account for every resource type in use."""
        types = {qpu.type for qpu in settings.qpus.values()}
        accounts = {
            name: {**load_dialect(name).new_secrets(), **self.secrets.get(name, {})}
            for name in sorted(types)
        }
        return replace(self, port=port, secrets={**self.secrets, **accounts})


class Folder:
    """The files in the emulator's state folder, readable only by their owner.

    Args:
        path: The folder, which `claim` creates if necessary.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "qrmi_config.json"
        self.control = path / "control.json"
        self.database = path / "emulator.db"
        self.requests = path / "requests.jsonl"
        self._credentials = path / "credentials.json"
        self._lock: int | None = None

    def claim(self) -> None:
        """Create the folder if necessary, and lock it for this process.

        Raises:
            EmulatorError: The folder cannot be written, or another emulator uses it.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.path / "emulator.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise EmulatorError(
                f"--dir {self.path}: {error.strerror or error}. Name a writable folder."
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(self._lock, 20, 0).decode().strip()
            raise EmulatorError(
                f"--dir {self.path}: already used by the emulator with process id {owner}; each "
                "emulator needs its own folder. Stop that emulator or name another folder."
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)

    def read_credentials(self) -> Credentials:
        """Return the folder's credentials, or new random ones if it has none.

        Raises:
            EmulatorError: The file cannot be read.
        """
        try:
            document = json.loads(self._credentials.read_text(encoding="utf-8"))
            return Credentials(**document)
        except FileNotFoundError:
            return Credentials()
        except (OSError, ValueError, TypeError) as error:
            raise EmulatorError(
                f"{self._credentials}: {error}. Correct the file, or remove it to create new "
                "credentials."
            ) from error

    def write(self, credentials: Credentials, settings: EmulatorSettings, url: str) -> None:
        """Write the credentials, `qrmi_config.json`, and the control endpoint's URL and token."""
        _write(self._credentials, asdict(credentials))
        _write(self.config, qrmi_config(credentials, settings, url))
        token = credentials.control_token
        _write(self.control, {"url": f"{url}/control", "token": token, "pid": os.getpid()})


def qrmi_config(credentials: Credentials, settings: EmulatorSettings, url: str) -> dict[str, Any]:
    """Return the content of upstream's `qrmi_config.json` for these QPUs."""
    resources = []
    for qpu in settings.qpus.values():
        dialect = load_dialect(qpu.type)
        environment = dialect.environment(
            qpu.name, f"{url}/{qpu.type}", credentials.secrets[qpu.type]
        )
        resources.append({"name": qpu.name, "type": qpu.type, "environment": environment})
    return {"resources": resources}


def _write(path: Path, document: Mapping[str, Any]) -> None:
    # A reader sees the old file or the new one, never a part of it. mkstemp sets mode 0600.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=2)
        file.write("\n")
    Path(temporary).replace(path)

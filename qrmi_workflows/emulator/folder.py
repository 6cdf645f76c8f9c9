"""The emulator's state folder: its credentials, lock and database, and the files clients read."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from qrmi_workflows.errors import EmulatorError
from qrmi_workflows.state.files import write_atomically
from qrmi_workflows.state.locks import lock_file

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
        self._lock: FileIO | None = None  # locked until this process ends

    def claim(self) -> None:
        """Create the folder if necessary, and lock it for this process.

        Raises:
            EmulatorError: The folder cannot be written, or another emulator uses it.
        """
        lock_path = self.path / "emulator.lock"
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = lock_file(lock_path)
        except BlockingIOError as error:
            owner = lock_path.read_text(encoding="utf-8").strip()
            raise EmulatorError(
                f"--dir {self.path}: already used by the emulator with process id {owner}; each "
                "emulator needs its own folder. Stop that emulator or name another folder."
            ) from error
        except OSError as error:
            raise EmulatorError(
                f"--dir {self.path}: {error.strerror or error}. Name a writable folder."
            ) from error
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()).encode())

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

    def write(self, credentials: Credentials, config: Mapping[str, Any], url: str) -> None:
        """Write the credentials, `qrmi_config.json`, and the control endpoint's URL and token.

        Args:
            credentials: The credentials, which `read_credentials` returns after a restart.
            config: The content of `qrmi_config.json`.
            url: The emulator's base URL.
        """
        _write(self._credentials, asdict(credentials))
        _write(self.config, config)
        token = credentials.control_token
        _write(self.control, {"url": f"{url}/control", "token": token, "pid": os.getpid()})


def _write(path: Path, document: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(document, indent=2) + "\n", mode=0o600)

"""Start an emulator from Python, and control a running one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from qrmi_workflows.errors import EmulatorError
from qrmi_workflows.state.files import read_tail

__all__ = ["Control", "Emulator", "start_emulator"]

_START_SECONDS = 20.0
_STOP_SECONDS = 10.0
# The emulator is normally on a loopback address, which no proxy reaches.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Control:
    """A client of a running emulator's control endpoint.

    Args:
        folder: The emulator's state folder.

    Raises:
        EmulatorError: The folder does not belong to an emulator.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "control.json"
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise EmulatorError(
                f"{path}: {reason}. Name the --dir of a running emulator (a sandbox's is "
                "$QPU_SANDBOX/emulator), or start one with `qpu emulator --dir DIR`."
            ) from error
        self._url: str = document["url"]
        self._token: str = document["token"]

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Send one request and return the decoded response.

        Args:
            method: The HTTP method.
            path: The path below `/control`, such as `/faults`.
            body: The request body, sent as JSON; `None`: no body.

        Raises:
            EmulatorError: The emulator rejected the request, or is not running.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310 - our own http address
            f"{self._url}{path}",
            data=data,
            method=method,
            headers={
                "Authorization": f"Bearer {self._token}",
                "Content-Type": "application/json",
            },
        )
        try:
            with _DIRECT.open(request, timeout=10) as response:
                return json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            reason = json.loads(error.read() or b"{}").get("error", error.reason)
            raise EmulatorError(f"the emulator rejected {method} {path}: {reason}") from error
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise EmulatorError(
                f"no emulator answers at {self._url}: {reason}. Start it with "
                "`qpu emulator --dir DIR`."
            ) from error

    def counters(self) -> dict[str, Any]:
        """Count the tasks and sessions by state, in total and per QPU."""
        counters: dict[str, Any] = self.ask("GET", "/counters")
        return counters

    def billing(self) -> dict[str, Any]:
        """Return what the vendors bill, in seconds: in total, per QPU, session and task."""
        billing: dict[str, Any] = self.ask("GET", "/billing")
        return billing


class Emulator:
    """An emulator in its own process. Leaving its `with` block stops it.

    Attributes:
        url: Its base URL.
        config_path: The path of the `qrmi_config.json` that it wrote.
        folder: Its state folder.
        process: Its process.
    """

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, url: str) -> None:
        self.process = process
        self.folder = folder
        self.url = url
        self.config_path = folder / "qrmi_config.json"

    @property
    def control(self) -> Control:
        """A client of its control endpoint."""
        return Control(self.folder)

    def counters(self) -> dict[str, Any]:
        """Count the tasks and sessions by state, in total and per QPU."""
        return self.control.counters()

    def billing(self) -> dict[str, Any]:
        """Return what the vendors bill, in seconds: in total, per QPU, session and task."""
        return self.control.billing()

    def stop(self) -> int:
        """Stop the process if it is running, and return its exit status."""
        self.process.terminate()
        try:
            return self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def __enter__(self) -> Emulator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def start_emulator(
    folder: Path,
    qpus: Iterable[str] = (),
    *,
    config: Path | None = None,
    port: int | None = None,
    options: Iterable[str] = (),
) -> Emulator:
    """Start an emulator and wait until it serves.

    Args:
        folder: Its state folder, where it also writes its log, `emulator.log`.
        qpus: QPUs as `NAME=TYPE[:MODEL]`; without these and without `config`, the default QPUs.
        config: A TOML file of settings.
        port: The port; `None`: the folder's previous port if that is free, else any free port.
        options: Further options of `qpu emulator`.

    Raises:
        EmulatorError: It did not start within 20 seconds.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    argv = [sys.executable, "-P", "-m", "qrmi_workflows", "emulator", "serve", "--json"]
    argv += ["--dir", str(folder)]
    argv += [item for qpu in qpus for item in ("--qpu", qpu)]
    argv += ["--config", str(config)] if config else []
    argv += ["--port", str(port)] if port is not None else []
    log = folder / "emulator.log"
    ready = folder / ".ready"
    with log.open("ab") as errors, ready.open("wb") as output:
        process = subprocess.Popen(
            [*argv, *options], stdin=subprocess.DEVNULL, stdout=output, stderr=errors
        )
    try:
        url = _await_readiness(process, ready, log)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return Emulator(process, folder, url)


def _await_readiness(process: subprocess.Popen[bytes], ready: Path, log: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        text = ready.read_text(encoding="utf-8")
        if text.endswith("\n"):
            return str(json.loads(text)["url"])
        if process.poll() is not None:
            break
        time.sleep(0.01)
    tail = "\n".join(read_tail(log).splitlines()[-10:])
    problem = (
        f"is not ready after {_START_SECONDS:g} s"
        if process.poll() is None
        else f"exited with status {process.poll()} before it was ready"
    )
    raise EmulatorError(f"the emulator {problem}. The end of its log {log}:\n{tail}")

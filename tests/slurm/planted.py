"""A site with known credentials, and a search for them in places where they must not be."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from changing_files import files_below, read_if_there
from emulated_site import emulated_site

from qrmi_workflows.emulator.client import Control
from qrmi_workflows.sandbox import Sandbox
from qrmi_workflows.schedulers.command import require_success, run_command

__all__ = ["EMULATOR", "REFUSED", "Vault", "open_vault"]

_NULL = ("ibm_fez", "ibm_system", "FRESNEL", "garnet_mock", "felis", "warden")
_TYPES = {
    "ibm_fez": "ibm-quantum-compute-service",
    "ibm_aer": "ibm-quantum-compute-service",
    "ibm_slow": "ibm-quantum-compute-service",
    "ibm_system": "ibm-quantum-system",
    "FRESNEL": "pasqal-cloud",
    "garnet_mock": "iqm-server",
    "felis": "alice-bob-felis",
    "warden": "pasqal-local",
}
_REFUSED = {
    "ibm_refused": "ibm-quantum-compute-service",
    "system_refused": "ibm-quantum-system",
    "FRESNEL_CAN1": "pasqal-cloud",
    "EMU_FREE": "pasqal-cloud",
    "EMU_MPS": "pasqal-cloud",
    "garnet_refused": "iqm-server",
    "felis_refused": "alice-bob-felis",
}
REFUSED = tuple(_REFUSED)
"""QPUs whose vendors refuse the credentials in `qrmi_config.json`."""

# Other ways to log in that a vendor offers; each replaces the one in the emulator's file.
_OTHER_LOGINS = {
    "EMU_FREE": ("QRMI_PASQAL_CLOUD_AUTH_TOKEN",),
    "EMU_MPS": ("PASQAL_USERNAME", "PASQAL_PASSWORD"),
}
_NOT_SECRET = re.compile(r"(ENDPOINT|URL|BUCKET|REGION)$")
_LOGIN = re.compile(r"CLIENT_(ID|SECRET)$")
# What clients derive from credentials: JSON Web Tokens, MUNGE credentials, signed URLs.
_DERIVED = re.compile(rb"eyJ[\w-]+\.[\w-]+\.[\w-]+|MUNGE:[\w+/=]{20,}|X-Amz-Signature=[0-9a-f]{8,}")


def _emulator() -> str:
    tables = [
        f'[qpus.{name}]\ntype = "{kind}"\n' + ('simulator = "null"\n' if name != "ibm_aer" else "")
        for name, kind in (_TYPES | _REFUSED).items()
    ]
    return "\n".join(tables).replace("[qpus.ibm_slow]", "[qpus.ibm_slow]\nexecution_seconds = 60")


EMULATOR = _emulator()
_PROGRAM = f"""#!{sys.executable}
import logging
logging.basicConfig(level=logging.DEBUG)
from qrmi_workflows.cli import main
main()
"""


@dataclass
class Vault:
    """A sandbox and a user whose secrets are known.

    Attributes:
        box: The sandbox.
        folder: The folder of all of the user's files.
        secrets: What each secret is, by its value.
        seen_in_argv: The secrets that were seen in the arguments of a process.
        scans: How often the arguments of all processes were read.
    """

    box: Sandbox
    folder: Path
    secrets: dict[str, str] = field(default_factory=dict)
    seen_in_argv: set[str] = field(default_factory=set)
    scans: int = 0

    @property
    def config(self) -> Path:
        return self.folder / "qrmi_config.json"

    @property
    def open_leases(self) -> list[Path]:
        return list(self.folder.glob("state/leases/open/*.json"))

    @property
    def control(self) -> Control:
        return Control(self.box.directory / "emulator")

    @property
    def environ(self) -> dict[str, str]:
        """The user's environment, in which everything logs as much as it can to the folder."""
        environ = os.environ | self.box.environment()
        programs = f"{self.folder / 'bin'}:{environ['PATH']}:{Path(sys.executable).parent}"
        return environ | {
            "PATH": programs,
            "HOME": str(self.folder / "home"),
            "QPU_CONFIG": str(self.config),
            "QPU_STATE": str(self.folder / "state"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "RUST_LOG": "trace",
            "COLUMNS": "2000",  # a wrapped table would hide a secret
        }

    def plant(self) -> None:
        """Write the user's qrmi_config.json and remember the secrets in it."""
        document = json.loads((self.box.directory / "emulator" / "qrmi_config.json").read_text())
        for resource in document["resources"]:
            name, settings = resource["name"], resource["environment"]
            if name in _REFUSED:
                self._replace_secrets(name, settings)
            for key, value in settings.items():
                if not _NOT_SECRET.search(key):
                    self.secrets.setdefault(value, f"{name} {key}")
        self.config.touch(mode=0o600)
        self.config.write_text(json.dumps(document))
        program = self.folder / "bin" / "qpu"
        program.parent.mkdir()
        program.write_text(_PROGRAM)
        program.chmod(0o755)

    @staticmethod
    def _replace_secrets(name: str, settings: dict[str, Any]) -> None:
        if others := _OTHER_LOGINS.get(name):
            for key in [key for key in settings if _LOGIN.search(key)]:
                del settings[key]
            settings |= dict.fromkeys(others, "")
        for key in settings:
            if not _NOT_SECRET.search(key):
                settings[key] = _planted(f"{name}-{key.lower()}", settings[key])

    def run(
        self, name: str, *argv: str, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; keep its output in a file, which is searched too."""
        done = subprocess.run(
            argv, env={**self.environ, **(environ or {})}, cwd=self.folder, timeout=250,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        (self.folder / f"{name}.log").write_text(done.stdout)
        return done

    def slurm(self, *argv: str) -> str:
        return require_success(run_command(argv, environ=self.environ)).stdout

    def found(self) -> dict[str, set[str]]:
        """Search everywhere; return the names of the secrets found in each place."""
        self._learn_sessions()
        texts = {str(path): self._names_in(read_if_there(path)) for path in self._files()}
        jobs = self.slurm("squeue", "--noheader", "--states=all", "--format=%A").split()
        for job in jobs:
            shown = self.slurm("scontrol", "show", "job", "--details", job)
            script = run_command(
                ["scontrol", "write", "batch_script", job, "-"], environ=self.environ
            )
            texts[f"job {job}"] = self._names_in((shown + script.stdout).encode())
        texts["argv"] = self.seen_in_argv
        return {place: names for place, names in texts.items() if names}

    def _files(self) -> Iterator[Path]:
        """Return all files of the user and of Slurm, and the emulator's log but not its data."""
        spool = re.search(r"SlurmdSpoolDir\s*= (\S+)/", self.slurm("scontrol", "show", "config"))
        assert spool is not None
        runtime = Path(spool[1].split("/%n")[0])
        emulator = self.box.directory / "emulator"
        for path in files_below(self.folder, self.box.directory, runtime):
            is_emulators_data = emulator in path.parents and path.suffix != ".log"
            if path != self.config and not is_emulators_data:
                yield path

    def _names_in(self, data: bytes) -> set[str]:
        names = {name for secret, name in self.secrets.items() if secret.encode() in data}
        return names | {match[:30].decode() for match in _DERIVED.findall(data)}

    def _learn_sessions(self) -> None:
        database = self.box.directory / "emulator" / "emulator.db"
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as store:
            rows = store.execute("SELECT id, qpu FROM sessions").fetchall()
        self.secrets |= {str(session): f"{qpu} acquisition token" for session, qpu in rows}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Search the arguments of all processes of this machine, again and again."""
        stop = threading.Event()
        thread = threading.Thread(target=self._watch, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _watch(self, stop: threading.Event) -> None:
        argv: set[bytes] = set()
        while not stop.wait(0.03):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    argv.add(path.read_bytes())
            self.scans += 1
        self._learn_sessions()
        self.seen_in_argv |= set().union(*map(self._names_in, argv))


def _planted(name: str, like: str) -> str:
    with suppress(ValueError):
        if b":" in b64decode(like, validate=True):
            return b64encode(f"planted-{name}:7f3a".encode()).decode()
    return f"planted-{name}-7f3a"


@contextmanager
def open_vault(folder: Path) -> Iterator[Vault]:
    """Start a sandbox with QPUs of every type, and plant known credentials."""
    work = folder / "work"
    (work / "home").mkdir(parents=True)
    with emulated_site(folder, EMULATOR) as box:
        vault = Vault(box, work)
        vault.plant()
        yield vault

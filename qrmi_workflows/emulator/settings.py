"""What the emulator serves: its QPUs and how each behaves, from the command line or a TOML file.

::

    seed = 7                    # identical requests give identical counts under one seed
    independent = false         # true: identical requests are sampled independently
    workers = 2                 # processes that simulate
    worker_memory_gib = 4.0     # the memory that a simulation may use
    record = false              # true: every request is written to requests.jsonl

    [qpus.ibm_fez]
    type = "ibm-quantum-compute-service"
    model = "fez"               # whose configuration, properties and noise it has
    simulator = "aer"           # or "null": a valid result at once, for benchmarks
    noise = false               # true: the model's calibrated noise
    exact = false               # true: estimates without shot noise, whatever the precision
    strict = false              # true: circuits must be transpiled to the model
    lanes = 5                   # tasks prepared in parallel; one executes at a time
    preparation_seconds = 0.0   # or [low, high], {normal = [mean, deviation]}, …
    execution_seconds = 0.5     # without it: as long as the simulator takes

    [[faults]]                  # see faults.py
    kind = "status"
    status = 503
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qrmi_workflows.emulator.dialects import DIALECTS, load_dialect
from qrmi_workflows.emulator.durations import Duration
from qrmi_workflows.emulator.faults import FaultRule
from qrmi_workflows.errors import EmulatorError

__all__ = ["DEFAULT_QPUS", "EmulatorSettings", "QPUSettings", "parse_qpu", "read_settings"]

DEFAULT_QPUS = ("ibm_fez=ibm-quantum-compute-service:fez", "FRESNEL=pasqal-cloud:AnalogDevice")
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class QPUSettings:
    """One emulated QPU.

    Attributes:
        name: The name that jobs ask for.
        type: QRMI's resource type: which dialect it speaks.
        model: The machine that it resembles (`fez`, `AnalogDevice`).
        simulator: What computes its results.
        noise: Whether results carry the model's calibrated noise.
        exact: Whether estimates come without shot noise, whatever precision was asked for.
        strict: Whether circuits must use the model's own instructions, as IBM's machines ask.
        lanes: How many tasks it prepares in parallel.
        preparation: How long a lane prepares a task.
        execution: How long the device executes a task; `None`: as long as the simulator runs.
        interactive_ttl_seconds: How long an idle session keeps the device.
    """

    name: str
    type: str
    model: str = ""
    simulator: str = ""
    noise: bool = False
    exact: bool = False
    strict: bool = False
    lanes: int = 5
    preparation: Duration = field(default_factory=Duration)
    execution: Duration | None = None
    interactive_ttl_seconds: float = 60.0

    def __post_init__(self) -> None:
        """Fill in the dialect's defaults and refuse what it does not have."""
        where = f"QPU {self.name!r}"
        if not _NAME.fullmatch(self.name):
            raise EmulatorError(
                f"{where}: allowed in a name are letters, digits, `_`, `.` and `-`. Rename it."
            )
        if self.type not in DIALECTS:
            raise _not_allowed(f"{where}: type", self.type, DIALECTS)
        dialect = load_dialect(self.type)
        if dialect.names and self.name not in dialect.names:
            raise _not_allowed(f"name of a {self.type} QPU", self.name, dialect.names)
        object.__setattr__(self, "model", self.model or dialect.default_model)
        object.__setattr__(self, "simulator", self.simulator or dialect.simulators[0])
        if self.model not in dialect.models():
            raise _not_allowed(f"{where}: model", self.model, dialect.models())
        if self.simulator not in dialect.simulators:
            raise _not_allowed(f"{where}: simulator", self.simulator, dialect.simulators)
        if self.lanes < 1:
            raise EmulatorError(f"{where}: lanes = {self.lanes}; allowed is 1 or more.")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatorSettings:
    """What one emulator serves.

    Attributes:
        qpus: Its QPUs, by name.
        seed: What the simulators' random numbers derive from.
        independent: Whether identical requests are sampled independently of one another.
        workers: How many processes simulate.
        worker_memory_gib: The memory that a simulation in one of them may use, in GiB.
        record: Whether every request is written to `requests.jsonl` in the state folder.
        faults: The fault rules in force from the start.
    """

    qpus: Mapping[str, QPUSettings]
    seed: int = 0
    independent: bool = False
    workers: int = field(default_factory=lambda: max(2, os.cpu_count() or 1))
    worker_memory_gib: float = 4.0
    record: bool = False
    faults: tuple[FaultRule, ...] = ()


def parse_qpu(text: str) -> QPUSettings:
    """Read a QPU as the command line gives it: `NAME=TYPE` or `NAME=TYPE:MODEL`.

    Raises:
        EmulatorError: It is neither, or names a type or model that does not exist.
    """
    name, _, rest = text.partition("=")
    type_, _, model = rest.partition(":")
    if not name or not type_:
        raise EmulatorError(
            f"--qpu {text!r}; allowed is NAME=TYPE or NAME=TYPE:MODEL, "
            f"such as {DEFAULT_QPUS[0]}. Correct it."
        )
    return QPUSettings(name=name, type=type_, model=model)


def read_settings(
    path: Path | None = None,
    qpus: Iterable[str] = (),
    seed: int | None = None,
    record: bool = False,
) -> EmulatorSettings:
    """Combine a TOML file and QPUs from the command line; the defaults when there is neither.

    Raises:
        EmulatorError: The file cannot be read, or asks for something that does not exist.
    """
    document = _read_toml(path) if path else {}
    tables = document.pop("qpus", {})
    where = str(path)
    if not isinstance(tables, dict) or not all(isinstance(item, dict) for item in tables.values()):
        raise EmulatorError(f"{where}: qpus = {tables!r}; allowed is one table [qpus.NAME] each.")
    faults = document.pop("faults", [])
    if not isinstance(faults, list) or not all(isinstance(item, dict) for item in faults):
        raise EmulatorError(f"{where}: faults = {faults!r}; allowed is one table [[faults]] each.")
    rules = tuple(FaultRule.parse(item, f"{where}: [[faults]]") for item in faults)
    given = [_qpu(name, table, where) for name, table in tables.items()]
    given += [parse_qpu(text) for text in qpus]
    given = given or [parse_qpu(text) for text in DEFAULT_QPUS]
    settings = _checked(document, _TOP, where)
    settings["record"] = record or settings.get("record", False)
    if seed is not None:
        settings["seed"] = seed
    return EmulatorSettings(qpus={qpu.name: qpu for qpu in given}, faults=rules, **settings)


_TYPES: dict[str, tuple[type, ...]] = {
    "type": (str,),
    "model": (str,),
    "simulator": (str,),
    "noise": (bool,),
    "exact": (bool,),
    "strict": (bool,),
    "lanes": (int,),
    "interactive_ttl_seconds": (int, float),
    "seed": (int,),
    "independent": (bool,),
    "record": (bool,),
    "workers": (int,),
    "worker_memory_gib": (int, float),
}
_DURATIONS = {"preparation_seconds": "preparation", "execution_seconds": "execution"}
_TOP = {"seed", "independent", "workers", "worker_memory_gib", "record"}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise EmulatorError(f"{path}: not TOML: {error}. Correct that place.") from error
    except OSError as error:
        raise EmulatorError(
            f"{path}: {error.strerror or error}. Name a TOML file that you can read."
        ) from error


def _qpu(name: str, table: dict[str, Any], path: str) -> QPUSettings:
    where = f"{path}: [qpus.{name}]"
    settings = _checked(table, (_TYPES.keys() - _TOP) | _DURATIONS.keys(), where)
    for key, attribute in _DURATIONS.items():
        if key in settings:
            settings[attribute] = Duration.parse(settings.pop(key), f"{where}: {key}")
    if "type" not in settings:
        raise EmulatorError(f"{where}: no `type`; allowed: {', '.join(sorted(DIALECTS))}. Add it.")
    return QPUSettings(name=name, **settings)


def _checked(table: Mapping[str, Any], allowed: Iterable[str], where: str) -> dict[str, Any]:
    for key, value in table.items():
        if key not in set(allowed):
            raise _not_allowed(f"{where}: key", key, allowed)
        wanted = _TYPES.get(key)
        if wanted and type(value) not in wanted:
            names = " or ".join(item.__name__ for item in wanted)
            raise EmulatorError(f"{where}: {key} = {value!r}; allowed is a {names}. Correct it.")
        if key in ("workers", "worker_memory_gib", "interactive_ttl_seconds") and value <= 0:
            raise EmulatorError(f"{where}: {key} = {value!r}; allowed is more than 0. Correct it.")
    return dict(table)


def _not_allowed(what: str, value: str, allowed: Iterable[str]) -> EmulatorError:
    return EmulatorError(f"{what} {value!r} is unknown; allowed: {', '.join(sorted(allowed))}.")

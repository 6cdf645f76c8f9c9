"""Read the emulator's settings from a TOML file and the options of the command line.

::

    seed = 7                    # the same jobs give the same results; default: independent
    workers = 2                 # number of simulation processes
    worker_memory_gib = 4.0     # memory limit of one simulation
    simulation_seconds = 50     # limit for wide circuits, and for estimates over many shots
    record = false              # true: write every request to requests.jsonl

    [qpus.ibm_fez]
    type = "ibm-quantum-compute-service"
    model = "fez"               # the machine whose configuration, properties and noise it has
    simulator = "aer"           # or "null": a valid result immediately, for benchmarks
    noise = false               # true: add the model's calibrated noise
    exact = false               # true: no shot noise in estimates, for any requested precision
    strict = false              # true: accept only circuits transpiled for the model
    lanes = 5                   # tasks prepared in parallel; one executes at a time
    preparation_seconds = 0.0   # or [low, high], {normal = [mean, deviation]}, …
    execution_seconds = 0.5     # default: as long as the simulator takes
    pub_seconds = 0.05          # what each PUB of a task adds to execution_seconds; default 0
    queue_seconds = 30          # wait for other customers' work; a distribution as above, or 0
    overhead_seconds = 2        # billed per task besides its QPU seconds; default: the vendor's

    [qpus.ibm_fez.server]       # where real servers differ: see `ServerSettings`
    closing_cancels_running = false

    [[faults]]                  # see faults.py
    kind = "status"
    status = 503
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qrmi_workflows.emulator.dialects import known_types, load_dialect
from qrmi_workflows.emulator.durations import Duration
from qrmi_workflows.emulator.faults import FaultRule
from qrmi_workflows.emulator.settings import EmulatorSettings, QPUSettings, ServerSettings
from qrmi_workflows.errors import EmulatorError

__all__ = ["DEFAULT_QPUS", "parse_qpu", "read_settings"]

DEFAULT_QPUS = ("ibm_fez=ibm-quantum-compute-service:fez", "FRESNEL=pasqal-cloud:AnalogDevice")


def parse_qpu(text: str) -> QPUSettings:
    """Parse a QPU from the command line: `NAME=TYPE` or `NAME=TYPE:MODEL`.

    Raises:
        EmulatorError: The text has another form, or the name, type or model is not allowed.
    """
    name, _, rest = text.partition("=")
    type_, _, model = rest.partition(":")
    if not name or not type_:
        raise EmulatorError(
            f"--qpu {text!r}: must be NAME=TYPE or NAME=TYPE:MODEL. For example: {DEFAULT_QPUS[0]}."
        )
    return _make_qpu(name, type_, model=model)


def read_settings(
    path: Path | None = None,
    qpus: Iterable[str] = (),
    seed: int | None = None,
    record: bool = False,
) -> EmulatorSettings:
    """Combine a TOML file with options from the command line.

    Args:
        path: The TOML file.
        qpus: More QPUs, as `NAME=TYPE[:MODEL]`; if the file has none either, `DEFAULT_QPUS`.
        seed: Overrides the file's seed.
        record: Whether to record requests, even if the file does not say so.

    Raises:
        EmulatorError: The file cannot be read, or a setting is not allowed.
    """
    document = _read_toml(path) if path else {}
    tables = document.pop("qpus", {})
    where = str(path)
    if not isinstance(tables, dict) or not all(isinstance(item, dict) for item in tables.values()):
        raise EmulatorError(
            f"{where}: qpus = {tables!r}: must be a table. Write one [qpus.NAME] per QPU."
        )
    faults = document.pop("faults", [])
    if not isinstance(faults, list) or not all(isinstance(item, dict) for item in faults):
        raise EmulatorError(
            f"{where}: faults = {faults!r}: must be an array of tables. "
            "Write one [[faults]] per rule."
        )
    rules = tuple(FaultRule.parse(item, f"{where}: [[faults]]") for item in faults)
    requested = [_parse_table(name, table, where) for name, table in tables.items()]
    requested += [parse_qpu(text) for text in qpus]
    requested = requested or [parse_qpu(text) for text in DEFAULT_QPUS]
    settings = _check_keys(document, _TOP_LEVEL_KEYS, where)
    settings["record"] = record or settings.get("record", False)
    if seed is not None:
        settings["seed"] = seed
    return EmulatorSettings(qpus={qpu.name: qpu for qpu in requested}, faults=rules, **settings)


_KEY_TYPES: dict[str, tuple[type, ...]] = {
    "type": (str,),
    "model": (str,),
    "simulator": (str,),
    "noise": (bool,),
    "exact": (bool,),
    "strict": (bool,),
    "lanes": (int,),
    "interactive_ttl_seconds": (int, float),
    "overhead_seconds": (int, float),
    "pub_seconds": (int, float),
    "seed": (int,),
    "record": (bool,),
    "workers": (int,),
    "worker_memory_gib": (int, float),
    "simulation_seconds": (int, float),
}
_DURATIONS = {
    "preparation_seconds": "preparation",
    "execution_seconds": "execution",
    "queue_seconds": "queue",
}
_TOP_LEVEL_KEYS = {"seed", "workers", "worker_memory_gib", "simulation_seconds", "record"}
_NON_NEGATIVE_KEYS = ("overhead_seconds", "pub_seconds")
_POSITIVE_KEYS = ("workers", "worker_memory_gib", "simulation_seconds", "interactive_ttl_seconds")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise EmulatorError(f"{path}: not valid TOML: {error}. Correct the file.") from error
    except OSError as error:
        raise EmulatorError(
            f"{path}: {error.strerror or error}. Name a readable TOML file."
        ) from error


def _parse_table(name: str, table: dict[str, Any], path: str) -> QPUSettings:
    where = f"{path}: [qpus.{name}]"
    keys = (_KEY_TYPES.keys() - _TOP_LEVEL_KEYS) | _DURATIONS.keys() | {"server"}
    settings = _check_keys(table, keys, where)
    server = settings.pop("server", {})
    for key, attribute in _DURATIONS.items():
        if key in settings:
            settings[attribute] = Duration.parse(settings.pop(key), f"{where}: {key}")
    if "type" not in settings:
        raise EmulatorError(
            f"{where}: `type` is missing; allowed: {', '.join(known_types())}. Add it."
        )
    type_ = settings.pop("type")
    settings["server"] = _parse_server(server, type_, f"{where}: server")
    return _make_qpu(name, type_, **settings)


def _parse_server(table: object, type_: str, where: str) -> ServerSettings:
    if not isinstance(table, dict):
        raise EmulatorError(f"{where} = {table!r}: must be a table. Correct it.")
    allowed: tuple[str, ...] = ()
    if type_ in known_types():
        dialect = load_dialect(type_)
        allowed = (
            *dialect.server_settings,
            *dialect.billing_settings,
            *dialect.offline_settings,
            *dialect.queue_settings,
        )
    defaults = ServerSettings()
    for key, value in table.items():
        if key not in allowed:
            raise _unknown_value(f"{where}: for type {type_}, the key", key, allowed)
        _require_type(value, (type(getattr(defaults, key)),), f"{where}: {key}")
    return replace(defaults, **table)


def _make_qpu(
    name: str, type_: str, *, model: str = "", simulator: str = "", **settings: Any
) -> QPUSettings:
    """Return a QPU's settings, with the dialect's defaults and checked against the dialect."""
    where = f"QPU {name!r}"
    try:
        dialect = load_dialect(type_)
    except EmulatorError as error:
        raise EmulatorError(f"{where}: {error}") from error
    qpu = QPUSettings(
        name=name,
        type=type_,
        model=model or dialect.default_model,
        simulator=simulator or dialect.simulators[0],
        **({"overhead_seconds": dialect.overhead_seconds} | settings),
    )
    if dialect.names and name not in dialect.names:
        raise _unknown_value(f"for type {type_}, the QPU name", name, dialect.names)
    if qpu.model not in dialect.models():
        raise _unknown_value(f"{where}: model", qpu.model, dialect.models())
    if qpu.simulator not in dialect.simulators:
        raise _unknown_value(f"{where}: simulator", qpu.simulator, dialect.simulators)
    return qpu


def _check_keys(table: Mapping[str, Any], allowed: Iterable[str], where: str) -> dict[str, Any]:
    """Return a copy of a table after checking the names and types of its keys."""
    for key, value in table.items():
        if key not in set(allowed):
            raise _unknown_value(f"{where}: key", key, allowed)
        types = _KEY_TYPES.get(key)
        if types:
            _require_type(value, types, f"{where}: {key}")
        if key in _POSITIVE_KEYS and value <= 0:
            raise EmulatorError(f"{where}: {key} = {value!r}: must be positive. Correct it.")
        if key in _NON_NEGATIVE_KEYS and value < 0:
            raise EmulatorError(f"{where}: {key} = {value!r}: must not be negative. Correct it.")
    return dict(table)


def _require_type(value: object, types: tuple[type, ...], where: str) -> None:
    if type(value) not in types:  # not isinstance: a bool is not a number of lanes
        names = " or ".join(item.__name__ for item in types)
        raise EmulatorError(f"{where} = {value!r}: must be of type {names}. Correct it.")


def _unknown_value(what: str, value: str, allowed: Iterable[str]) -> EmulatorError:
    names = ", ".join(sorted(allowed)) or "none"
    return EmulatorError(f"{what} {value!r} is unknown; allowed: {names}. Correct it.")

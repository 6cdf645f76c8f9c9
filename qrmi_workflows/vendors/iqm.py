"""IQM: circuits of native operations on IQM Server.

The API is documented at https://docs.meetiqm.com/iqm-server, and the circuits by iqm-client
(`iqm.station_control.interface.models.RunRequest`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from qrmi_workflows.errors import PayloadError, ResultError
from qrmi_workflows.vendors.base import (
    Emulation,
    ProgramSettings,
    ResourceType,
    VendorPayload,
    WithoutSDK,
)
from qrmi_workflows.vendors.capabilities import Capabilities

if TYPE_CHECKING:
    import numpy as np

__all__ = ["IQM"]

_CIRCUITS = "circuit"
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["iqmjson", "job_type"],
    "properties": {
        # QRMI's schema says that it is text, but QRMI's generator writes an object.
        "iqmjson": {"type": ["object", "string"]},
        "job_type": {"enum": [_CIRCUITS, "run", "sweep"]},
        "use_timeslot": {"type": ["boolean", "null"]},
        "tag": {"type": ["string", "null"], "maxLength": 50},
    },
    "additionalProperties": False,
}
# The keys of a `RunRequest` without defaults.
_REQUEST_KEYS = frozenset({"circuits", "shots"})
# The name that iqm-client's Qiskit backend gives to a measured bit: its register's name and size,
# the register's index and the bit's index (`MeasurementKey`, iqm-client 35).
_QISKIT_KEY = re.compile(r"(?P<name>.+)_(?P<size>\d+)_(?P<register>\d+)_(?P<bit>\d+)")
# IQM Server gives a reason for a 403, but QRMI's client (0.26.4) drops the text of its answers.
# The reasons are those of the API (`JobSubmit403Response` in QRMI's `iqm_client`).
_REMEDIES = {
    "status code 403": "IQM refuses a task so if the payload has `use_timeslot` and no timeslot of "
    "{qpu} is booked, if it takes tasks in timeslots only, or if the account's credits or quota "
    "are used up. Check these at IQM, and `use_timeslot` in the payload."
}
# Operations that are not gates of the target: they apply to all qubits.
_EVERYWHERE = frozenset({"barrier", "delay"})


@dataclass(frozen=True, slots=True)
class _IQM(WithoutSDK):
    name: str = "iqm"
    reads: tuple[str, ...] = ("IQM JSON (.json)",)

    @property
    def schema(self) -> Mapping[str, Any]:
        return _SCHEMA

    @property
    def types(self) -> Mapping[str, ResourceType]:
        # QRMI's client (0.26.4) asks for a job's state with a wait of 30 s, even to cancel it.
        # The times are those of IT4Innovations' VLQ, a QPU of IQM's
        # (https://docs.it4i.cz/en/docs/clusters/vlq/vlq-consumption-guide).
        return {
            "iqm-server": ResourceType(
                qrmi="IQMServer",
                release_takes_token=True,
                status_waits=True,
                shot_seconds=0.0004,
                least_seconds=0.9,
                emulation=Emulation(models=lambda: {name: name for name in ("adonis", "garnet")}),
                remedies=_REMEDIES,
            )
        }

    def read(
        self, source: bytes | Mapping[str, Any], settings: ProgramSettings, *, where: str
    ) -> Mapping[str, Any] | None:
        if isinstance(source, bytes) or not set(source) >= _REQUEST_KEYS:
            return None
        settings.require_only("shots", where=where, subject="IQM's circuits")
        request = source if settings.shots is None else {**source, "shots": settings.shots}
        return {"iqmjson": request, "job_type": _CIRCUITS}

    def program(self, content: Mapping[str, Any]) -> str:
        return str(content["job_type"])

    def check(self, content: Mapping[str, Any], *, qpu: str, target: str | None) -> None:
        request = _read_request(content)
        if content["job_type"] == _CIRCUITS:
            _check_circuits(request, _read_gates(target), qpu)

    def encode(self, content: Mapping[str, Any]) -> VendorPayload:
        return VendorPayload(
            kind="IQMServer",
            fields={
                "iqmjson": json.dumps(_read_request(content)),
                "job_type": content["job_type"],
                "use_timeslot": bool(content.get("use_timeslot")),
                "tag": content.get("tag"),
            },
        )

    def count_shots(self, content: Mapping[str, Any]) -> int | None:
        if content["job_type"] != _CIRCUITS:
            return None
        request = _read_request(content)
        return int(request["shots"]) * len(request["circuits"])

    def with_shots(self, content: Mapping[str, Any], shots: int) -> Mapping[str, Any]:
        if content["job_type"] != _CIRCUITS:
            raise PayloadError(
                f"shots={shots}: only a payload with the job_type {_CIRCUITS!r} has shots, not "
                f"{content['job_type']!r}. Change it in `iqmjson`."
            )
        return {**content, "iqmjson": {**_read_request(content), "shots": shots}}

    def decode(self, program: str, text: str) -> list[dict[str, Any]] | None:
        if program != _CIRCUITS:
            return None
        return [{"registers": registers} for registers in _read_result(text, _to_counts)]

    def arrays(
        self,
        program: str,  # noqa: ARG002 - part of the protocol
        text: str,
    ) -> list[dict[str, np.ndarray[Any, Any]]]:
        import numpy as np

        def to_array(rows: list[list[int]]) -> np.ndarray[Any, Any]:
            return np.array(rows, dtype=np.uint8)

        return _read_result(text, to_array)

    def calibrated(self, target: str) -> str | None:
        try:
            observations = json.loads(target)["calibration_set"]
            date = observations.get("end_timestamp") or observations.get("created_timestamp")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _invalid_target(target) from error
        return str(date) if date else None

    def capabilities(self, target: str, *, qpu: str) -> Capabilities:  # noqa: ARG002
        # The qubits that are calibrated, which may be fewer than the machine has.
        try:
            architecture = json.loads(target)["dynamic_quantum_architecture"]
            return Capabilities.of(len(architecture["qubits"]), architecture["gates"])
        except (KeyError, TypeError, ValueError) as error:
            raise _invalid_target(target) from error


IQM = _IQM()


def _invalid_target(target: str) -> ResultError:
    return ResultError(
        f"not a valid target of an IQM QPU: {target!r:.60}. Fetch it again: `qpu target NAME` and "
        "`lease.target()` return it as text."
    )


def _read_request(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the input of a job, which may be an object or the text of one."""
    request = content["iqmjson"]
    if isinstance(request, str):
        try:
            request = json.loads(request)
        except (ValueError, RecursionError) as error:
            raise PayloadError(
                f"iqmjson: not valid JSON: {error}. Must be an object, or the text of one. Correct "
                "the payload."
            ) from error
    if not isinstance(request, Mapping):
        raise PayloadError(
            f"iqmjson: has type {type(request).__name__}; must be an object, or the text of one. "
            "Correct the payload."
        )
    return request


def _check_circuits(
    request: Mapping[str, Any], gates: Mapping[str, frozenset[tuple[str, ...]]], qpu: str
) -> None:
    circuits, shots = request.get("circuits"), request.get("shots")
    if not isinstance(circuits, list) or not circuits:
        raise PayloadError(
            f"iqmjson['circuits']={circuits!r:.80}: must be a list of one or more circuits. "
            "Correct the payload."
        )
    if not isinstance(shots, int) or isinstance(shots, bool) or shots < 1:
        raise PayloadError(
            f"iqmjson['shots']={shots!r:.80}: must be a positive integer. Ask for at least 1."
        )
    for index, circuit in enumerate(circuits):
        _check_circuit(circuit, f"iqmjson['circuits'][{index}]", gates, qpu)


def _check_circuit(
    circuit: object, where: str, gates: Mapping[str, frozenset[tuple[str, ...]]], qpu: str
) -> None:
    instructions = circuit.get("instructions") if isinstance(circuit, Mapping) else None
    if not isinstance(instructions, list):
        raise PayloadError(
            f"{where}: must be an object with a list of `instructions`. Correct the payload."
        )
    names = [item.get("name") for item in instructions if isinstance(item, Mapping)]
    if not any(str(name).startswith("measure") for name in names):
        raise PayloadError(
            f"{where}: measures nothing; must have at least one `measure`. Add measurements."
        )
    for position, item in enumerate(instructions):
        if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
            raise PayloadError(
                f"{where}['instructions'][{position}]: must be an object with a `name`. Correct "
                "the payload."
            )
        _check_locus(item, f"{where}['instructions'][{position}]", gates, qpu)


def _check_locus(
    item: Mapping[str, Any],
    where: str,
    gates: Mapping[str, frozenset[tuple[str, ...]]],
    qpu: str,
) -> None:
    """Refuse an operation on qubits where the QPU does not have it; others are the vendor's."""
    loci, locus = gates.get(item["name"]), item.get("locus") or item.get("qubits") or ()
    if loci is None or item["name"] in _EVERYWHERE:
        return
    # A measurement of several qubits is one of each, and CZ is the same both ways.
    if any(variant in loci for variant in (tuple(locus), tuple(reversed(locus)))) or all(
        (name,) in loci for name in locus
    ):
        return
    allowed = ", ".join(sorted("-".join(each) for each in loci))
    raise PayloadError(
        f"{where}: QPU {qpu!r} has no {item['name']!r} on {'-'.join(locus)}; must be on one of: "
        f"{allowed:.300}. Transpile the circuit for this QPU; `qpu target {qpu} --refresh` prints "
        "its gates."
    )


@lru_cache(maxsize=8)
def _read_gates(target: str | None) -> Mapping[str, frozenset[tuple[str, ...]]]:
    """Return where a target has each gate; empty if it is unknown, as the vendor checks it too."""
    try:
        gates = json.loads(target or "")["dynamic_quantum_architecture"]["gates"]
        return {
            name: frozenset(
                tuple(locus)
                for implementation in gate["implementations"].values()
                for locus in implementation["loci"]
            )
            for name, gate in gates.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}


def _read_result(text: str, convert: Callable[[list[list[int]]], Any]) -> list[dict[str, Any]]:
    """Return the registers of each circuit, with the bits of all shots converted."""
    try:
        document = json.loads(text)
        # QRMI 0.26.4 returns null for an artifact that the server does not have.
        if document["measurements"] is not None:
            circuits = [_to_registers(measured) for measured in document["measurements"]]
        else:
            circuits = [_to_joint_register(counts) for counts in document["measurement_counts"]]
        return [{name: convert(rows) for name, rows in circuit.items()} for circuit in circuits]
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
        raise ResultError(
            f"IQM's result cannot be decoded ({error!r}); must have `measurements`, the bits of "
            "each shot by measurement key, or `measurement_counts`. A newer release of "
            "qrmi-workflows may decode it; the task need not run again."
        ) from error


def _to_registers(measured: Mapping[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    """Return the rows of bits of each register; each row is one shot.

    The bits of Qiskit's registers are joined, with the highest bit first. Any other key is a
    register with its first qubit first.
    """
    names = {key: _QISKIT_KEY.fullmatch(key) for key in measured}
    if not all(names.values()):
        return {key: [[int(bit) for bit in row] for row in rows] for key, rows in measured.items()}
    registers: dict[str, list[list[int]]] = {}
    for key, rows in measured.items():
        match = names[key]
        assert match is not None  # noqa: S101 - for mypy
        size, bit = int(match["size"]), int(match["bit"])
        register = registers.setdefault(match["name"], [[0] * size for _ in rows])
        for joined, (value,) in zip(register, rows, strict=True):
            joined[size - 1 - bit] = int(value)
    return registers


def _to_joint_register(document: Mapping[str, Any]) -> dict[str, list[list[int]]]:
    """Return the only register that counts without shots allow: the bits of all keys together."""
    name = "_".join(document["measurement_keys"])
    rows: Iterable[tuple[str, int]] = sorted(document["counts"].items())
    return {name: [[int(bit) for bit in bits] for bits, count in rows for _ in range(count)]}


def _to_counts(rows: list[list[int]]) -> dict[str, Any]:
    counts = Counter("".join(map(str, row)) for row in rows)
    return {"num_bits": len(rows[0]) if rows else 0, "counts": dict(sorted(counts.items()))}

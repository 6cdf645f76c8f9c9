"""Pasqal: Pulser sequences, through Pasqal Cloud and Pasqal Local."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from qrmi_workflows.errors import PayloadError, ResultError
from qrmi_workflows.vendors.base import (
    Converter,
    ProgramSettings,
    ResourceType,
    VendorPayload,
    needs_extra,
)

if TYPE_CHECKING:
    import numpy as np
    from pulser import Sequence
    from pulser.backend.results import Results

__all__ = ["PASQAL", "device_specs", "to_pulser_results"]

_TYPES = {
    "pasqal-cloud": ResourceType(qrmi="PasqalCloud"),
    "pasqal-local": ResourceType(qrmi="PasqalLocal"),
}
_FRONTENDS = {
    "pulser_backend": "qrmi_workflows.frontends.pulser:make_backend",
    "pulser_connection": "qrmi_workflows.frontends.pulser:make_connection",
}
_CONVERTERS = {
    "to_pulser_results": Converter(
        programs=("pulser",), function="qrmi_workflows.vendors.pasqal:to_pulser_results"
    )
}
_REPRESENTATION = frozenset({"register", "version", "channels", "operations"})
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["sequence", "job_runs"],
    "properties": {
        "sequence": {"type": "object", "required": ["register"]},
        "job_runs": {"type": "integer", "minimum": 1},
    },
}


@dataclass(frozen=True, slots=True)
class _Pasqal:
    name: str = "pasqal"
    reads: tuple[str, ...] = ("Pulser's abstract representation (.json)",)

    @property
    def schema(self) -> Mapping[str, Any]:
        return _SCHEMA

    @property
    def types(self) -> Mapping[str, ResourceType]:
        return _TYPES

    @property
    def frontends(self) -> Mapping[str, str]:
        return _FRONTENDS

    @property
    def converters(self) -> Mapping[str, Converter]:
        return _CONVERTERS

    def identities(self) -> Mapping[type, Callable[[Any], bytes]]:
        if find_spec("pulser") is None:
            return {}
        from pulser import Sequence

        return {Sequence: lambda sequence: str(sequence.to_abstract_repr()).encode()}

    def read(
        self, source: bytes | Mapping[str, Any], settings: ProgramSettings, *, where: str
    ) -> Mapping[str, Any] | None:
        if isinstance(source, bytes) or not set(source) >= _REPRESENTATION:
            return None
        settings.require_only("shots", where=where, reason="a sequence is sampled")
        if settings.shots is None:
            raise PayloadError(
                f"{where}: a sequence does not say how often to run it. Give a number of shots "
                "(`--shots 100`)."
            )
        return {"sequence": source, "job_runs": settings.shots}

    def program(self, content: Mapping[str, Any]) -> str:  # noqa: ARG002 - the protocol's
        return "pulser"

    def check(self, content: Mapping[str, Any], *, qpu: str, target: str | None) -> None:
        sequence = content["sequence"]
        _check_built(sequence)
        if target is not None:
            _check_device(sequence, content["job_runs"], _devices(target), qpu)

    def encode(self, content: Mapping[str, Any]) -> VendorPayload:
        return VendorPayload(
            kind="PasqalCloud",
            fields={"sequence": json.dumps(content["sequence"]), "job_runs": content["job_runs"]},
        )

    def with_shots(self, content: Mapping[str, Any], shots: int) -> Mapping[str, Any]:
        return {**content, "job_runs": shots}

    def decode(self, program: str, text: str) -> list[dict[str, Any]]:
        counts = _counter(program, text)
        num_bits = len(next(iter(counts), ""))
        return [{"registers": {"atoms": {"num_bits": num_bits, "counts": counts}}}]

    def arrays(self, program: str, text: str) -> list[dict[str, np.ndarray[Any, Any]]]:
        import numpy as np

        counts = _counter(program, text)
        rows = np.array([[int(bit) for bit in bits] for bits in counts], dtype=np.uint8)
        return [{"atoms": np.repeat(rows, list(counts.values()), axis=0)}]

    def calibrated(self, target: str) -> str | None:
        if not _devices(target):
            raise ResultError(f"not a target of Pasqal's: {target!r:.60}. Fetch it again.")
        return None  # Pulser's devices do not say it


PASQAL = _Pasqal()


def device_specs(target: str) -> dict[str, str]:
    """Return the devices of a target, by their names at the vendor, as Pulser serialises them.

    Args:
        target: Pasqal Cloud's list of devices, or the one device of Pasqal Local.

    Raises:
        ValueError, TypeError, KeyError: It is of another form.
    """
    listed = json.loads(target)
    if isinstance(listed, list):
        return {device["device_type"]: device["specs"] for device in listed}
    specs = listed.get("specs", target)
    return {json.loads(specs)["name"]: specs}


def to_pulser_results(text: str, sequence: Sequence | str | Mapping[str, Any]) -> Results:
    """Give a result to Pulser; needs the extra `pasqal`.

    Args:
        text: What the vendor sent.
        sequence: The sequence that was run, or its abstract representation.

    Raises:
        ResultError: The result is not of the vendor's form, or not of this sequence.
        ConfigError: Pulser is not installed.
    """
    with needs_extra("pasqal"):
        import pulser
        from pulser.backend.results import Results

    if isinstance(sequence, Mapping):
        sequence = json.dumps(sequence)
    if isinstance(sequence, str):
        sequence = pulser.Sequence.from_abstract_repr(sequence)
    atoms = sequence.get_register(include_mappable=True).qubit_ids
    counts = _counter("pulser", text)
    if any(len(bits) != len(atoms) for bits in counts):
        raise ResultError(
            f"bit strings of {len(next(iter(counts)))} atoms, and a sequence of {len(atoms)}. "
            "Give the sequence that was run."
        )
    results: Results = Results.from_final_bitstrings(
        atom_order=atoms, total_duration=sequence.get_duration(), final_bitstrings=counts
    )
    return results


def _counter(program: str, text: str) -> dict[str, int]:
    try:
        return {str(bits): int(n) for bits, n in sorted(json.loads(text)["counter"].items())}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ResultError(
            f"Pasqal's result of this {program} sequence has no counter of bit strings "
            f"({error!r}). Its text is kept in `vendor_result`."
        ) from error


@lru_cache(maxsize=8)
def _devices(target: str) -> dict[str, dict[str, Any]]:
    """Read the devices of a target, by the name that sequences have them under."""
    try:
        listed = [json.loads(specs) for specs in device_specs(target).values()]
        return {specs["name"]: specs for specs in listed}
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}  # of a form that is not known: the vendor has the last word


def _check_built(sequence: Mapping[str, Any]) -> None:
    if variables := sequence.get("variables"):
        raise PayloadError(
            f"the sequence has unbound parameters: {', '.join(variables)}. Give values for them: "
            "`sequence.build(NAME=…)`, and write that."
        )
    register = sequence["register"]
    if isinstance(register, list) and any(isinstance(a, dict) and "x" not in a for a in register):
        raise PayloadError(
            "the sequence's register is mappable: its atoms have no places yet. Place them: "
            "`sequence.build(qubits={…})`, and write that."
        )


def _check_device(
    sequence: Mapping[str, Any], runs: int, devices: Mapping[str, Mapping[str, Any]], qpu: str
) -> None:
    asked = sequence.get("device")
    if not devices or not isinstance(asked, Mapping):
        return
    if asked.get("name") not in devices:
        raise PayloadError(
            f"the sequence is for the device {asked.get('name')!r}; allowed on QPU {qpu!r}: "
            f"{', '.join(devices)}. Build it for one of those (`sequence.switch_device`); "
            f"`qpu target {qpu}` gives them, with --refresh anew."
        )
    device, atoms = devices[asked["name"]], len(sequence["register"])
    for what, number, most in (
        ("runs", runs, device.get("max_runs")),
        ("atoms", atoms, device.get("max_atom_num")),
    ):
        if most is not None and number > most:
            raise PayloadError(
                f"{number} {what}; QPU {qpu!r} allows at most {most}. Ask for fewer."
            )

"""A vendor in one file and one entry point: its QPU prepares bits and measures them.

A program of the toy is a line of text, `TOY 101`. QRMI's client reaches the QPU as one of its own
resource types, because the toy's API is Felis, the API of Alice & Bob, with other programs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from qrmi_workflows.errors import PayloadError, ResultError
from qrmi_workflows.vendors.base import (
    Converter,
    ProgramSettings,
    ResourceType,
    Vendor,
    VendorPayload,
)

if TYPE_CHECKING:
    import numpy as np

    from qrmi_workflows import Lease

_NOTATION = b"TOY "
_DEFAULT_SHOTS = 100


class ToyVendor:
    """The interface is documented in `qrmi_workflows.vendors.base.Vendor`."""

    name = "toy"
    types: ClassVar = {"toy-qpu": ResourceType(qrmi="AliceBobFelis")}
    reads = ("the toy's notation (.toy)",)
    schema: ClassVar = {
        "type": "object",
        "required": ["toy_bits", "toy_shots"],
        "properties": {
            "toy_bits": {"type": "string", "pattern": "^[01]+$"},
            "toy_shots": {"type": "integer", "minimum": 1},
        },
    }
    frontends: ClassVar = {
        "sampler": "toy_vendor:make_sampler",
        "toy_batch": "toy_vendor:run_batch",
    }
    converters: ClassVar = {
        "to_toy_tally": Converter(programs=("toy",), function="toy_vendor:to_toy_tally")
    }

    def identities(self) -> Mapping[type, Callable[[Any], bytes]]:
        return {}

    def read(
        self, source: bytes | Mapping[str, Any], settings: ProgramSettings, *, where: str
    ) -> Mapping[str, Any] | None:
        if not isinstance(source, bytes) or not source.startswith(_NOTATION):
            return None
        settings.require_only("shots", where=where, subject="a program of the toy")
        bits = source.removeprefix(_NOTATION).decode(errors="replace").strip()
        return {"toy_bits": bits, "toy_shots": settings.shots or _DEFAULT_SHOTS}

    def program(self, content: Mapping[str, Any]) -> str:
        return "toy"

    def check(self, content: Mapping[str, Any], *, qpu: str, target: str | None) -> None:
        bits = content["toy_bits"]
        if target is not None and len(bits) > (size := json.loads(target)["numQubits"]):
            raise PayloadError(
                f"toy_bits={bits!r}: has {len(bits)} bits; QPU {qpu!r} allows at most {size}. "
                "Prepare fewer."
            )

    def encode(self, content: Mapping[str, Any]) -> VendorPayload:
        return VendorPayload(
            kind="AliceBobFelis",
            fields={
                "human_qir": f"TOY {content['toy_bits']}",
                "input_params": json.dumps({"nbShots": content["toy_shots"]}),
            },
        )

    def with_shots(self, content: Mapping[str, Any], shots: int) -> Mapping[str, Any]:
        return {**content, "toy_shots": shots}

    def decode(self, program: str, text: str) -> list[dict[str, Any]]:
        counts = _parse_counts(text)
        num_bits = len(next(iter(counts), ""))
        return [{"registers": {"toy": {"num_bits": num_bits, "counts": counts}}}]

    def arrays(self, program: str, text: str) -> list[dict[str, np.ndarray[Any, Any]]]:
        import numpy as np

        counts = _parse_counts(text)
        rows = np.array([[int(bit) for bit in bits] for bits in counts], dtype=np.uint8)
        return [{"toy": np.repeat(rows, list(counts.values()), axis=0)}]

    def calibrated(self, target: str) -> str | None:
        try:
            json.loads(target)["numQubits"]
        except (KeyError, TypeError, ValueError) as error:
            raise ResultError(f"not a target of the toy: {target!r:.60}.") from error
        return None  # the toy needs no calibration


TOY: Vendor = ToyVendor()


def _parse_counts(text: str) -> dict[str, int]:
    """Parse the vendor's result: lines of a bit string, a comma and a count."""
    try:
        rows = [line.split(",") for line in text.splitlines()]
        return {bits: int(count) for bits, count in rows}
    except ValueError as error:
        raise ResultError(f"not a result of the toy: {text!r:.60}.") from error


class ToySampler:
    """The toy's programming interface: give it bits, get counts."""

    def __init__(self, lease: Lease, shots: int) -> None:
        self._lease = lease
        self._shots = shots

    def run(self, bits: str) -> dict[str, int]:
        """Prepare the bits and return the counts."""
        result = self._lease.run({"toy_bits": bits, "toy_shots": self._shots})
        return dict(result.counts())


def make_sampler(lease: Lease, options: Mapping[str, Any] | None = None) -> ToySampler:
    """Implement `lease.sampler(options)`."""
    return ToySampler(lease, **{"shots": _DEFAULT_SHOTS, **(options or {})})


def run_batch(lease: Lease, programs: Iterable[str], *, shots: int) -> list[dict[str, int]]:
    """Implement `lease.frontend("toy_batch", programs, shots=…)`."""
    payloads = [{"toy_bits": bits, "toy_shots": shots} for bits in programs]
    return [dict(result.counts()) for result in lease.map(payloads)]


class ToyTally(NamedTuple):
    """A result as the toy's own programs use it."""

    likeliest: str
    shots: int


def to_toy_tally(text: str) -> ToyTally:
    """Implement `result.convert("to_toy_tally")`."""
    counts = _parse_counts(text)
    likeliest = max(counts, key=lambda bits: counts[bits])
    return ToyTally(likeliest, sum(counts.values()))

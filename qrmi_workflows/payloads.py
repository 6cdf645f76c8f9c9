"""Payloads: what a task is made of, read from files and checked before anything is acquired.

A payload file is one JSON object of upstream's `task_runner` schema. Its keys tell the vendor:
`program_id` and `parameters` are IBM's primitives, `sequence` and `job_runs` Pasqal's. A file that
has nothing but a program (OpenQASM 3, QPY, Pulser's abstract representation) is made into one.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from qrmi_workflows.errors import PayloadError
from qrmi_workflows.vendors.base import ProgramSettings
from qrmi_workflows.vendors.registry import load_vendor, read_program, vendor_of_payload

__all__ = ["MAX_BYTES", "Payload", "PayloadLike", "to_payload"]

MAX_BYTES = 50_000_000
"""The largest payload that is sent: what is larger is more likely a mistake than an experiment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """One task's input, valid for its vendor.

    Attributes:
        vendor: The vendor's name (`ibm`).
        content: The object as the file has it.
        digest: The SHA-256 of the content, equal for equal payloads whatever their key order.

    Raises:
        PayloadError: The content is not JSON, or larger than `MAX_BYTES`.
    """

    vendor: str
    content: Mapping[str, Any] = field(repr=False)
    digest: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        try:
            text = json.dumps(
                self.content, sort_keys=True, separators=(",", ":"), allow_nan=False
            ).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise PayloadError(
                f"the payload is not JSON: {error}. Allowed are objects, lists, strings and finite "
                "numbers; make arrays lists (`.tolist()`)."
            ) from error
        _check_size("the payload", len(text))
        object.__setattr__(self, "digest", hashlib.sha256(text).hexdigest())

    @classmethod
    def from_file(
        cls,
        path: Path | str,
        *,
        program: str | None = None,
        shots: int | None = None,
        observables: Any = None,
        parameter_values: Any = None,
        precision: float | None = None,
    ) -> Self:
        """Read a payload file, or one that has nothing but a program.

        Args:
            path: JSON of upstream's schema, OpenQASM 3, QPY, or Pulser's abstract representation.
            program: `sampler` or `estimator`; for circuits, and by default as `observables` tell.
            shots: How often to sample, instead of what the file says.
            observables: What to estimate, on the circuit's own qubits: a Pauli label (`"ZZ"`), a
                map of labels to coefficients, or lists of those; for circuits alone.
            parameter_values: Values of the circuit's parameters; the last axis runs over them.
            precision: The standard error that the estimates reach; for circuits alone.

        Raises:
            PayloadError: The file is missing, too large, malformed, or of no vendor's form; or it
                already says what is given here.
            ConfigError: Reading it needs a package that is not installed.
        """
        path = Path(path)
        settings = ProgramSettings(
            program=program,
            shots=None if shots is None else _positive(shots),
            observables=observables,
            parameter_values=parameter_values,
            precision=None if precision is None else _finite(precision),
        )
        source = _read(path)
        if isinstance(source, bytes | Mapping):
            content = read_program(source, settings, where=str(path))
            if content is not None:
                return cls.from_content(content, where=str(path))
        settings.require_only("shots", where=str(path), reason="the file is a whole payload")
        payload = cls.from_content(source, where=str(path))
        return payload if shots is None else payload.with_shots(shots)

    @classmethod
    def from_content(cls, content: object, *, where: str = "payload") -> Self:
        """Take a payload that is already in memory.

        Args:
            content: An object of upstream's schema.
            where: What to call it in messages.

        Raises:
            PayloadError: It is of no vendor's schema.
        """
        vendor = vendor_of_payload(content, where=where)
        if not isinstance(content, Mapping):  # vendor_of_payload has refused it already
            raise TypeError(content)
        return cls(vendor=vendor.name, content=content)

    @property
    def program(self) -> str:
        """What kind of program it is: `sampler`, `estimator`, `pulser`."""
        return load_vendor(self.vendor).program(self.content)

    def with_shots(self, shots: int) -> Self:
        """Return the same payload with another number of shots.

        Raises:
            PayloadError: The number is not positive, or the program has no shots.
        """
        content = load_vendor(self.vendor).with_shots(self.content, _positive(shots))
        return type(self)(vendor=self.vendor, content=content)

    def require_type(self, qpu: str, resource_type: str) -> None:
        """Refuse a QPU that another vendor makes.

        Raises:
            PayloadError: The payload is for another vendor than the QPU's.
        """
        vendor = load_vendor(self.vendor)
        if resource_type not in vendor.types:
            raise PayloadError(
                f"this {vendor.name} payload ({self.program}) cannot run on QPU {qpu!r} of type "
                f"{resource_type!r}; allowed: QPUs of type {', '.join(vendor.types)}. "
                "Name such a QPU; `qpu list` shows their types."
            )

    def require_fit(self, qpu: str, target: str | None) -> None:
        """Refuse what the QPU would refuse: unbound parameters, a circuit that is not ISA, ….

        Args:
            qpu: The QPU's name.
            target: What the QPU can do, as `Lease.target` gives it; when it is `None` only what
                no QPU takes is refused.

        Raises:
            PayloadError: The payload cannot run there.
        """
        load_vendor(self.vendor).check(self.content, qpu=qpu, target=target)


PayloadLike = Payload | Mapping[str, Any] | Path | str
"""A payload, its content, or the path of its file."""


def to_payload(payload: PayloadLike, *, shots: int | None = None) -> Payload:
    """Return a payload given in any of its forms.

    Args:
        payload: The payload, its content, or the path of its file.
        shots: A number of shots to use instead of its own.

    Raises:
        PayloadError: It cannot be read, or fits no vendor's schema.
    """
    if isinstance(payload, Path | str):
        return Payload.from_file(payload, shots=shots)
    valid = payload if isinstance(payload, Payload) else Payload.from_content(payload)
    return valid if shots is None else valid.with_shots(shots)


def _read(path: Path) -> Any:
    """Return a file's JSON value, or its bytes where it is no JSON by its first character."""
    try:
        _check_size(str(path), path.stat().st_size)
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)  # a device or a pipe does not say its size
        _check_size(str(path), len(data))
        if data.lstrip()[:1] not in (b"{", b"["):
            return data
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=_distinct, parse_constant=_no_number
        )
    except (ValueError, RecursionError) as error:
        raise PayloadError(
            f"{path}: not JSON: {error}. A payload is one JSON object; correct that place."
        ) from error
    except OSError as error:
        raise PayloadError(
            f"{path}: {error.strerror}. Name a payload file that you can read."
        ) from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} is there twice")
    return document


def _no_number(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON's")


def _check_size(what: str, size: int) -> None:
    if size > MAX_BYTES:
        raise PayloadError(
            f"{what} is of {size / 1e6:.1f} MB; allowed are {MAX_BYTES / 1e6:.0f} MB. Split it "
            "into tasks, or send parameter values instead of circuits that have them bound."
        )


def _finite(precision: float) -> float:
    if not 0 <= precision < math.inf:
        raise PayloadError(
            f"precision = {precision!r}: allowed is a number from 0 on. Give the standard error "
            "that the estimates are to reach."
        )
    return precision


def _positive(shots: int) -> int:
    try:
        number = operator.index(shots)
    except TypeError:
        number = 0
    if number < 1 or isinstance(shots, bool):
        raise PayloadError(
            f"shots = {shots!r}: allowed is a whole number from 1 on. Ask for as many as you need."
        )
    return number

"""Payloads: the inputs of tasks, read from files and checked before a QPU is acquired.

A payload file is one JSON object in the schema of QRMI's `task_runner`. Its keys identify the
vendor: `program_id` and `parameters` for IBM, `sequence` and `job_runs` for Pasqal. A file that
holds only a program (OpenQASM 3, QPY, Pulser's abstract representation) is converted to a payload.
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
"""The maximum size of a payload; a larger one is more likely a mistake than an experiment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """The input of one task, valid for its vendor.

    Attributes:
        vendor: The vendor's name (`ibm`).
        content: The JSON object of the payload file.
        digest: The SHA-256 of the content, which does not depend on the order of keys.

    Raises:
        PayloadError: The content is not valid JSON, or larger than `MAX_BYTES`.
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
                f"the payload is not valid JSON: {error}. Must consist of objects, lists, strings "
                "and finite numbers. Convert arrays to lists with `.tolist()`."
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
        """Read a payload file, or a file that holds only a program.

        Args:
            path: A file in JSON of `task_runner`'s schema, OpenQASM 3, QPY, or Pulser's abstract
                representation.
            program: `sampler` or `estimator`, for circuits. The default is `estimator` if there are
                observables, otherwise `sampler`.
            shots: The number of shots; overrides the file's own.
            observables: For circuits: the observables to estimate, on the circuit's own qubits. A
                Pauli label (`"ZZ"`), a mapping from labels to coefficients, or a list of these.
            parameter_values: For circuits: parameter values; the last axis indexes the parameters.
            precision: For circuits: the standard error that the estimates must reach.

        Raises:
            PayloadError: The file is missing, too large, malformed or in an unknown format, or an
                argument does not apply to it.
            ConfigError: A package that is needed to read the file is not installed.
        """
        path = Path(path)
        settings = ProgramSettings(
            program=program,
            shots=None if shots is None else _require_positive(shots),
            observables=observables,
            parameter_values=parameter_values,
            precision=None if precision is None else _require_non_negative(precision),
        )
        source = _read(path)
        if isinstance(source, bytes | Mapping):
            content = read_program(source, settings, where=str(path))
            if content is not None:
                return cls.from_content(content, where=str(path))
        settings.require_only("shots", where=str(path), subject="a complete payload")
        payload = cls.from_content(source, where=str(path))
        return payload if shots is None else payload.with_shots(shots)

    @classmethod
    def from_content(cls, content: object, *, where: str = "payload") -> Self:
        """Create a payload from an object in memory.

        Args:
            content: An object in `task_runner`'s schema.
            where: The payload's name, for messages.

        Raises:
            PayloadError: The object does not match any vendor's schema.
        """
        vendor = vendor_of_payload(content, where=where)
        if not isinstance(content, Mapping):  # unreachable: vendor_of_payload refuses it; for mypy
            raise TypeError(content)
        return cls(vendor=vendor.name, content=content)

    @property
    def program(self) -> str:
        """The program that the payload runs: `sampler`, `estimator` or `pulser`."""
        return load_vendor(self.vendor).program(self.content)

    def with_shots(self, shots: int) -> Self:
        """Return a copy of the payload with a different number of shots.

        Raises:
            PayloadError: The number is not a positive integer, or the program takes no shots.
        """
        content = load_vendor(self.vendor).with_shots(self.content, _require_positive(shots))
        return type(self)(vendor=self.vendor, content=content)

    def require_type(self, qpu: str, resource_type: str) -> None:
        """Refuse a QPU that belongs to another vendor.

        Raises:
            PayloadError: The payload's vendor does not have this resource type.
        """
        vendor = load_vendor(self.vendor)
        if resource_type not in vendor.types:
            raise PayloadError(
                f"a {self.program} payload for {vendor.name} cannot run on QPU {qpu!r} of type "
                f"{resource_type!r}; the type must be one of: {', '.join(vendor.types)}. Name "
                "another QPU; `qpu list` shows the types."
            )

    def require_fit(self, qpu: str, target: str | None) -> None:
        """Refuse a payload that the QPU would reject (unbound parameters, or not ISA).

        Args:
            qpu: The QPU's name.
            target: The QPU's target, as `Lease.target` returns it. If `None`, only the checks that
                apply to every QPU are made.

        Raises:
            PayloadError: The payload cannot run on the QPU.
        """
        load_vendor(self.vendor).check(self.content, qpu=qpu, target=target)


PayloadLike = Payload | Mapping[str, Any] | Path | str
"""A payload, its content, or the path of its file."""


def to_payload(payload: PayloadLike, *, shots: int | None = None) -> Payload:
    """Convert a payload's content, or the path of its file, to a `Payload`.

    Args:
        payload: The payload, its content, or the path of its file.
        shots: The number of shots; overrides the payload's own.

    Raises:
        PayloadError: The payload cannot be read, or does not match any vendor's schema.
    """
    if isinstance(payload, Path | str):
        return Payload.from_file(payload, shots=shots)
    valid = payload if isinstance(payload, Payload) else Payload.from_content(payload)
    return valid if shots is None else valid.with_shots(shots)


def _read(path: Path) -> Any:
    """Return a file's JSON value, or its bytes if it does not begin with a JSON object or list."""
    try:
        _check_size(str(path), path.stat().st_size)
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)  # the size of a device or a pipe is unknown
        _check_size(str(path), len(data))
        if data.lstrip()[:1] not in (b"{", b"["):
            return data
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        raise PayloadError(
            f"{path}: not valid JSON: {error}. A payload must be one JSON object. Correct the file."
        ) from error
    except OSError as error:
        raise PayloadError(
            f"{path}: cannot read the payload: {error.strerror}. Name a file that you can read."
        ) from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"duplicate key {duplicate!r}")
    return document


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not a JSON number")


def _check_size(what: str, size: int) -> None:
    if size > MAX_BYTES:
        raise PayloadError(
            f"{what}: size {size / 1e6:.1f} MB; must be at most {MAX_BYTES / 1e6:.0f} MB. Split it "
            "into several tasks, or send parameter values instead of circuits with bound "
            "parameters."
        )


def _require_non_negative(precision: float) -> float:
    if not 0 <= precision < math.inf:
        raise PayloadError(
            f"precision={precision!r}: must be a non-negative, finite number. Give the standard "
            "error that the estimates must reach."
        )
    return precision


def _require_positive(shots: int) -> int:
    try:
        number = operator.index(shots)
    except TypeError:
        number = 0
    if number < 1 or isinstance(shots, bool):
        raise PayloadError(f"shots={shots!r}: must be a positive integer. Ask for at least 1.")
    return number

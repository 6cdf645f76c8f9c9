"""Payloads: the inputs of tasks, read from files and checked before a QPU is acquired.

A payload file is one JSON object in the schema of QRMI's `task_runner`. Its keys identify the
vendor: `program_id` and `parameters` for IBM, `sequence` and `job_runs` for Pasqal. A file that
holds only a program (OpenQASM 3, QPY, Pulser's abstract representation) is converted to a payload,
and so is a program in memory: a `QuantumCircuit`, a Pulser `Sequence`, or the text of such a file.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import logging
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from qrmi_workflows.errors import PayloadError
from qrmi_workflows.vendors.base import ProgramSettings
from qrmi_workflows.vendors.registry import (
    export_program,
    find_vendor,
    load_vendor,
    read_program,
    vendor_of_payload,
)
from qrmi_workflows.vendors.verbatim import VERBATIM

__all__ = ["MAX_BYTES", "Payload", "PayloadLike", "to_payload", "to_plain"]

logger = logging.getLogger(__name__)

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
                "and finite numbers. Convert other objects to these."
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
        resource_type: str | None = None,
    ) -> Self:
        """Read a payload file, or a file that holds only a program.

        Args:
            path: A JSON file in `task_runner`'s schema, or a program in OpenQASM 3, QPY, Pulser's
                abstract representation, IQM JSON or QIR.
            program: `sampler` or `estimator`, for circuits. The default is `estimator` if there are
                observables, otherwise `sampler`.
            shots: The number of shots; overrides the file's own.
            observables: For circuits: the observables to estimate, on the circuit's own qubits. A
                Pauli label (`"ZZ"`), a mapping from labels to coefficients, or a list of these.
            parameter_values: For circuits: parameter values; the last axis indexes the parameters.
            precision: For circuits: the standard error that the estimates must reach.
            resource_type: The type of the QPU that it is for. If no installed vendor has the type,
                any JSON object is passed on as it is.

        Raises:
            PayloadError: The file is missing, too large, malformed or in an unknown format, or an
                argument does not apply to it.
            ConfigError: A package that is needed to read the file is not installed.
        """
        return cls.from_content(
            _parse(_read(Path(path)), str(path), "file"),
            where=str(path),
            program=program,
            shots=shots,
            observables=observables,
            parameter_values=parameter_values,
            precision=precision,
            resource_type=resource_type,
        )

    @classmethod
    def from_content(
        cls,
        content: object,
        *,
        where: str = "payload",
        program: str | None = None,
        shots: int | None = None,
        observables: Any = None,
        parameter_values: Any = None,
        precision: float | None = None,
        resource_type: str | None = None,
    ) -> Self:
        """Create a payload from an object in memory.

        Args:
            content: An object in `task_runner`'s schema; a `QuantumCircuit` or a Pulser `Sequence`;
                or the content of a file that `from_file` reads.
            where: The payload's name, for messages.
            program: As in `from_file`.
            shots: As in `from_file`.
            observables: As in `from_file`.
            parameter_values: As in `from_file`.
            precision: As in `from_file`.
            resource_type: As in `from_file`.

        Raises:
            PayloadError: The object is not a program, and does not match any vendor's schema; or an
                argument does not apply to it.
            ConfigError: A package that is needed to read it is not installed.
        """
        settings = ProgramSettings(
            program=program,
            shots=None if shots is None else _require_positive(shots),
            observables=to_plain(observables),
            parameter_values=to_plain(parameter_values),
            precision=None if precision is None else _require_non_negative(precision),
        )
        source = _parse(export_program(content), where, "text")
        if not isinstance(content, str | bytes):  # text has no NumPy numbers, and may be long
            source = to_plain(source)
        if resource_type is not None and find_vendor(resource_type) is VERBATIM:
            return cls._verbatim(source, settings, resource_type, where)
        if isinstance(source, bytes | Mapping):
            converted = read_program(source, settings, where=where)
            if converted is not None:
                return cls._from_schema(converted, where)
        settings.require_only("shots", where=where, subject="a complete payload")
        payload = cls._from_schema(source, where)
        return payload if shots is None else payload.with_shots(shots)

    @classmethod
    def _from_schema(cls, content: object, where: str) -> Self:
        vendor = vendor_of_payload(content, where=where)
        if not isinstance(content, Mapping):  # unreachable: vendor_of_payload refuses it; for mypy
            raise TypeError(content)
        return cls(vendor=vendor.name, content=content)

    @classmethod
    def _verbatim(
        cls, source: object, settings: ProgramSettings, resource_type: str, where: str
    ) -> Self:
        settings.require_only(where=where, subject=f"a payload for a QPU of type {resource_type!r}")
        if not isinstance(source, Mapping):
            raise PayloadError(
                f"{where}: no installed vendor has the QPU's type {resource_type!r}, so the "
                "payload must be a JSON object with the arguments of one of QRMI's payloads. Write "
                "one, or install the package that adds the vendor."
            )
        logger.warning(
            "%s: no installed vendor has the QPU's type %r, so the payload is passed on unchecked, "
            "and its result is not decoded.",
            where,
            resource_type,
        )
        return cls(vendor=VERBATIM.name, content=source)

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
        if vendor is not find_vendor(resource_type):
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


PayloadLike = Payload | Mapping[str, Any] | Path | str | Any
"""A payload, its content as an object or as text, a circuit, a sequence, or the path of a file."""


def to_payload(
    payload: PayloadLike, *, shots: int | None = None, resource_type: str | None = None
) -> Payload:
    """Convert a payload's content, or the path of its file, to a `Payload`.

    Args:
        payload: The payload, its content as an object or as text, a circuit, a sequence, or the
            path of a file.
        shots: The number of shots; overrides the payload's own.
        resource_type: The type of the QPU that it is for, as in `Payload.from_file`.

    Raises:
        PayloadError: The payload cannot be read, or does not match any vendor's schema.
    """
    if isinstance(payload, Payload):
        if resource_type is not None and find_vendor(resource_type) is VERBATIM:
            payload = Payload(vendor=VERBATIM.name, content=payload.content)
        return payload if shots is None else payload.with_shots(shots)
    if isinstance(payload, Path) or (isinstance(payload, str) and not _is_text(payload)):
        return Payload.from_file(payload, shots=shots, resource_type=resource_type)
    return Payload.from_content(payload, shots=shots, resource_type=resource_type)


def to_plain(value: Any) -> Any:
    """Convert NumPy's numbers and arrays, at any depth, to Python's numbers and lists."""
    if isinstance(value, Mapping):
        return {name: to_plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value.tolist() if type(value).__module__ == "numpy" else value


def _is_text(text: str) -> bool:
    """Return whether a string is the content of a file rather than its path."""
    return "\n" in text or ";" in text or text.lstrip().startswith(("{", "OPENQASM"))


def _parse(source: object, where: str, kind: str) -> Any:
    """Return the value of JSON text; other text as bytes; anything else as it is."""
    if isinstance(source, str):
        source = source.encode()
    if not isinstance(source, bytes):
        return source
    _check_size(where, len(source))
    source = source.removeprefix(codecs.BOM_UTF8)  # editors on Windows write it
    if source.lstrip()[:1] not in (b"{", b"["):
        return source
    try:
        return json.loads(
            source.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        raise PayloadError(
            f"{where}: not valid JSON: {error}. A payload must be one JSON object. Correct the "
            f"{kind}."
        ) from error


def _read(path: Path) -> bytes:
    try:
        _check_size(str(path), path.stat().st_size)
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)  # the size of a device or a pipe is unknown
    except ValueError as error:  # a NUL in the path
        raise PayloadError(
            f"{path}: not the path of a file: {error}. Name a file that you can read."
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
    try:
        number = float(precision)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < math.inf:
        raise PayloadError(
            f"precision={precision!r}: must be a non-negative, finite number. Give the standard "
            "error that the estimates must reach."
        )
    return number


def _require_positive(shots: int) -> int:
    try:
        number = operator.index(shots)
    except TypeError:
        number = 0
    if number < 1 or isinstance(shots, bool):
        raise PayloadError(f"shots={shots!r}: must be a positive integer. Ask for at least 1.")
    return number

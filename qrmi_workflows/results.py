"""Results: a task's decoded output with its provenance, and the file that carries it on.

The file is JSON of a fixed version. `data` is plain (counts, expectation values), so that a later
step reads it with nothing but a JSON parser; `vendor_result` is what the vendor sent, verbatim.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from qrmi_workflows.errors import ResultError

if TYPE_CHECKING:
    from qiskit.primitives import PrimitiveResult

__all__ = ["FORMAT", "VERSION", "QuantumResult", "write_whole"]

FORMAT = "qrmi-workflows-result"
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantumResult:
    """One task's result.

    Attributes:
        qpu: The QPU that ran it.
        type: QRMI's resource type.
        program: `sampler`, `estimator` or `pulser`.
        task_id: The vendor's id of the task.
        payload_digest: SHA-256 of the payload, as `Payload.digest`.
        submitted: When it was submitted, ISO 8601 in UTC.
        completed: When its completion was seen, ISO 8601 in UTC.
        data: One object for each PUB or sequence, plain data as `Vendor.decode` gives it.
        vendor_result: What the vendor sent, verbatim.
    """

    qpu: str
    type: str
    program: str
    task_id: str
    payload_digest: str
    submitted: str
    completed: str
    data: list[dict[str, Any]]
    vendor_result: str = field(repr=False)

    def counts(self, register: str | None = None, *, pub: int = 0) -> Any:
        """Return the counts of one register of one PUB.

        Args:
            register: The register's name; needed when the PUB has several.
            pub: The PUB's index.

        Returns:
            Bit strings to numbers; nested lists of those where parameters were broadcast.

        Raises:
            ResultError: There is no such PUB or register, or the result was not sampled.
        """
        registers = self._pub(pub).get("registers")
        if not registers:
            raise ResultError(f"task {self.task_id} is of {self.program!r}: it has no counts.")
        if register is None and len(registers) == 1:
            register = next(iter(registers))
        if register not in registers:
            raise ResultError(
                f"register {register!r} of PUB {pub}: allowed are {', '.join(registers)}."
            )
        return registers[register]["counts"]

    def expectation_values(self, *, pub: int = 0) -> tuple[Any, Any]:
        """Return one PUB's expectation values and their standard errors, in its shape.

        Raises:
            ResultError: There is no such PUB, or the result was not estimated.
        """
        data = self._pub(pub)
        if "evs" not in data:
            raise ResultError(
                f"task {self.task_id} is of {self.program!r}: it has no expectation values."
            )
        return data["evs"], data.get("stds")

    def to_primitive_result(self) -> PrimitiveResult[Any]:
        """Return Qiskit's own result; needs the extra `ibm`."""
        from qrmi_workflows.vendors.ibm import to_primitive_result

        return to_primitive_result(self.vendor_result)

    def save(self, path: Path | str) -> None:
        """Write the result's file: whole, or not at all."""
        document = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_whole(Path(path), json.dumps(document, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a result's file.

        Raises:
            ResultError: It is missing, not a result, or of a version that this release cannot read.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ResultError(f"{path}: no result file: {error}.") from error
        return cls._from_document(document, str(path))

    @classmethod
    def _from_document(cls, document: Any, path: str) -> Self:
        if not isinstance(document, Mapping) or document.get("format") != FORMAT:
            raise ResultError(f"{path}: not a result file: it has no `format` {FORMAT!r}.")
        if document.get("version") != VERSION:
            raise ResultError(
                f"{path}: a result file of version {document.get('version')!r}; this release reads "
                f"version {VERSION}. Install a newer qrmi-workflows."
            )
        values = {key: value for key, value in document.items() if key not in ("format", "version")}
        try:
            return cls(**values)
        except TypeError as error:
            raise ResultError(f"{path}: not a whole result: {error}.") from error

    def _pub(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self.data):
            raise ResultError(
                f"PUB {index}: task {self.task_id} has {len(self.data)}; the first is 0."
            )
        return self.data[index]


def write_whole(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write a file so that a reader finds all of it or none: temporary file, fsync, rename.

    Args:
        path: Where; its folder must exist.
        text: What.
        mode: The file's permissions, before the umask.
    """
    umask = os.umask(0)
    os.umask(umask)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode & ~umask)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).rename(path)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise

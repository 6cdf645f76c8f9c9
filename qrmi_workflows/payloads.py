"""Payloads: what a task is made of, read from files of upstream's `task_runner` schema.

A payload file is one JSON object. Its keys tell the vendor: `program_id` and `parameters` are
IBM's primitives, `sequence` and `job_runs` Pasqal's. It is checked before anything is acquired.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from qrmi_workflows import vendors
from qrmi_workflows.errors import PayloadError

__all__ = ["Payload"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """One task's input, valid for its vendor.

    Attributes:
        vendor: The vendor's name (`ibm`).
        content: The object as the file has it.
    """

    vendor: str
    content: Mapping[str, Any]

    @classmethod
    def from_file(cls, path: Path | str) -> Self:
        """Read a payload file.

        Raises:
            PayloadError: The file is missing, not JSON, or of no vendor's schema.
        """
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise PayloadError(
                f"{path}: not JSON: {error}. A payload is one JSON object; correct that place."
            ) from error
        except OSError as error:
            raise PayloadError(
                f"{path}: {error.strerror}. Name a payload file that you can read."
            ) from error
        return cls.from_content(content, where=str(path))

    @classmethod
    def from_content(cls, content: object, *, where: str = "payload") -> Self:
        """Take a payload that is already in memory.

        Args:
            content: An object of upstream's schema.
            where: What to call it in messages.

        Raises:
            PayloadError: It is of no vendor's schema.
        """
        vendor = vendors.vendor_of_payload(content, where=where)
        if not isinstance(content, Mapping):  # vendor_of_payload has refused it already
            raise TypeError(content)
        return cls(vendor=vendor.name, content=content)

    @property
    def digest(self) -> str:
        """The SHA-256 of the content, equal for equal payloads whatever their key order."""
        text = json.dumps(self.content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def program(self) -> str:
        """What kind of program it is: `sampler`, `estimator`, `pulser`."""
        return vendors.load_vendor(self.vendor).program(self.content)

    def with_shots(self, shots: int) -> Self:
        """Return the same payload with another number of shots.

        Raises:
            PayloadError: The number is not positive, or the program has no shots.
        """
        if shots < 1:
            raise PayloadError(f"--shots {shots}: allowed is a whole number from 1 on.")
        content = vendors.load_vendor(self.vendor).with_shots(self.content, shots)
        return type(self)(vendor=self.vendor, content=content)

    def require_type(self, qpu: str, resource_type: str) -> None:
        """Refuse a QPU that another vendor makes.

        Raises:
            PayloadError: The payload is for another vendor than the QPU's.
        """
        vendor = vendors.load_vendor(self.vendor)
        if resource_type not in vendor.types:
            raise PayloadError(
                f"this {vendor.name} payload ({self.program}) cannot run on QPU {qpu!r} of type "
                f"{resource_type!r}; allowed: QPUs of type {', '.join(vendor.types)}. "
                "Name such a QPU; `qpu list` shows their types."
            )

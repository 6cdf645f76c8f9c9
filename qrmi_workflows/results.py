"""Results: a task's decoded output with its provenance, and the file that carries it on.

The file is JSON of a fixed version, compressed with gzip when it is large; `result.schema.json`
beside this module is its schema. `data` is plain (counts, expectation values), so that a later step
reads it with nothing but a JSON parser; `vendor_result` is what the vendor sent, verbatim.
"""

from __future__ import annotations

import errno
import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from qrmi_workflows.errors import ResultError
from qrmi_workflows.state.files import write_atomically
from qrmi_workflows.vendors.registry import find_converter, vendor_of_type

if TYPE_CHECKING:
    import numpy as np
    from pulser import Sequence
    from pulser.backend.results import Results
    from qiskit.primitives import PrimitiveResult

__all__ = ["COMPRESS_FROM", "FORMAT", "VERSION", "QuantumResult", "result_schema"]

FORMAT = "qrmi-workflows-result"
VERSION = 1
COMPRESS_FROM = 1_000_000
"""From how many bytes on a result's file is compressed."""

_GZIP_MAGIC = b"\x1f\x8b"


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
        if not registers or not isinstance(registers, Mapping):
            raise ResultError(f"task {self.task_id} is of {self.program!r}: it has no counts.")
        if register is None and len(registers) == 1:
            register = next(iter(registers))
        if register not in registers:
            raise ResultError(
                f"register {register!r} of PUB {pub}: allowed are {', '.join(registers)}."
            )
        try:
            return registers[register]["counts"]
        except (KeyError, TypeError) as error:
            raise ResultError(
                f"register {register!r} of PUB {pub}: it has no counts. The file of task "
                f"{self.task_id} was changed; fetch the result again."
            ) from error

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

    def to_numpy(self, *, pub: int = 0) -> dict[str, np.ndarray[Any, Any]]:
        """Return one PUB's data as arrays, by name.

        Returns:
            Sampled: for each register the bits, 0 or 1, of shape (…, shots, bits); the columns are
            in the order of the bit string's characters, and the rows of a PUB's registers belong
            together, shot by shot, where the vendor keeps shots apart (IBM; Pasqal's are sorted).
            Estimated: `evs` and `stds` in the PUB's shape, in the observables' unit.

        Raises:
            ResultError: There is no such PUB, or `vendor_result` is not of the vendor's form.
        """
        self._pub(pub)
        return vendor_of_type(self.type).arrays(self.program, self.vendor_result)[pub]

    def to_primitive_result(self) -> PrimitiveResult[Any]:
        """Return Qiskit's own result; needs the extra `ibm`.

        Raises:
            ResultError: It is no primitive's.
            ConfigError: The extra is not installed.
        """
        result: PrimitiveResult[Any] = self.convert("to_primitive_result")
        return result

    def to_pulser_results(self, sequence: Sequence | str | Mapping[str, Any]) -> Results:
        """Return Pulser's own results; needs the extra `pasqal`.

        Args:
            sequence: The sequence that was run, or its abstract representation.

        Raises:
            ResultError: It is no sequence's, or not this one's.
            ConfigError: The extra is not installed.
        """
        results: Results = self.convert("to_pulser_results", sequence)
        return results

    def convert(self, name: str, *args: Any) -> Any:
        """Convert the result to an object of the vendor's SDK, by the conversion's name.

        The methods above are the conversions of the vendors that this project knows; a vendor of
        another package may offer others.

        Args:
            name: The conversion's name (`to_primitive_result`).
            *args: Its own arguments.

        Raises:
            ResultError: The vendor does not offer this conversion for the program.
            ConfigError: The conversion's package is not installed.
        """
        function = find_converter(
            name, resource_type=self.type, program=self.program, task_id=self.task_id
        )
        return function(self.vendor_result, *args)

    def save(self, path: Path | str) -> None:
        """Write the result's file: whole, or not at all; compressed from `COMPRESS_FROM` on.

        Raises:
            OSError: It cannot be written, or a folder, device or FIFO is there.
        """
        document = {"format": FORMAT, "version": VERSION, **asdict(self)}
        data = (json.dumps(document, indent=1) + "\n").encode()
        if len(data) >= COMPRESS_FROM:
            data = gzip.compress(data, compresslevel=6, mtime=0)
        if (path := Path(path)).exists() and not path.is_file():  # a rename would replace it
            raise FileExistsError(errno.EEXIST, "a folder, device or FIFO is there", str(path))
        write_atomically(path, data)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a result's file, compressed or not.

        Raises:
            ResultError: It is missing, cut off, not a result, or of a version that this release
                cannot read.
        """
        try:
            data = Path(path).read_bytes()
            text = gzip.decompress(data) if data.startswith(_GZIP_MAGIC) else data
            document = json.loads(text.decode("utf-8"))
        except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ResultError(
                f"{path}: no result file: {reason}. A result is one JSON object, whole; run the "
                "step that writes it again."
            ) from error
        return cls._from_document(document, str(path))

    @classmethod
    def _from_document(cls, document: Any, path: str) -> Self:
        if not isinstance(document, Mapping) or document.get("format") != FORMAT:
            raise ResultError(
                f"{path}: not a result file: it has no `format` {FORMAT!r}. Name a file that "
                "`qpu run -o` or `QuantumResult.save` wrote."
            )
        if document.get("version") != VERSION:
            raise ResultError(
                f"{path}: a result file of version {document.get('version')!r}; this release reads "
                f"version {VERSION}. Install a newer qrmi-workflows."
            )
        values = {key: value for key, value in document.items() if key not in ("format", "version")}
        _require_whole(values, path)
        return cls(**values)

    def _pub(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self.data):
            raise ResultError(
                f"PUB {index}: task {self.task_id} has {len(self.data)}; the first is 0."
            )
        return self.data[index]


def result_schema() -> dict[str, Any]:
    """Return the JSON schema of a result's file (once it is decompressed)."""
    path = Path(__file__).with_name("result.schema.json")
    schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return schema


def _require_whole(values: Mapping[str, Any], path: str) -> None:
    """Refuse a result's file that lacks a part, or has one that is not of its type."""
    expected = {item.name: list if item.name == "data" else str for item in fields(QuantumResult)}
    if missing := sorted(set(expected) - set(values)):
        raise ResultError(f"{path}: not a whole result: it has no `{missing[0]}`. Write it again.")
    if foreign := sorted(set(values) - set(expected)):
        raise ResultError(
            f"{path}: not a result of version {VERSION}: it has a `{foreign[0]}`. Leave it as it "
            "was written; keep notes in a file beside it."
        )
    for name, kind in expected.items():
        if not isinstance(values[name], kind):
            raise ResultError(
                f"{path}: `{name}` is {values[name]!r:.40}; allowed is a "
                f"{'list' if kind is list else 'string'}. Write it again."
            )
    if not all(isinstance(part, dict) for part in values["data"]):
        raise ResultError(f"{path}: `data` has parts that are no objects. Write it again.")

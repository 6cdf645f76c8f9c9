"""Results: the decoded outputs of tasks with their provenance, and their files.

The file is versioned JSON in the schema `result.schema.json`, which is in the same folder as this
module. Large files are compressed with gzip. `data` has plain counts or expectation values, so a
later step needs only a JSON parser to read them. `vendor_result` is the vendor's text, unchanged.
"""

from __future__ import annotations

import errno
import gzip
import json
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from qrmi_workflows.errors import ResultError, UndecodedResultError
from qrmi_workflows.state.files import write_atomically
from qrmi_workflows.state.strict_json import restore_numbers, to_strict_json
from qrmi_workflows.vendors.registry import find_converter, find_vendor, split_result

if TYPE_CHECKING:
    import numpy as np
    from pulser import Sequence
    from pulser.backend.results import Results
    from qiskit.primitives import PrimitiveResult

__all__ = ["COMPRESS_FROM", "FORMAT", "VERSION", "QuantumResult", "result_schema"]

FORMAT = "qrmi-workflows-result"
VERSION = 1
COMPRESS_FROM = 1_000_000
"""Result files of at least this size, in bytes, are compressed."""

_OPTIONAL = ("chosen", "decode_error", "unsplit")
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantumResult:
    """The result of one task.

    Attributes:
        qpu: The QPU that ran the task.
        type: QRMI's resource type of the QPU.
        program: `sampler`, `estimator` or `pulser`.
        task_id: The vendor's id of the task.
        payload_digest: The SHA-256 of the payload (`Payload.digest`).
        submitted: When the task was submitted, in ISO 8601, UTC.
        completed: When the task was found to be completed, in ISO 8601, UTC.
        data: Plain data, one object for each PUB or sequence, as described in `Vendor.decode`.
        vendor_result: The vendor's text, unchanged; of a coalesced task, that of the payload's own
            PUBs.
        chosen: What was asked for, and why this QPU was chosen; `None` if it was named.
        decode_error: Why `data` is empty, if this release does not decode the vendor's text.
        unsplit: If `vendor_result` is still that of a whole coalesced task: the numbers of PUBs
            before the payload's own, of its own, and after them.
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
    chosen: str | None = None
    decode_error: str | None = None
    unsplit: list[int] | None = None

    def part(self, payload_digest: str, counts: Iterable[int]) -> Self:
        """Return the result of one payload of a coalesced task, not yet split nor decoded.

        Args:
            payload_digest: The payload's digest.
            counts: The numbers of PUBs before the payload's own, of its own, and after them.
        """
        return replace(self, payload_digest=payload_digest, data=[], unsplit=list(counts))

    def split(self) -> Self:
        """Return this result with the text of the payload's own PUBs alone.

        Raises:
            ResultError: The text cannot be split.
        """
        if self.unsplit is None:
            return self
        _, own, _ = split_result(self.type, self.vendor_result, self.unsplit)
        return replace(self, vendor_result=own, unsplit=None)

    def split_if_possible(self) -> Self:
        """Return this result split, if it can be; if not, `decoded` says why."""
        try:
            return self.split()
        except Exception:  # a vendor's package may raise anything
            return self

    def decoded(self) -> Self:
        """Return this result with the vendor's text decoded into `data`.

        If there is no decoder for results of this kind, `decode_error` says so.

        Raises:
            UndecodedResultError: There is a decoder, but it cannot decode the text.
        """
        if self.data:
            return self
        try:
            own = self.split()
            data = find_vendor(self.type).decode(self.program, own.vendor_result)
            if data is None:
                return replace(own, decode_error=self._no_decoder())
            json.dumps(data)  # it is for files
        except Exception as error:  # a vendor's package may raise anything
            reason = str(error) if isinstance(error, ResultError) else repr(error)
            raise UndecodedResultError(
                f"task {self.task_id} on QPU {self.qpu!r} has completed, but its result was not "
                f"decoded: {reason.removesuffix('.')}. The vendor's text is kept, and nothing is "
                f"paid for again: `qpu result decode {self.task_id}` decodes it with a release "
                "that can.",
                replace(self, decode_error=reason),
            ) from error
        return replace(own, data=data, decode_error=None)

    def _no_decoder(self) -> str:
        return (
            f"qrmi-workflows has no decoder for results of the program {self.program!r} on QPUs of "
            f"type {self.type!r}."
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the QPU says about the results, such as options that had no effect."""
        lists = [item.get("warnings") for item in self.data]
        found = [warning for each in lists if isinstance(each, list) for warning in each]
        return tuple(dict.fromkeys(map(str, found)))

    def counts(self, register: str | None = None, *, pub: int = 0) -> Any:
        """Return the counts of one register of one PUB.

        Args:
            register: The register's name; required if the PUB has several registers.
            pub: The PUB's index.

        Returns:
            A mapping from bit strings to numbers, or nested lists of mappings if parameters were
            broadcast.

        Raises:
            ResultError: The result has no such PUB or register, or has no counts.
        """
        registers = self._pub(pub).get("registers")
        if not registers or not isinstance(registers, Mapping):
            raise ResultError(
                f"the result of task {self.task_id}, which ran the program {self.program!r}, has "
                "no counts. Use `expectation_values()` or `to_numpy()`."
            )
        if register is None and len(registers) == 1:
            register = next(iter(registers))
        if register not in registers:
            raise ResultError(
                f"register={register!r}: must be one of: {', '.join(registers)} (PUB {pub}). Name "
                "one of these."
            )
        try:
            if "levels" in registers[register]:
                raise ResultError(
                    f"register {register!r} of PUB {pub} has levels (`meas_type` was not "
                    "'classified'), so it has no counts. Use `to_numpy()`."
                )
            return registers[register]["counts"]
        except (KeyError, TypeError) as error:
            raise ResultError(
                f"register {register!r} of PUB {pub} has no counts: the result of task "
                f"{self.task_id} was modified. Rerun the step that writes it."
            ) from error

    def expectation_values(self, *, pub: int = 0) -> tuple[Any, Any]:
        """Return the expectation values of one PUB and their standard errors, in the PUB's shape.

        Raises:
            ResultError: The result has no such PUB, or has no expectation values.
        """
        data = self._pub(pub)
        if "evs" not in data:
            raise ResultError(
                f"the result of task {self.task_id}, which ran the program {self.program!r}, has "
                "no expectation values. Use `counts()` or `to_numpy()`."
            )
        return data["evs"], data.get("stds")

    def to_numpy(self, *, pub: int = 0) -> dict[str, np.ndarray[Any, Any]]:
        """Return the data of one PUB as arrays, by name.

        Returns:
            If the PUB was sampled, an array of the bits (0 or 1) of each register, with the shape
            (…, shots, bits). Its columns have the order of the bit string's characters. IBM returns
            individual shots, so row n of every register is from shot n; Pasqal returns only counts,
            so the rows are sorted. Levels (IBM's `meas_type` `kerneled` and `avg_kerneled`) are
            complex arrays with the shapes (…, shots, bits) and (…, bits). If the PUB was estimated,
            `evs` and `stds` in the PUB's shape and the unit of the observables. For other programs,
            all arrays of the result by name.

        Raises:
            ResultError: The result has no such PUB, or `vendor_result` cannot be decoded.
        """
        self._pub(pub)
        return find_vendor(self.type).arrays(self.program, self.vendor_result)[pub]

    def to_primitive_result(self) -> PrimitiveResult[Any]:
        """Convert the result to Qiskit's `PrimitiveResult`. Needs the extra `ibm`.

        Raises:
            ResultError: The task did not run a primitive.
            ConfigError: The extra is not installed.
        """
        result: PrimitiveResult[Any] = self.convert("to_primitive_result")
        return result

    def to_pulser_results(self, sequence: Sequence | str | Mapping[str, Any]) -> Results:
        """Convert the result to Pulser's `Results`. Needs the extra `pasqal`.

        Args:
            sequence: The sequence that was run, or its abstract representation.

        Raises:
            ResultError: The task did not run a sequence, or ran a different one.
            ConfigError: The extra is not installed.
        """
        results: Results = self.convert("to_pulser_results", sequence)
        return results

    def convert(self, name: str, *args: Any) -> Any:
        """Convert the result to an object of the vendor's SDK.

        `to_primitive_result` and `to_pulser_results` are shortcuts for the conversions of this
        package's vendors. Vendors from other packages may offer more.

        Args:
            name: The conversion's name (`to_primitive_result`).
            *args: The conversion's own arguments.

        Raises:
            ResultError: The vendor does not offer this conversion for the program.
            ConfigError: The conversion's package is not installed.
        """
        function = find_converter(
            name, resource_type=self.type, program=self.program, task_id=self.task_id
        )
        return function(self.split().vendor_result, *args)

    def to_json(self) -> str:
        """Return the content of the result file."""
        document = {"format": FORMAT, "version": VERSION, **asdict(self)}
        for name in _OPTIONAL:
            if document[name] is None:
                del document[name]
        return to_strict_json(document, indent=1)

    def save(self, path: Path | str) -> None:
        """Write the result file atomically, compressed if it has at least `COMPRESS_FROM` bytes.

        Raises:
            OSError: The file cannot be written, or the path is a folder, device or FIFO.
        """
        data = (self.to_json() + "\n").encode()
        if len(data) >= COMPRESS_FROM:
            data = gzip.compress(data, compresslevel=6, mtime=0)
        # The rename of an atomic write would replace a device or FIFO such as /dev/null.
        if (path := Path(path)).exists() and not path.is_file():
            raise FileExistsError(errno.EEXIST, "the path is a folder, device or FIFO", str(path))
        write_atomically(path, data)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a result file, compressed or not.

        If the release that wrote the file could not decode the vendor's text, this tries again.

        Raises:
            ResultError: The file is missing, truncated, not a result, or of a version that this
                release cannot read.
        """
        try:
            data = Path(path).read_bytes()
            text = gzip.decompress(data) if data.startswith(_GZIP_MAGIC) else data
            document = json.loads(text.decode("utf-8"))
        except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ResultError(
                f"{path}: cannot read the result file: {reason}. Must be one complete JSON object. "
                "Rerun the step that writes it."
            ) from error
        return cls._from_document(document, str(path))

    @classmethod
    def _from_document(cls, document: Any, path: str) -> Self:
        if not isinstance(document, Mapping) or document.get("format") != FORMAT:
            raise ResultError(
                f"{path}: not a result file: `format` must be {FORMAT!r}. Name a file that `qpu "
                "run -o` or `QuantumResult.save` wrote."
            )
        if document.get("version") != VERSION:
            raise ResultError(
                f"{path}: the result file has version {document.get('version')!r}; must be "
                f"{VERSION} for this release. Install a newer qrmi-workflows."
            )
        values = {key: value for key, value in document.items() if key not in ("format", "version")}
        _require_complete(values, path)
        result = cls(**{**values, "data": restore_numbers(values["data"])})
        if result.decode_error is not None:
            with suppress(UndecodedResultError):
                return result.decoded()
        return result

    def _pub(self, index: int) -> dict[str, Any]:
        if self.decode_error is not None:
            raise ResultError(
                f"the result of task {self.task_id} was not decoded: {self.decode_error} The "
                "vendor's text is in `vendor_result`. Use that, or load the file with a release of "
                "qrmi-workflows that can decode it."
            )
        if not 0 <= index < len(self.data):
            raise ResultError(
                f"pub={index}: must be at least 0 and less than {len(self.data)}, the number of "
                f"PUBs of task {self.task_id}. Correct the index."
            )
        return self.data[index]


def result_schema() -> dict[str, Any]:
    """Return the JSON schema of a result file, after decompression."""
    path = Path(__file__).with_name("result.schema.json")
    schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return schema


def _require_complete(values: Mapping[str, Any], path: str) -> None:
    """Refuse a result file with a missing key, an unknown key, or a value of the wrong type."""
    lists = ("data", "unsplit")
    expected = {item.name: list if item.name in lists else str for item in fields(QuantumResult)}
    if missing := sorted(set(expected) - set(values) - set(_OPTIONAL)):
        raise ResultError(
            f"{path}: the result is incomplete: `{missing[0]}` is missing. Rerun the step that "
            "writes it."
        )
    if unknown := sorted(set(values) - set(expected)):
        raise ResultError(
            f"{path}: unknown key `{unknown[0]}`; must be one of: {', '.join(expected)}. Do not "
            "edit result files; keep notes in another file."
        )
    for name, type_ in expected.items():
        if name in values and not isinstance(values[name], type_):
            raise ResultError(
                f"{path}: `{name}` is {values[name]!r:.40}; must be a "
                f"{'list' if type_ is list else 'string'}. Rerun the step that writes it."
            )
    if not all(isinstance(part, dict) for part in values["data"]):
        raise ResultError(
            f"{path}: `data` must be a list of objects. Rerun the step that writes it."
        )

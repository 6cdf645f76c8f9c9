"""Vendors: how each reads, checks and encodes payloads and decodes results; found by entry point.

A vendor is one file and one entry point for each resource type of its, in the group
`qrmi_workflows.vendors`, whose name is the type and whose value is a `Vendor`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol

from qrmi_workflows.errors import ConfigError, PayloadError

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "ProgramSettings",
    "Vendor",
    "VendorPayload",
    "find_frontend",
    "identities",
    "load_vendor",
    "needs_extra",
    "read_program",
    "vendor_of_payload",
    "vendor_of_type",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorPayload:
    """A payload as QRMI takes it.

    Attributes:
        kind: The name of QRMI's payload class (`QiskitPrimitive`).
        fields: That class's arguments.
    """

    kind: str
    fields: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSettings:
    """What a file that has nothing but a circuit or a sequence does not say itself.

    Attributes:
        program: `sampler` or `estimator`, where both are possible.
        shots: How often to sample.
        observables: What to estimate: Pauli labels, or maps of labels to coefficients, or nested
            lists of those.
        parameter_values: Values of the circuit's parameters; the last axis runs over them.
        precision: The standard error to reach.
    """

    program: str | None = None
    shots: int | None = None
    observables: Any = None
    parameter_values: Any = None
    precision: float | None = None

    def given(self) -> dict[str, Any]:
        """Return those that were set."""
        names = ("program", "shots", "observables", "parameter_values", "precision")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def refuse(self, where: str, *, besides: tuple[str, ...], reason: str) -> None:
        """Refuse what was set besides these.

        Raises:
            PayloadError: Something else was set.
        """
        if extra := [name for name in self.given() if name not in besides]:
            allowed = ", ".join(besides) or "nothing"
            raise PayloadError(f"{where}: {reason}; allowed: {allowed}. Leave out {extra[0]}.")


class Vendor(Protocol):
    """One vendor's programs and results. The content of a payload is upstream's schema's."""

    @property
    def name(self) -> str:
        """The vendor's short name (`ibm`)."""

    @property
    def types(self) -> tuple[str, ...]:
        """QRMI's resource types of this vendor."""

    @property
    def schema(self) -> Mapping[str, Any]:
        """The JSON schema of a payload's content."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The forms of programs that `read` takes, for messages (`OpenQASM 3`)."""

    @property
    def frontends(self) -> Mapping[str, Callable[..., Any]]:
        """What its users' own libraries know a QPU by, by the name of `Lease`'s method.

        Each is called with the lease and that method's arguments.
        """

    def identities(self) -> Mapping[type, Callable[[Any], bytes]]:
        """Return bytes that are equal for equal values, in any process, by the values' types.

        The types are those of its users' own libraries (circuits, sequences); none where these are
        not installed.
        """

    def read(
        self, source: bytes | Mapping[str, Any], settings: ProgramSettings, *, where: str
    ) -> Mapping[str, Any] | None:
        """Make a payload's content of a program in one of the vendor's own forms.

        Args:
            source: The file: an object where it is JSON, else its bytes.
            settings: What the program does not say itself.
            where: What to call it in messages.

        Returns:
            The content; `None` when it is no program of this vendor's.

        Raises:
            PayloadError: It is one, and it is malformed or the settings do not fit it.
        """

    def program(self, content: Mapping[str, Any]) -> str:
        """Return the kind of program (`sampler`)."""

    def check(self, content: Mapping[str, Any], *, qpu: str, target: str | None) -> None:
        """Refuse what a QPU would refuse.

        Args:
            content: Of the vendor's schema.
            qpu: The QPU's name, for messages.
            target: What the QPU can do, where it is known: then it is checked too.

        Raises:
            PayloadError: It cannot run there.
        """

    def encode(self, content: Mapping[str, Any]) -> VendorPayload:
        """Encode a payload for QRMI."""

    def with_shots(self, content: Mapping[str, Any], shots: int) -> Mapping[str, Any]:
        """Return the content with another number of shots."""

    def decode(self, program: str, raw: str) -> list[dict[str, Any]]:
        """Decode a result into plain data, one object for each PUB or sequence.

        A sampled one is `{"registers": {NAME: {"num_bits": n, "counts": …}}}`, where counts map
        bit strings to numbers (nested lists of such maps where parameters were broadcast); an
        estimated one `{"evs": …, "stds": …}`.

        Raises:
            ResultError: It is not of the vendor's form.
        """

    def arrays(self, program: str, raw: str) -> list[dict[str, np.ndarray[Any, Any]]]:
        """Decode a result into arrays, one object for each PUB or sequence (see `to_numpy`).

        Raises:
            ResultError: It is not of the vendor's form.
        """

    def calibrated(self, target: str) -> str | None:
        """Return when the QPU of a target was calibrated, ISO 8601; `None` when it does not say.

        Raises:
            ResultError: The text is not a target of the vendor's.
        """


@cache
def _vendors_by_type() -> dict[str, Vendor]:
    found = entry_points(group="qrmi_workflows.vendors")
    vendors = {point.name: point.load() for point in found}
    return {type_: vendor for vendor in vendors.values() for type_ in vendor.types} | vendors


def _vendors() -> dict[str, Vendor]:
    return {vendor.name: vendor for vendor in _vendors_by_type().values()}


def load_vendor(name: str) -> Vendor:
    """Return the vendor of that short name."""
    return _vendors()[name]


def vendor_of_type(resource_type: str) -> Vendor:
    """Return the vendor of a resource type.

    Raises:
        ConfigError: No installed vendor knows the type.
    """
    known = _vendors_by_type()
    if resource_type not in known:
        raise ConfigError(
            f"unknown resource type {resource_type!r}; allowed: {', '.join(sorted(known))}. "
            "Correct `type` in qrmi_config.json, or install the vendor's package."
        )
    return known[resource_type]


def vendor_of_payload(content: object, *, where: str) -> Vendor:
    """Find the vendor whose keys a payload has, and check the payload against its schema.

    Raises:
        PayloadError: No vendor's schema fits.
    """
    if not isinstance(content, Mapping):
        raise PayloadError(
            f"{where}: a payload is one JSON object, not {type(content).__name__}. {_choices()}"
        )
    for vendor in _vendors().values():
        if set(vendor.schema["required"]) & set(content):
            _check(content, vendor, where)
            return vendor
    keys = ", ".join(repr(key) for key in content) or "none"
    raise PayloadError(f"{where}: its keys ({keys}) are of no vendor's payload. {_choices()}")


def read_program(
    source: bytes | Mapping[str, Any], settings: ProgramSettings, *, where: str
) -> Mapping[str, Any] | None:
    """Make a payload's content of a program in any vendor's own form; `None` when it is in none.

    Raises:
        PayloadError: It is a program, and it is malformed or the settings do not fit it.
    """
    for vendor in _vendors().values():
        content = vendor.read(source, settings, where=where)
        if content is not None:
            return content
    if isinstance(source, bytes):
        raise PayloadError(
            f"{where}: not JSON: it begins with {bytes(source[:20])!r}, and it is no program of "
            f"another form. {_choices()}"
        )
    return None


def find_frontend(kind: str, *, qpu: str, resource_type: str) -> Callable[..., Any]:
    """Return what makes a QPU's `sampler`, `estimator`, `pulser_backend`, ….

    Raises:
        PayloadError: The QPU's vendor has none of that kind.
        ConfigError: No installed vendor knows the type.
    """
    offered = vendor_of_type(resource_type).frontends
    if kind not in offered:
        types = [name for name, vendor in _vendors_by_type().items() if kind in vendor.frontends]
        raise PayloadError(
            f"QPU {qpu!r} of type {resource_type!r} has no {kind}; allowed: "
            f"{', '.join(offered) or 'none'}. Use one of these, or a QPU of type "
            f"{', '.join(sorted(types))}."
        )
    return offered[kind]


def identities() -> dict[type, Callable[[Any], bytes]]:
    """Return how the installed libraries' values are identified, by their types."""
    return {
        kind: identify
        for vendor in _vendors().values()
        for kind, identify in vendor.identities().items()
    }


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Say which extra is missing where an import fails.

    Raises:
        ConfigError: A package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the package {error.name!r} is not installed. "
            f"Run `pip install 'qrmi-workflows[{extra}]'`."
        ) from error


def _choices() -> str:
    forms = (
        f"{name}: {' + '.join(vendor.schema['required'])} or {', '.join(vendor.reads)}"
        for name, vendor in sorted(_vendors().items())
    )
    return f"Allowed: {'; '.join(forms)}."


def _check(content: Mapping[str, Any], vendor: Vendor, where: str) -> None:
    import jsonschema  # 60 ms that a lease without payloads need not pay

    validator = jsonschema.Draft202012Validator(vendor.schema)
    error = jsonschema.exceptions.best_match(validator.iter_errors(content))
    if error is None:
        return
    place = "".join(f"[{part!r}]" for part in error.absolute_path)
    message = error.message if len(error.message) < 300 else f"{error.message[:300]}…"
    required = ", ".join(vendor.schema["required"])
    raise PayloadError(
        f"{where}{place}: {message}. A payload for {vendor.name} needs {required}; correct it."
    )

"""Vendors: how each encodes a payload and decodes a result; found by entry point.

A vendor is one file and one entry point for each resource type of its, in the group
`qrmi_workflows.vendors`, whose name is the type and whose value is a `Vendor`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Protocol

from qrmi_workflows.errors import ConfigError, PayloadError

__all__ = ["Vendor", "VendorPayload", "load_vendor", "vendor_of_payload", "vendor_of_type"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorPayload:
    """A payload as QRMI takes it.

    Attributes:
        kind: The name of QRMI's payload class (`QiskitPrimitive`).
        fields: That class's arguments.
    """

    kind: str
    fields: Mapping[str, Any] = field(repr=False)


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

    def program(self, content: Mapping[str, Any]) -> str:
        """Return the kind of program (`sampler`)."""

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


@cache
def _vendors_by_type() -> dict[str, Vendor]:
    found = entry_points(group="qrmi_workflows.vendors")
    return {point.name: point.load() for point in found}


def load_vendor(name: str) -> Vendor:
    """Return the vendor of that short name."""
    return next(vendor for vendor in _vendors_by_type().values() if vendor.name == name)


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
    unique = {vendor.name: vendor for vendor in _vendors_by_type().values()}
    for vendor in unique.values():
        if set(vendor.schema["required"]) & set(content):
            _check(content, vendor, where)
            return vendor
    keys = ", ".join(repr(key) for key in content) or "none"
    raise PayloadError(f"{where}: its keys ({keys}) are of no vendor's payload. {_choices()}")


def _choices() -> str:
    forms = {v.name: " + ".join(v.schema["required"]) for v in _vendors_by_type().values()}
    return "Allowed: " + "; ".join(f"{name}: {keys}" for name, keys in sorted(forms.items())) + "."


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

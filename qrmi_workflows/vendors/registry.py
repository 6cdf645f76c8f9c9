"""The installed vendors, found by entry point, and what they offer."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from typing import Any

from qrmi_workflows.errors import ConfigError, PayloadError, ResultError
from qrmi_workflows.vendors.base import ProgramSettings, ResourceType, Vendor

__all__ = [
    "find_converter",
    "find_frontend",
    "identities",
    "load_vendor",
    "read_program",
    "registered_type",
    "registered_types",
    "vendor_of_payload",
    "vendor_of_type",
]

_GROUP = "qrmi_workflows.vendors"


@cache
def _entry_points() -> EntryPoints:
    return entry_points(group=_GROUP)


@cache
def _load(resource_type: str) -> Vendor:
    vendor: Vendor = _entry_points()[resource_type].load()
    return vendor


def _vendors() -> dict[str, Vendor]:
    loaded = (_load(name) for name in sorted(_entry_points().names))
    return {vendor.name: vendor for vendor in loaded}


def registered_types() -> list[str]:
    """Return the resource types that the installed vendors have registered."""
    return sorted(_entry_points().names)


def registered_type(resource_type: str) -> ResourceType | None:
    """Return how QRMI reaches a resource type; `None` if no vendor has registered it."""
    if resource_type not in _entry_points().names:
        return None
    return _load(resource_type).types[resource_type]  # loads this vendor alone


def load_vendor(name: str) -> Vendor:
    """Return the vendor of that short name."""
    return _vendors()[name]


def vendor_of_type(resource_type: str) -> Vendor:
    """Return the vendor of a resource type.

    Raises:
        ConfigError: No installed vendor has registered the type.
    """
    if resource_type not in _entry_points().names:
        raise ConfigError(
            f"unknown resource type {resource_type!r}; must be one of "
            f"{', '.join(registered_types())}. Correct `type` in qrmi_config.json, or install the "
            "vendor's package."
        )
    return _load(resource_type)


def vendor_of_payload(content: object, *, where: str) -> Vendor:
    """Find the vendor whose keys a payload has, and check the payload against its schema.

    Args:
        content: The payload's content.
        where: What to call the payload in messages.

    Raises:
        PayloadError: It fits no vendor's schema.
    """
    if not isinstance(content, Mapping):
        raise PayloadError(
            f"{where}: a payload must be a JSON object, not {type(content).__name__}. {_choices()}"
        )
    for vendor in _vendors().values():
        if set(vendor.schema["required"]) & set(content):
            _check_schema(content, vendor, where)
            return vendor
    keys = ", ".join(repr(key) for key in content) or "none"
    raise PayloadError(f"{where}: no vendor's payload has these keys: {keys}. {_choices()}")


def read_program(
    source: bytes | Mapping[str, Any], settings: ProgramSettings, *, where: str
) -> Mapping[str, Any] | None:
    """Make a payload's content of a program in some vendor's own form.

    Args:
        source: The file: an object if it is JSON, else its bytes.
        settings: What the program does not say itself.
        where: What to call the file in messages.

    Returns:
        The content; `None` if the source is JSON and no vendor's program.

    Raises:
        PayloadError: The program is malformed, or the settings do not fit it.
    """
    for vendor in _vendors().values():
        content = vendor.read(source, settings, where=where)
        if content is not None:
            return content
    if isinstance(source, bytes):
        raise PayloadError(
            f"{where}: not JSON, and not a program in another form: it begins with "
            f"{bytes(source[:20])!r}. {_choices()}"
        )
    return None


def find_frontend(kind: str, *, qpu: str, resource_type: str) -> Callable[..., Any]:
    """Return the function that makes a QPU's `sampler`, `estimator`, `pulser_backend`, ….

    Raises:
        PayloadError: The QPU's vendor has no such front end.
        ConfigError: No installed vendor has registered the type.
    """
    offered = vendor_of_type(resource_type).frontends
    if kind not in offered:
        types = [
            name
            for vendor in _vendors().values()
            if kind in vendor.frontends
            for name in vendor.types
        ]
        raise PayloadError(
            f"QPU {qpu!r} of type {resource_type!r} has no {kind}; it has "
            f"{', '.join(offered) or 'no front end'}. Use one of those, or a QPU of type "
            f"{', '.join(sorted(types))}."
        )
    return _resolve(offered[kind])


def find_converter(
    kind: str, *, resource_type: str, program: str, task_id: str
) -> Callable[..., Any]:
    """Return the function that converts a result to another library's object.

    Raises:
        ResultError: The result cannot be converted to that.
        ConfigError: No installed vendor has registered the type.
    """
    offered = vendor_of_type(resource_type).converters
    fitting = {name: each for name, each in offered.items() if program in each.programs}
    if kind not in fitting:
        methods = " and ".join(f"{name}()" for name in ("counts", *fitting))
        raise ResultError(
            f"task {task_id} ran a {program!r} program: its result has no {kind}(). Use {methods}."
        )
    return _resolve(fitting[kind].function)


def identities() -> dict[type, Callable[[Any], bytes]]:
    """Return how the installed libraries' values are identified, by their types."""
    return {
        kind: identify
        for vendor in _vendors().values()
        for kind, identify in vendor.identities().items()
    }


def _resolve(reference: str) -> Callable[..., Any]:
    function: Callable[..., Any] = pkgutil.resolve_name(reference)
    return function


def _choices() -> str:
    forms = (
        f"{name}: {' + '.join(vendor.schema['required'])} or {', '.join(vendor.reads)}"
        for name, vendor in sorted(_vendors().items())
    )
    return f"Must be one of: {'; '.join(forms)}."


def _check_schema(content: Mapping[str, Any], vendor: Vendor, where: str) -> None:
    import jsonschema  # takes 60 ms, which a lease without payloads need not pay

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

"""Find the installed vendors, which register themselves by entry point."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from qrmi_workflows.errors import ConfigError, PayloadError, ResultError
from qrmi_workflows.plugins import Plugin, find_plugins
from qrmi_workflows.vendors.base import (
    Coalescible,
    CoalescingVendor,
    ProgramSettings,
    ResourceType,
    Vendor,
)
from qrmi_workflows.vendors.capabilities import Capabilities, DescribingVendor
from qrmi_workflows.vendors.schemas import UndecidedError, matches
from qrmi_workflows.vendors.verbatim import VERBATIM

__all__ = [
    "capabilities",
    "coalesce",
    "coalescible",
    "describe_unknown",
    "explain_failure",
    "export_program",
    "find_converter",
    "find_frontend",
    "find_vendor",
    "identities",
    "load_vendor",
    "read_program",
    "registered_type",
    "registered_types",
    "require_schema",
    "split_result",
    "vendor_of_payload",
    "vendor_of_type",
]

_GROUP = "qrmi_workflows.vendors"


def _plugins() -> Mapping[str, Plugin]:
    return find_plugins(_GROUP)


@cache
def _load(resource_type: str) -> Vendor:
    plugin = _plugins()[resource_type]
    try:
        vendor: Vendor = plugin.load()
        types = vendor.types
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"the vendor {plugin.value} of type {resource_type!r} cannot be loaded: {error}. "
            "Repair or uninstall the package that adds it."
        ) from error
    if resource_type not in types:
        raise ConfigError(
            f"the vendor {plugin.value} has the types {', '.join(types)}, but its entry point "
            f"is named {resource_type!r}. Give both the same name."
        )
    return vendor


def _vendors() -> Iterator[Vendor]:
    """Load one vendor after the other: whoever looks for one may not need the rest."""
    names = set()
    for resource_type in sorted(_plugins()):
        vendor = _load(resource_type)
        if vendor.name not in names:
            names.add(vendor.name)
            yield vendor


def registered_types() -> list[str]:
    """Return the resource types of the installed vendors."""
    return sorted(_plugins())


def registered_type(resource_type: str) -> ResourceType | None:
    """Return how QRMI reaches a resource type; `None` if no installed vendor has the type."""
    if resource_type not in _plugins():
        return None
    return _load(resource_type).types[resource_type]  # imports only this vendor


def load_vendor(name: str) -> Vendor:
    """Return a vendor by its short name."""
    if name == VERBATIM.name:
        return VERBATIM
    for vendor in _vendors():
        if vendor.name == name:
            return vendor
    raise KeyError(name)


def find_vendor(resource_type: str) -> Vendor:
    """Return the vendor of a resource type; `VERBATIM` if no installed vendor has the type."""
    return _load(resource_type) if resource_type in _plugins() else VERBATIM


def vendor_of_type(resource_type: str) -> Vendor:
    """Return the vendor of a resource type.

    Raises:
        ConfigError: No installed vendor has the type, or the vendor cannot be loaded.
    """
    if resource_type not in _plugins():
        raise ConfigError(
            f"unknown resource type {resource_type!r}; must be one of: "
            f"{', '.join(registered_types())}. Correct `type` in qrmi_config.json, or install the "
            "vendor's package."
        )
    return _load(resource_type)


def vendor_of_payload(content: object, *, where: str) -> Vendor:
    """Find a payload's vendor by its keys, and validate the payload against the vendor's schema.

    Args:
        content: The payload's content.
        where: The payload's name, for messages.

    Raises:
        PayloadError: The payload does not match any vendor's schema.
    """
    if not isinstance(content, Mapping):
        raise PayloadError(
            f"{where}: has type {type(content).__name__}, which is not a payload. "
            f"{_describe_formats()}"
        )
    # Vendors may share a key, as IQM and OQTOPUS do; the one with most of the keys is meant.
    found, most = None, 0
    for vendor in _vendors():
        if (shared := len(_shared_keys(vendor, content))) > most:
            found, most = vendor, shared
        if most == len(content):
            break
    if found is not None:
        _check_schema(content, found, where)
        return found
    keys = ", ".join(repr(key) for key in content) or "none"
    raise PayloadError(
        f"{where}: the keys ({keys}) do not match any vendor's payload. {_describe_formats()}"
    )


def read_program(
    source: bytes | Mapping[str, Any], settings: ProgramSettings, *, where: str
) -> Mapping[str, Any] | None:
    """Convert a program in a vendor's own file format to a payload's content.

    Args:
        source: The file's content: a mapping if it is JSON, otherwise bytes.
        settings: What the program itself does not specify.
        where: The file's name, for messages.

    Returns:
        The content, or `None` if the source is JSON but not a program.

    Raises:
        PayloadError: The format is unknown, the program is malformed, or a setting does not apply
            to it.
    """
    for vendor in _vendors():
        content = vendor.read(source, settings, where=where)
        if content is not None:
            return content
    if isinstance(source, bytes):
        raise PayloadError(
            f"{where}: unknown file format; the file begins with {bytes(source[:20])!r}. "
            f"{_describe_formats()}"
        )
    return None


def export_program(program: object) -> object:
    """Return a circuit or sequence of a vendor's SDK as `read_program` takes it.

    Anything else is returned as it is.
    """
    if isinstance(program, Mapping | str | bytes | list):
        return program
    for vendor in _vendors():
        export = getattr(vendor, "export", None)  # optional
        exported = None if export is None else export(program)
        if exported is not None:
            return exported
    return program


def explain_failure(vendor: str, content: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the payload of a failed task, as far as the SDK can tell."""
    explain = getattr(load_vendor(vendor), "explain", None)  # optional
    explanation: str | None = None if explain is None else explain(content)
    return explanation


def capabilities(resource_type: str, target: str, *, qpu: str) -> Capabilities:
    """Return what a target says about a QPU; nothing is known if its vendor does not read targets.

    Raises:
        ResultError: The text is not a target of this vendor.
    """
    vendor = find_vendor(resource_type)
    if not isinstance(vendor, DescribingVendor):
        return Capabilities()
    return vendor.capabilities(target, qpu=qpu)


def coalescible(vendor: str, content: Mapping[str, Any]) -> Coalescible | None:
    """Return what a payload needs in order to share a task; `None` if it has to go alone."""
    found = load_vendor(vendor)
    return found.coalescible(content) if isinstance(found, CoalescingVendor) else None


def coalesce(vendor: str, contents: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the content of one task that has the PUBs of several payloads with equal keys."""
    return _coalescing(load_vendor(vendor)).coalesce(contents)


def split_result(resource_type: str, text: str, counts: Sequence[int]) -> list[str]:
    """Split the result of a coalesced task.

    Args:
        resource_type: The QPU's type.
        text: The vendor's text.
        counts: The number of PUBs of each payload.

    Returns:
        A text for each payload, as if it had run alone.

    Raises:
        ResultError: The text is not a result of so many PUBs.
    """
    return _coalescing(find_vendor(resource_type)).split(text, counts)


def _coalescing(vendor: Vendor) -> CoalescingVendor:
    if not isinstance(vendor, CoalescingVendor):
        raise ResultError(
            f"the vendor {vendor.name!r} has no coalesced tasks. Install the package that ran them."
        )
    return vendor


def find_frontend(kind: str, *, qpu: str, resource_type: str) -> Callable[..., Any]:
    """Return the function that creates a QPU's front end (`sampler`, `pulser_backend`).

    Raises:
        PayloadError: The QPU's vendor does not offer the front end.
        ConfigError: No installed vendor has the type, or the vendor cannot be loaded.
    """
    offered = vendor_of_type(resource_type).frontends
    if kind not in offered:
        types = sorted(
            name for vendor in _vendors() if kind in vendor.frontends for name in vendor.types
        )
        alternative = f", or a QPU of another type: {', '.join(types)}" if types else ""
        raise PayloadError(
            f"QPU {qpu!r} of type {resource_type!r} has no {kind}; must be one of: "
            f"{', '.join(offered) or 'none'}. Use one of these{alternative}."
        )
    return _resolve(offered[kind])


def find_converter(
    kind: str, *, resource_type: str, program: str, task_id: str
) -> Callable[..., Any]:
    """Return the function that converts a result to an object of the vendor's SDK.

    Raises:
        ResultError: The vendor does not offer this conversion for the program.
        ConfigError: No installed vendor has the type, or the vendor cannot be loaded.
    """
    offered = vendor_of_type(resource_type).converters
    matching = {name: each for name, each in offered.items() if program in each.programs}
    if kind not in matching:
        alternative = "one of these, or the attribute" if matching else "the attribute"
        raise ResultError(
            f"the result of task {task_id}, which ran the program {program!r}, does not support "
            f"{kind}; must be one of: {', '.join(matching) or 'none'}. Use {alternative} `data`."
        )
    return _resolve(matching[kind].function)


def identities() -> dict[type, Callable[[Any], bytes]]:
    """Return the functions that identify objects of the installed SDKs, by type."""
    return {
        type_: identify for vendor in _vendors() for type_, identify in vendor.identities().items()
    }


def describe_unknown(given: Iterable[str], known: Collection[str], what: str) -> str:
    """Return the part of a message that says which name is unknown, and which one was meant."""
    import difflib  # most processes describe no mistake

    name = next(name for name in given if name not in known)
    matches = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.75)
    hint = f"did you mean {matches[0]!r}? It must" if matches else "must"
    return f"unknown {what} {name!r}; {hint} be one of: {', '.join(known)}"


def _resolve(reference: str) -> Callable[..., Any]:
    function: Callable[..., Any] = pkgutil.resolve_name(reference)
    return function


def _shared_keys(vendor: Vendor, content: Mapping[str, Any]) -> set[str]:
    return set(vendor.schema["required"]) & set(content)


def _describe_formats() -> str:
    formats = (
        f"for {name}, a JSON object with the keys {' and '.join(vendor.schema['required'])}"
        + (f", or a program in {' or '.join(vendor.reads)}" if vendor.reads else "")
        for name, vendor in sorted({each.name: each for each in _vendors()}.items())
    )
    return f"Must be, {'; '.join(formats)}. Correct the payload."


def _check_schema(content: Mapping[str, Any], vendor: Vendor, where: str) -> None:
    required = " and ".join(vendor.schema["required"])
    require_schema(
        content,
        vendor.schema,
        where=where,
        advice=f"A payload for {vendor.name} must have the keys {required}. Correct the payload.",
    )


def require_schema(instance: object, schema: Mapping[str, Any], *, where: str, advice: str) -> None:
    """Validate JSON against a schema.

    Args:
        instance: The JSON.
        schema: The schema.
        where: What it is, for messages.
        advice: What is allowed, and what to do.

    Raises:
        PayloadError: The JSON does not match the schema.
    """
    with suppress(UndecidedError):
        if matches(instance, schema):
            return
    import jsonschema

    # JSON Schema takes 10.0 for an integer, but vendors' services do not.
    draft = jsonschema.Draft202012Validator
    checker = draft.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    validator = jsonschema.validators.extend(draft, type_checker=checker)(schema)
    errors = list(validator.iter_errors(instance))
    if not errors:
        return
    # A misspelt key is often a missing one too, and says more.
    unknown = [error for error in errors if error.validator == "additionalProperties"]
    error = jsonschema.exceptions.best_match(unknown or errors)
    place = "".join(f"[{part!r}]" for part in error.absolute_path)
    if error.validator == "additionalProperties":
        reason = describe_unknown(error.instance, error.schema["properties"], "key")
        raise PayloadError(f"{where}{place}: {reason}. Correct or remove it.")
    message = error.message if len(error.message) < 300 else f"{error.message[:300]}…"
    raise PayloadError(f"{where}{place}: {message}. {advice}")

"""The package `qrmi`: the only module that imports it, and makes its payloads."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from qrmi_workflows.errors import PayloadError
from qrmi_workflows.vendors.base import VendorPayload

__all__ = ["import_qrmi", "to_qrmi_payload"]

_QUIET_LOGGER = "quantum_system_api=info"


def import_qrmi() -> Any:
    """Import QRMI with settings for handles that make one call at a time."""
    # By default, every handle starts one thread per core; ours make only one call at a time.
    os.environ.setdefault("TOKIO_WORKER_THREADS", "1")
    # At debug level the client for IBM's systems logs URLs that hold credentials (qrmi 0.26.4).
    if (level := os.environ.get("RUST_LOG")) and _QUIET_LOGGER not in level:
        os.environ["RUST_LOG"] = f"{_QUIET_LOGGER},{level}"
    import qrmi

    return qrmi


def to_qrmi_payload(payload: Any) -> Any:
    """Return QRMI's own `Payload`.

    Args:
        payload: A `VendorPayload`, or QRMI's own.

    Raises:
        PayloadError: No constructor of QRMI's accepts the fields.
    """
    if not isinstance(payload, VendorPayload):
        return payload
    kinds = import_qrmi().Payload
    if payload.kind is not None:
        return getattr(kinds, payload.kind)(**payload.fields)
    return _construct_by_fields(kinds, payload.fields)


def _construct_by_fields(kinds: Any, given: Mapping[str, Any]) -> Any:
    """Call the constructor that has arguments of these names; those not given are `None`."""
    fields = {name: _to_scalar(value) for name, value in given.items()}
    constructors = _constructors(kinds)
    reason = ""
    for make, names in constructors.items():
        if fields and set(fields) <= set(names):
            try:
                return make(**(dict.fromkeys(names) | fields))
            except TypeError as error:
                reason = f" ({error})"
    known = "; or ".join(", ".join(names) for names in constructors.values())
    raise PayloadError(
        f"the payload's keys ({', '.join(fields) or 'none'}) do not match any of QRMI's payloads"
        f"{reason}; must be {known}. Correct the payload, or install the package that adds the "
        "QPU's vendor."
    )


def _constructors(kinds: Any) -> dict[Any, tuple[str, ...]]:
    """Return the constructors of QRMI's payloads, and the names of their arguments."""
    found = (getattr(kinds, name) for name in dir(kinds))
    return {each: each.__match_args__ for each in found if getattr(each, "__match_args__", None)}


def _to_scalar(value: Any) -> Any:
    """Return a field as QRMI has it, which takes JSON as text."""
    return json.dumps(value) if isinstance(value, dict | list) else value

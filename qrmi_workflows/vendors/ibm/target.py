"""IBM's targets: a backend's configuration and properties, and their conversion for Qiskit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from qrmi_workflows.errors import ResultError
from qrmi_workflows.vendors.base import needs_extra

if TYPE_CHECKING:
    from qiskit.transpiler import Target
    from qiskit_ibm_runtime.models import BackendProperties

__all__ = ["backend_properties", "read_target", "transpiler_target"]


def transpiler_target(target: str, *, use_fractional_gates: bool = False) -> Target:
    """Convert a QPU's target to Qiskit's `Target`. Needs the extra `ibm`.

    Args:
        target: The JSON from `Lease.target` or `qpu target`: a backend's configuration and
            properties, including its calibration.
        use_fractional_gates: Whether to keep the gates `rx` and `rzz`, if the QPU has them. A
            circuit with these cannot have its gates twirled.

    Returns:
        A target for `generate_preset_pass_manager(target=…)`.

    Raises:
        ResultError: The text is not an IBM target.
        ConfigError: The extra is not installed.
    """
    with needs_extra("ibm"):
        # These functions are internal to qiskit-ibm-runtime (read in 0.51.0), whose public API
        # builds a target only from a backend of its own service. QRMI 0.26.4 uses them as well.
        from qiskit_ibm_runtime.utils.backend_converter import convert_to_target
        from qiskit_ibm_runtime.utils.backend_decoder import (
            configuration_from_server_data,
            properties_from_server_data,
        )

    document = read_target(target)
    try:
        configuration = configuration_from_server_data(
            document["configuration"], use_fractional_gates=use_fractional_gates
        )
        properties = properties_from_server_data(
            document["properties"], use_fractional_gates=use_fractional_gates
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _invalid_target(repr(error)) from error
    result: Target = convert_to_target(configuration=configuration, properties=properties)
    return result


def backend_properties(target: str) -> BackendProperties:
    """Return a target's properties as qiskit-ibm-runtime's. Needs the extra `ibm`.

    Raises:
        ResultError: The text is not an IBM target.
        ConfigError: The extra is not installed.
    """
    with needs_extra("ibm"):
        from qiskit_ibm_runtime.utils.backend_decoder import properties_from_server_data

    document = read_target(target)
    try:
        properties: BackendProperties = properties_from_server_data(document["properties"])
    except (KeyError, TypeError, ValueError) as error:
        raise _invalid_target(repr(error)) from error
    return properties


def read_target(target: str) -> dict[str, Any]:
    """Parse a target.

    Raises:
        ResultError: The text is not an IBM target.
    """
    try:
        document: dict[str, Any] = json.loads(target)
        types = {type(document[part]) for part in ("configuration", "properties")}
    except (KeyError, TypeError, ValueError) as error:
        raise _invalid_target(repr(error)) from error
    if types != {dict}:  # QRMI 0.26.4 replaces a part that it could not fetch by null
        raise _invalid_target("its configuration or its properties are missing")
    return document


def _invalid_target(reason: str) -> ResultError:
    return ResultError(
        f"not a valid target of an IBM QPU: {reason}. Fetch it again: `qpu target NAME` and "
        "`lease.target()` return it as text."
    )

"""IBM's targets: a backend's configuration and properties, and Qiskit's view of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from qrmi_workflows.errors import ResultError
from qrmi_workflows.vendors.base import needs_extra

if TYPE_CHECKING:
    from qiskit.transpiler import Target

__all__ = ["read_target", "transpiler_target"]


def transpiler_target(target: str) -> Target:
    """Build Qiskit's transpiler target from a QPU's target; needs the extra `ibm`.

    Args:
        target: The JSON that `Lease.target` and `qpu target` give: a backend's configuration and
            properties, with its calibration.

    Returns:
        What `generate_preset_pass_manager(target=…)` takes.

    Raises:
        ResultError: The text is not a target of IBM's.
        ConfigError: The extra is not installed.
    """
    with needs_extra("ibm"):
        from qiskit_ibm_runtime.utils.backend_converter import convert_to_target
        from qiskit_ibm_runtime.utils.backend_decoder import (
            configuration_from_server_data,
            properties_from_server_data,
        )

    document = read_target(target)
    try:
        configuration = configuration_from_server_data(document["configuration"])
        properties = properties_from_server_data(document["properties"])
    except (KeyError, TypeError, ValueError) as error:
        raise _no_target(repr(error)) from error
    result: Target = convert_to_target(configuration=configuration, properties=properties)
    return result


def read_target(target: str) -> dict[str, Any]:
    """Read a target; QRMI's client puts `null` where the vendor gave an error."""
    try:
        document: dict[str, Any] = json.loads(target)
        kinds = {type(document[part]) for part in ("configuration", "properties")}
    except (KeyError, TypeError, ValueError) as error:
        raise _no_target(repr(error)) from error
    if kinds != {dict}:
        raise _no_target("it is without configuration or properties")
    return document


def _no_target(why: str) -> ResultError:
    return ResultError(
        f"not a target of IBM's: {why}. Fetch it again: `qpu target NAME` and `lease.target()` "
        "give that of a QPU of IBM's, as text."
    )

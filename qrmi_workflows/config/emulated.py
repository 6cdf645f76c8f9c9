"""The names of emulated QPUs: `emulated:MODEL`, and `emulated:MODEL:noisy`.

Such a QPU is private to one lease, which starts an emulator for it (`lease.emulated`). No QPU in
`qrmi_config.json` can have such a name, because names there have no colons.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from qrmi_workflows.errors import RequestError

__all__ = [
    "EMULATED_LANES",
    "EMULATED_PREFIX",
    "is_emulated",
    "loopback_variables",
    "parse_emulated",
    "refuse_emulated_stage",
]

EMULATED_PREFIX = "emulated:"
EMULATED_LANES = 5
"""How many tasks such a QPU prepares in parallel: the emulator's default."""
_NOISY = "noisy"
_LOOPBACK = "127.0.0.1"


def is_emulated(qpu: str | None) -> bool:
    """Return whether a QPU's name asks for an emulated QPU."""
    return qpu is not None and qpu.startswith(EMULATED_PREFIX)


def parse_emulated(qpu: str) -> tuple[str, bool]:
    """Return the model that an emulated QPU's name asks for, and whether it is to be noisy.

    Raises:
        RequestError: It has another form than `emulated:MODEL` or `emulated:MODEL:noisy`.
    """
    model, _, variant = qpu.removeprefix(EMULATED_PREFIX).partition(":")
    if not model or variant not in ("", _NOISY) or qpu.endswith(":"):
        raise RequestError(
            f"emulated QPU {qpu!r}: must be {EMULATED_PREFIX}MODEL, or {EMULATED_PREFIX}MODEL:"
            f"{_NOISY} for the model's calibrated noise. For example: {EMULATED_PREFIX}fez."
        )
    return model, variant == _NOISY


def refuse_emulated_stage(qpu: str) -> None:
    """Refuse an emulated QPU for a stage, whose jobs may be on different nodes.

    Raises:
        RequestError: The QPU is emulated.
    """
    if is_emulated(qpu):
        raise RequestError(
            f"QPU {qpu!r}: an emulated QPU is private to its job, and a stage is for several jobs. "
            "Leave out the stage: each job may have an emulated QPU of its own."
        )


def loopback_variables(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that keep clients from asking a proxy for the loopback address."""
    variables = {}
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [host for host in environ.get(name, "").split(",") if host]
        variables[name] = ",".join(hosts if _LOOPBACK in hosts else [*hosts, _LOOPBACK])
    return variables

"""Payloads for tests that do not care what is computed."""

from __future__ import annotations

import json
from typing import Any

BELL = """OPENQASM 3.0;
include "stdgates.inc";
bit[2] meas;
rz(pi/2) $0; sx $0; rz(pi/2) $0;
rz(pi/2) $1; sx $1; rz(pi/2) $1;
cz $0, $1;
rz(pi/2) $1; sx $1; rz(pi/2) $1;
meas[0] = measure $0;
meas[1] = measure $1;
"""


def bell(shots: int = 100) -> dict[str, Any]:
    """Return a Bell circuit's payload; each number of shots makes a different one."""
    parameters = {"pubs": [[BELL, None, shots]], "version": 2, "support_qiskit": True}
    return {"program_id": "sampler", "parameters": parameters}


def pulse(specs: str, shots: int) -> dict[str, Any]:
    """Return a payload that drives one atom of a Pulser device, given its specifications."""
    import pulser  # slow to import, and few tests need it
    from pulser.abstract_repr import deserialize_device

    device = deserialize_device(specs)
    register = pulser.Register.from_coordinates([(0, 0)], prefix="q")
    if device.requires_layout:
        register = register.with_automatic_layout(device)
    sequence = pulser.Sequence(register, device)
    sequence.declare_channel("global", "rydberg_global")
    sequence.add(pulser.Pulse.ConstantPulse(500, 6.28, 0, 0), "global")
    sequence.measure()
    return {"sequence": json.loads(sequence.to_abstract_repr()), "job_runs": shots}

"""A payload for tests that do not care what is computed."""

from __future__ import annotations

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

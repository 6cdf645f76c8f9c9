"""Compare the lowest energy of the last step with the exact one."""

import json
from pathlib import Path

from hydrogen import exact, hamiltonian
from step import angles_of

from qrmi_workflows import QuantumResult

if __name__ == "__main__":
    rule = snakemake  # noqa: F821 - Snakemake defines this name in its scripts
    angles = angles_of(json.loads(Path(rule.input.payload).read_text(encoding="utf-8")))
    energies, _ = QuantumResult.load(rule.input.result).expectation_values()
    energy, angle = min(zip(energies, angles, strict=True))
    answer = {
        "energy": energy,
        "angle": angle,
        "exact": exact(hamiltonian(rule.params.bond_length)),
    }
    Path(rule.output[0]).write_text(json.dumps(answer, indent=1), encoding="utf-8")

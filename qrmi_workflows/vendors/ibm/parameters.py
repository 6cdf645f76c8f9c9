"""Send parameters under names whose order is that of their values.

Values are sent by position, in the order of the declarations. A service that reads them in the
order of Qiskit's `QuantumCircuit.parameters`, which sorts by name, would mix them up: of the names
that Qiskit exports for a vector, `_θ_10_` comes before `_θ_2_`.
"""

from __future__ import annotations

from functools import lru_cache

from qrmi_workflows.vendors.ibm.openqasm import scan
from qrmi_workflows.vendors.ibm.registers import ambiguous_names, mask, rename

__all__ = ["with_sorted_parameters"]


@lru_cache(maxsize=16)
def with_sorted_parameters(text: str) -> str:
    """Return a program whose parameters are declared in the order of their names."""
    declared = list(scan(text).inputs) if "input" in text else []  # spares most texts a scan
    imported = [f"esc_{name}" if name.startswith("_") else name for name in declared]
    if declared == sorted(declared) and imported == sorted(imported):
        return text
    if ambiguous_names(mask(text)).intersection(declared):
        return text  # renaming could change what it does
    digits = len(str(len(declared)))
    prefix = "parameter_"
    while prefix in text:
        prefix = f"input_{prefix}"
    names = {name: f"{prefix}{rank:0{digits}}" for rank, name in enumerate(declared)}
    return rename(text, names)

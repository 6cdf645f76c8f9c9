"""IBM's options for its primitives: those that the emulator follows, and those without effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qrmi_workflows.emulator.simulators import SimulationError

__all__ = ["choose_seed", "find_ineffective", "require_emulated"]

# Options that change what a QPU does, but not the results here, unless they have these values.
_INEFFECTIVE: dict[str, dict[str, tuple[Any, ...]]] = {
    "dynamical_decoupling": {"enable": (False,)},
    "twirling": {"enable_gates": (False,), "enable_measure": (False,)},
    "resilience": {
        "measure_mitigation": (False,),
        "zne_mitigation": (False,),
        "pec_mitigation": (False,),
    },
    "execution": {"init_qubits": (True,), "rep_delay": ()},
    "simulator": {"noise_model": (), "basis_gates": (), "coupling_map": ()},
}


def choose_seed(options: Mapping[str, Any], default: int) -> int:
    """Return the seed in the options, which may be 0, or the default.

    Raises:
        SimulationError: The seed is not a non-negative integer.
    """
    seed = (options.get("simulator") or {}).get("seed_simulator")
    if seed is None:
        return default
    if type(seed) is not int or seed < 0:
        raise SimulationError(f"seed_simulator = {seed!r}: must be a non-negative integer")
    return seed


def require_emulated(options: Mapping[str, Any]) -> None:
    """Check that the options do not ask for results of another kind.

    Raises:
        SimulationError: They do.
    """
    kind = (options.get("execution") or {}).get("meas_type")
    if kind not in (None, "classified"):
        raise SimulationError(f"meas_type {kind!r} is not emulated; must be 'classified'")


def find_ineffective(params: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """Return a warning for each option that would have an effect on a QPU, but has none here."""
    names = list(_names(options))
    level = params.get("resilience_level", options.get("resilience_level"))
    if level:
        names.append(f"resilience_level = {level}")
    if options.get("experimental"):
        names.append("options.experimental")
    return [f"{name} has no effect on an emulated QPU" for name in names]


def _names(options: Mapping[str, Any]) -> Iterator[str]:
    for group, known in _INEFFECTIVE.items():
        values = options.get(group)
        if not isinstance(values, Mapping):
            continue
        for name, harmless in known.items():
            value = values.get(name)
            if value is not None and value not in harmless:
                yield f"options.{group}.{name} = {value!r:.40}"

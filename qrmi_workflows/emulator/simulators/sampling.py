"""Shots of a circuit on Aer, and the random numbers behind them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from qrmi_workflows.emulator.simulators import SimulationError

__all__ = [
    "LIMIT_SECONDS",
    "Engine",
    "derive_seed",
    "is_random",
    "run_sets",
    "sample_bits",
    "sample_registers",
]

LIMIT_SECONDS = 50.0
_ALWAYS_THE_SAME = ("barrier", "delay", "box", "for_loop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How Aer simulates a circuit.

    Attributes:
        method: Aer's simulation method.
        noise: Aer's noise model, or `None`.
        seed: The seed of all random numbers.
        limit_seconds: The limit on the computing time of shots that are simulated one by one.
    """

    method: str
    noise: Any
    seed: int
    limit_seconds: float = LIMIT_SECONDS

    def part(self, index: int) -> Engine:
        """Return the same engine with random numbers of its own for one part of the work."""
        return replace(self, seed=derive_seed(self.seed, index))


def derive_seed(seed: int, index: int) -> int:
    """Return the seed of one part of the work, so that equal parts are sampled independently."""
    import numpy as np

    # Aer adds the index of a parameter set to its seed; neighbouring seeds must not be derived.
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0]) & 0x7FFFFFFF


def is_random(circuit: Any) -> bool:
    """Return whether two runs of a circuit without noise may end in different states."""
    from qiskit.circuit import ControlFlowOp, Gate

    for instruction in circuit.data:
        operation = instruction.operation
        if isinstance(operation, ControlFlowOp) and any(map(is_random, operation.blocks)):
            return True
        if not isinstance(operation, Gate) and operation.name not in _ALWAYS_THE_SAME:
            return True
    return False


def sample_bits(circuit: Any, bindings: Any, shots: int, engine: Engine) -> Any:
    """Return a circuit's classical bits in each shot.

    Args:
        circuit: The circuit.
        bindings: The values of its parameters, a `BindingsArray`.
        shots: The number of shots for each set of values.
        engine: How to simulate.

    Returns:
        A Boolean array of shape (sets of values, shots, classical bits).

    Raises:
        SimulationError: Aer cannot simulate the circuit.
    """
    import numpy as np

    bits = np.zeros((bindings.size, shots, circuit.num_clbits), dtype=bool)
    if bits.size == 0:
        return bits
    results = run_sets(circuit, bindings, engine, shots=shots, memory=True).results
    for rank, item in enumerate(results):
        if memory := getattr(item.data, "memory", None):  # a circuit may measure nothing
            bits[rank] = _unpack(memory, circuit.num_clbits)
    return bits


def run_sets(circuit: Any, bindings: Any, engine: Engine, **options: Any) -> Any:
    """Run a circuit once for each set of values, and return Aer's result.

    Raises:
        SimulationError: Aer cannot simulate the circuit.
    """
    from qiskit.exceptions import QiskitError
    from qiskit_aer import AerSimulator

    # Aer 0.18 drops the ends of loops and conditions on qubits that are not measured afterwards.
    simulator = AerSimulator(
        method=engine.method,
        noise_model=engine.noise,
        enable_truncation=not circuit.has_control_flow_op(),
    )
    parameters = list(circuit.parameters)
    sets = bindings.as_array(parameters).reshape(bindings.size, len(parameters))
    try:
        # Not with `parameter_binds`: with it, Aer 0.18 takes the angle of a `cp` gate for 0.
        circuits = [circuit.assign_parameters(values) for values in sets]
        result = simulator.run(circuits, seed_simulator=engine.seed, **options).result()
    except (TypeError, ValueError, QiskitError) as error:
        raise SimulationError(f"the circuit cannot be simulated: {error}") from error
    if not result.success:
        raise SimulationError(f"the simulation failed: {result.status}")
    return result


def sample_registers(circuit: Any, bindings: Any, shots: int, engine: Engine) -> dict[str, Any]:
    """Do the same as `sample_bits`, and return a `BitArray` for each classical register.

    Registers may share bits.
    """
    from qiskit.primitives import BitArray

    bits = sample_bits(circuit, bindings, shots, engine)
    bits = bits.reshape(*bindings.shape, shots, circuit.num_clbits)
    return {
        register.name: BitArray.from_bool_array(
            bits[..., [circuit.find_bit(bit).index for bit in register]], order="little"
        )
        for register in circuit.cregs
    }


def _unpack(memory: list[str], width: int) -> Any:
    """Convert Aer's hexadecimal numbers, one per shot, to rows of bits, the lowest bit first."""
    import numpy as np

    size = (width + 7) // 8
    data = b"".join(int(text, 16).to_bytes(size, "little") for text in memory)
    rows = np.frombuffer(data, dtype=np.uint8).reshape(len(memory), size)
    return np.unpackbits(rows, axis=1, bitorder="little")[:, :width].astype(bool)

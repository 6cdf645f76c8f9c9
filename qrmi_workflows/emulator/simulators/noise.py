"""Methods of simulation, and the calibrated noise of a backend on the qubits in use.

Runs in worker processes alone: it imports qiskit.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Sequence
from typing import Any

from qrmi_workflows.emulator.simulators import SimulationError

__all__ = ["choose_method", "noise_model", "require_native"]

STATEVECTOR_QUBITS = 24  # 2**24 amplitudes of 16 bytes: 256 MiB, and as much again to sample
DENSITY_MATRIX_QUBITS = 8
TRAJECTORY_QUBITS = 14
_QUARTER = math.pi / 2
_ALWAYS_NATIVE = (
    *("barrier", "delay", "measure", "reset"),
    *("if_else", "for_loop", "while_loop", "switch_case"),
)


def choose_method(circuit: Any, noise: bool) -> str:
    """Return the method of Aer's that fits a circuit.

    Up to 24 qubits in use the state vector; beyond that the stabilizer formalism for Clifford
    circuits and matrix product states for others, whose cost grows with the entanglement. With
    noise the density matrix up to 8 qubits, then trajectories.
    """
    width = circuit.num_qubits
    if noise and width <= DENSITY_MATRIX_QUBITS:
        return "density_matrix"
    if width <= (TRAJECTORY_QUBITS if noise else STATEVECTOR_QUBITS):
        return "statevector"
    if not noise and _is_clifford(circuit):
        return "stabilizer"
    return "matrix_product_state"


def noise_model(model: str, active: Sequence[int]) -> Any:
    """Return the noise of a fake backend, on the qubits in use alone.

    Args:
        model: The fake backend's name (`fez`).
        active: The backend's qubit of each of the circuit's qubits.
    """
    from qiskit_aer.noise import NoiseModel

    return NoiseModel.from_backend(_as_backend(_restricted(_target(model), active)))


def require_native(model: str, active: Sequence[int], circuit: Any) -> None:
    """Refuse a circuit that is not transpiled to a backend.

    Args:
        model: The fake backend's name (`fez`).
        active: The backend's qubit of each of the circuit's qubits.
        circuit: The circuit.

    Raises:
        SimulationError: It uses an instruction that the backend does not have there.
    """
    target = _target(model)
    for instruction in circuit.data:
        name = instruction.operation.name
        if name in _ALWAYS_NATIVE:
            continue
        qubits = tuple(active[circuit.find_bit(qubit).index] for qubit in instruction.qubits)
        if not target.instruction_supported(name, qubits):
            raise SimulationError(
                f"the instruction {name} on qubits {qubits} is not supported by {model}; "
                "transpile the circuit to the backend's target"
            )


def _is_clifford(circuit: Any) -> bool:
    from qiskit_aer import AerSimulator

    if not set(circuit.count_ops()) <= set(AerSimulator(method="stabilizer").operation_names):
        return False
    return all(
        isinstance(angle, (int, float)) and abs(math.remainder(angle, _QUARTER)) < 1e-9
        for instruction in circuit.data
        if instruction.operation.name not in ("delay", "barrier")
        for angle in instruction.operation.params
    )


@functools.cache
def _target(model: str) -> Any:
    module = importlib.import_module(f"qiskit_ibm_runtime.fake_provider.backends.{model}")
    kinds = [item for name, item in vars(module).items() if name.startswith("Fake")]
    return kinds[0]().target


def _restricted(target: Any, active: Sequence[int]) -> Any:
    from qiskit.transpiler import Target

    rank = {qubit: index for index, qubit in enumerate(active)}
    properties = target.qubit_properties
    restricted = Target(
        num_qubits=len(active),
        dt=target.dt,
        qubit_properties=properties and [properties[qubit] for qubit in active],
    )
    for name in target.operation_names:
        table = target[name]
        if not table or None in table:
            continue
        kept = {
            tuple(rank[qubit] for qubit in qubits): value
            for qubits, value in table.items()
            if all(qubit in rank for qubit in qubits)
        }
        if kept:
            restricted.add_instruction(target.operation_from_name(name), kept, name=name)
    return restricted


def _as_backend(target: Any) -> Any:
    from qiskit.providers import BackendV2, Options

    class Reduced(BackendV2):  # type: ignore[misc]
        """The part of a backend that a circuit uses."""

        @property
        def target(self) -> Any:
            return target

        @property
        def max_circuits(self) -> None:
            return None

        @classmethod
        def _default_options(cls) -> Any:
            return Options()

        def run(self, run_input: Any, **options: Any) -> Any:
            raise NotImplementedError

    return Reduced(name="reduced")

"""The choice of Aer's simulation method, and a backend's noise on the qubits in use."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Sequence
from typing import Any

from qrmi_workflows.emulator.backends import FRACTIONAL_GATES
from qrmi_workflows.emulator.simulators import CODE_PREFIX, SimulationError

__all__ = ["choose_method", "noise_model", "require_native"]

STATEVECTOR_QUBITS = 24  # 2**24 amplitudes of 16 bytes: 256 MiB, and as much again for sampling
DENSITY_MATRIX_QUBITS = 8
TRAJECTORY_QUBITS = 14
_QUARTER_TURN = math.pi / 2
_ALWAYS_NATIVE = (
    *("barrier", "delay", "measure", "reset"),
    *("if_else", "for_loop", "while_loop", "switch_case"),
)


def choose_method(circuit: Any, noise: bool) -> str:
    """Choose Aer's simulation method for a circuit.

    Without noise: a state vector for up to 24 qubits; beyond that the stabilizer formalism for
    Clifford circuits, and matrix product states, whose cost grows with entanglement, for others.
    With noise: a density matrix for up to 8 qubits, state-vector trajectories for up to 14, and
    matrix product states beyond that.

    Args:
        circuit: The circuit on its qubits in use.
        noise: Whether it is simulated with noise.
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
    """Return a fake backend's noise model, restricted to the qubits in use.

    Args:
        model: The fake backend's name (`fez`).
        active: For each qubit of the circuit, its index on the backend.
    """
    from qiskit_aer.noise import NoiseModel

    return NoiseModel.from_backend(_as_backend(_restrict(_target(model), active)))


def require_native(model: str, active: Sequence[int], circuit: Any) -> None:
    """Check that a circuit is transpiled for a backend.

    Args:
        model: The fake backend's name (`fez`).
        active: For each qubit of the circuit, its index on the backend.
        circuit: The circuit.

    Raises:
        SimulationError: An instruction is not native to the backend on its qubits.
    """
    target = _target(model)
    for instruction in circuit.data:
        operation = instruction.operation
        qubits = tuple(active[circuit.find_bit(qubit).index] for qubit in instruction.qubits)
        for block in getattr(operation, "blocks", ()):
            require_native(model, qubits, block)
        if operation.name in _ALWAYS_NATIVE:
            continue
        if not target.instruction_supported(operation.name, qubits):
            # The wording and the code are IBM's: https://quantum.cloud.ibm.com/docs/errors.
            raise SimulationError(
                "Circuits do not match the target definition (non-ISA circuits): the instruction "
                f"{operation.name} on qubits {qubits} is not supported by {model}. Transpile your "
                f"circuits for the target. -- {CODE_PREFIX}1517"
            )
        if operation.name == "rzz":
            _require_native_angle(operation.params[0], qubits)


def _require_native_angle(angle: Any, qubits: tuple[int, ...]) -> None:
    if isinstance(angle, float | int) and not -1e-10 <= angle <= _QUARTER_TURN + 1e-10:
        raise SimulationError(  # as IBM words it
            f"The instruction rzz on qubits {qubits} is supported only for angles in the range [0, "
            f"pi/2], but an angle ({angle}) outside of this range has been requested. -- "
            f"{CODE_PREFIX}1517"
        )


def _is_clifford(circuit: Any) -> bool:
    from qiskit_aer import AerSimulator

    if not set(circuit.count_ops()) <= set(AerSimulator(method="stabilizer").operation_names):
        return False
    return all(
        isinstance(angle, (int, float)) and abs(math.remainder(angle, _QUARTER_TURN)) < 1e-9
        for instruction in circuit.data
        if instruction.operation.name not in ("delay", "barrier")
        for angle in instruction.operation.params
    )


@functools.cache
def _target(model: str) -> Any:
    module = importlib.import_module(f"qiskit_ibm_runtime.fake_provider.backends.{model}")
    classes = [item for name, item in vars(module).items() if name.startswith("Fake")]
    return _with_fractional_gates(classes[0]().target)


def _with_fractional_gates(target: Any) -> Any:
    from qiskit.circuit import Parameter
    from qiskit.circuit.library import RXGate, RZZGate

    for name, gate in (("rx", RXGate), ("rzz", RZZGate)):
        if "cz" in target and name not in target:
            properties = dict(target[FRACTIONAL_GATES[name]])
            target.add_instruction(gate(Parameter("theta")), properties, name=name)
    return target


def _restrict(target: Any, active: Sequence[int]) -> Any:
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
        remaining = {
            tuple(rank[qubit] for qubit in qubits): value
            for qubits, value in table.items()
            if all(qubit in rank for qubit in qubits)
        }
        if remaining:
            restricted.add_instruction(target.operation_from_name(name), remaining, name=name)
    return restricted


def _as_backend(target: Any) -> Any:
    from qiskit.providers import BackendV2, Options

    class Reduced(BackendV2):  # type: ignore[misc]
        """A backend that has nothing but a target, which is all that `NoiseModel` reads."""

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

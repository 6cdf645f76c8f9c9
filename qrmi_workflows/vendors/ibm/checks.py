"""Check PUBs before they are submitted, without Qiskit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from qrmi_workflows.errors import PayloadError
from qrmi_workflows.vendors.ibm.arrays import shape_of
from qrmi_workflows.vendors.ibm.circuits import openqasm_of, require_version_3
from qrmi_workflows.vendors.ibm.isa import (
    FRACTIONAL_GATES,
    check_defined,
    check_isa,
    check_shots,
    read_backend,
)
from qrmi_workflows.vendors.ibm.openqasm import Program, scan
from qrmi_workflows.vendors.ibm.registers import with_registers

__all__ = ["check_pub"]

# Paulis and projectors, in the alphabet of Qiskit's `SparseObservable`.
_LABEL = re.compile(r"[IXYZ01+lr-]+")


def check_pub(
    program: str,
    pub: Any,
    *,
    index: int,
    default_shots: int | None,
    options: Mapping[str, Any],
    qpu: str,
    target: str | None,
) -> None:
    """Refuse a PUB that cannot run on a QPU.

    Circuits are inspected if they are OpenQASM 3, or QPY that the installed Qiskit can read.
    Whether the QPU has their gates is checked if the target is known. Everything else is left to
    the vendor.

    Args:
        program: `sampler` or `estimator`.
        pub: The PUB.
        index: Its number in the payload, for messages.
        default_shots: The number of shots if the PUB has none of its own.
        options: The payload's options.
        qpu: The QPU's name, for messages.
        target: The QPU's target; `None` if unknown.

    Raises:
        PayloadError: The parameters have no values, a sampler's circuit has no measurements, an
            observable is malformed or of the wrong shape, the circuit is not ISA or cannot be
            combined with an option, or the QPU does not allow so many shots.
    """
    items: list[Any] = [pub] if isinstance(pub, str) else pub
    is_sampler = program == "sampler"
    backend = None if target is None else read_backend(target)
    if is_sampler and backend is not None:
        own_shots = items[2] if len(items) > 2 else None
        check_shots(own_shots or default_shots, backend, f"PUB {index}", qpu)
    widths: set[int] = set()
    if not is_sampler:
        _check_observables(items[1], f"the observables of PUB {index}", widths)
    where = f"the circuit of PUB {index}"
    text = items[0] if isinstance(items[0], str) else openqasm_of(items[0], where)
    if text is None:
        return
    require_version_3(text, where)
    circuit = scan(text)
    _check_structure(circuit, where, is_sampler=is_sampler)
    if is_sampler:
        with_registers(text, where)
    else:
        _check_widths(widths, circuit, None if backend is None else backend.num_qubits, index)
    values_at = 1 if is_sampler else 2
    values = items[values_at] if len(items) > values_at else None
    shape = _check_parameter_values(values, circuit.inputs, where)
    if not is_sampler:
        _check_broadcast(items[1], shape, len(circuit.inputs), index)
    if backend is not None:
        check_isa(circuit, backend, where, qpu)
    check_defined(circuit, where, qpu)
    if circuit.angles:
        from qrmi_workflows.vendors.ibm.angles import check_angles

        check_angles(circuit.angles, _values_by_name(circuit.inputs, values), where)
    _check_options(options, circuit, where)


def _check_structure(circuit: Program, where: str, *, is_sampler: bool) -> None:
    if circuit.empty:
        raise PayloadError(
            f"{where}: register {circuit.empty[0]!r} is empty; must have at least one bit or "
            "qubit. Remove it."
        )
    if is_sampler and not circuit.measured:
        raise PayloadError(
            f"{where} has no measurements; a sampler needs at least one. Add them "
            "(`circuit.measure_all()`), or estimate observables instead."
        )
    if not (circuit.calls or circuit.measured or circuit.declared):
        raise PayloadError(f"{where} is empty; must have at least one qubit. Add one.")


def _check_options(options: Mapping[str, Any], circuit: Program, where: str) -> None:
    """Refuse options that cannot be combined with the circuit.

    https://quantum.cloud.ibm.com/docs/guides/runtime-options-overview#feature-compatibility
    """
    if circuit.control_flow and _is_on(options, "dynamical_decoupling", "enable"):
        raise PayloadError(
            f"{where} is dynamic (`{circuit.control_flow}`); dynamical decoupling must be off in "
            "dynamic circuits. Set `dynamical_decoupling.enable` to false, or add the sequences to "
            "the circuit when you transpile it."
        )
    fractional = sorted({call.name for call in circuit.calls} & FRACTIONAL_GATES)
    for path, number in (
        (("twirling", "enable_gates"), " (IBM's error 1519)"),
        (("resilience", "pec_mitigation"), ""),
    ):
        if fractional and _is_on(options, *path):
            raise PayloadError(
                f"{where} has the fractional gates {', '.join(fractional)}; `{'.'.join(path)}` "
                f"must be off for these{number}. Set it to false, or transpile the circuit without "
                "fractional gates."
            )


def _is_on(options: Mapping[str, Any], group: str, name: str) -> bool:
    return bool((options.get(group) or {}).get(name))


def _check_widths(widths: set[int], circuit: Program, num_qubits: int | None, index: int) -> None:
    """Refuse observables that do not have one letter for each qubit."""
    if not widths:
        return
    used = {qubit for call in circuit.calls for qubit in call.qubits} | set(circuit.measured)
    # A circuit on the QPU's own qubits is as wide as the QPU.
    least = circuit.declared or 1 + max((qubit for qubit in used if qubit is not None), default=0)
    most = circuit.declared or num_qubits or max(widths)
    wrong = sorted(width for width in widths if not least <= width <= most)
    if not wrong and len(widths) > 1:
        wrong = sorted(widths)
    if wrong:
        needed = f"{least}" if circuit.declared else f"{num_qubits or f'at least {least}'}"
        raise PayloadError(
            f"the observables of PUB {index} have {' and '.join(map(str, wrong))} qubits; must all "
            f"have {needed}, as the circuit does. Write one letter for each qubit, or apply the "
            "circuit's layout: `observable.apply_layout(circuit.layout)`."
        )


def _check_broadcast(
    observables: Any, values: tuple[int, ...] | None, num_parameters: int, index: int
) -> None:
    """Refuse observables whose shape does not broadcast with that of the parameter values."""
    if values is None or not isinstance(observables, list):
        return
    has_own_axis = num_parameters > 1 or (values and values[-1] == 1)
    shape = values[:-1] if has_own_axis else values
    own = shape_of(observables, (str, Mapping))
    if own is not None and _do_broadcast(own, shape):
        return
    import numpy as np

    try:
        np.broadcast_shapes(np.shape(observables), shape)
    except ValueError as error:
        raise PayloadError(
            f"PUB {index}: its observables and its parameter values of shape {shape} do not "
            f"broadcast ({error}); must do so as NumPy's arrays do. Correct a shape."
        ) from error


def _do_broadcast(*shapes: tuple[int, ...]) -> bool:
    """Return whether shapes broadcast; https://numpy.org/doc/stable/user/basics.broadcasting.html.

    Axes are compared from the last one; they must be equal, or one of them 1.
    """
    axes = zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1)
    return all(len({size for size in sizes if size != 1}) <= 1 for sizes in axes)


def _values_by_name(names: tuple[str, ...], values: Any) -> Mapping[str, Any]:
    """Return the values of each parameter; they have been checked."""
    if isinstance(values, Mapping) or not names:
        return values or {}
    import numpy as np

    array = np.asarray(values, dtype=float)
    if len(names) == 1:
        return {names[0]: array}
    return {name: array[..., rank] for rank, name in enumerate(names)}


def _check_observables(observables: Any, where: str, widths: set[int]) -> None:
    """Refuse what is not an array of observables, and collect their numbers of qubits."""
    if isinstance(observables, list) and observables:
        for each in observables:
            _check_observables(each, where, widths)
        return
    if isinstance(observables, Mapping) and "__type__" in observables:
        return  # an `ObservablesArray` in qiskit-ibm-runtime's encoding
    terms = {observables: 1.0} if isinstance(observables, str) else observables
    if not isinstance(terms, Mapping) or not terms:
        raise _not_an_observable(where, observables)
    for label, coefficient in terms.items():
        is_number = isinstance(coefficient, int | float) and not isinstance(coefficient, bool)
        if not is_number or not _LABEL.fullmatch(label):
            raise _not_an_observable(where, {label: coefficient})
        widths.add(len(label))


def _not_an_observable(where: str, value: object) -> PayloadError:
    return PayloadError(
        f"{where}: {value!r:.60} is not an observable; must be a Pauli label ('ZZ'), a mapping "
        "from labels to numbers ({'ZZ': 0.5, 'XI': 1.0}), or a list of these. Correct it."
    )


def _check_parameter_values(
    values: Any, parameters: tuple[str, ...], where: str
) -> tuple[int, ...] | None:
    """Refuse values that do not fit the parameters; return their shape, if they are an array."""
    if isinstance(values, Mapping):
        return None  # an array in qiskit-ibm-runtime's encoding, or values by parameter name
    count, names = len(parameters), ", ".join(parameters) or "none"
    shape = _shape_of_values(values, where, count)
    if 0 in shape and not parameters:
        return None
    if 0 in shape:
        raise PayloadError(
            f"{where} has unbound parameters: {names}. Add their values to the PUB (for a file: "
            "`Payload.from_file(…, parameter_values=…)`), or bind them with "
            "`circuit.assign_parameters`."
        )
    # As in Qiskit's `BindingsArray`, the last axis indexes the parameters. A single parameter needs
    # no axis of its own: a list of numbers is then a list of parameter sets.
    if not (count == 1 or (count and shape and shape[-1] == count)):
        raise PayloadError(
            f"{where}: parameter values of shape {shape} do not match its {count} parameters "
            f"({names}); the last axis must have length {count}. Correct their shape."
        )
    return shape


def _shape_of_values(values: Any, where: str, count: int) -> tuple[int, ...]:
    if values is None:
        return (0,)
    shape = shape_of(values, float)  # an integer may be too large for a float
    if shape is not None:
        return shape
    import numpy as np

    try:
        return np.asarray(values, dtype=float).shape
    except (TypeError, ValueError, OverflowError) as error:
        raise PayloadError(
            f"{where}: parameter values {values!r:.80} are not an array of numbers. Give a list of "
            f"{count} numbers, or a list of such lists."
        ) from error

"""Check PUBs before they are submitted, without Qiskit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from qrmi_workflows.errors import PayloadError
from qrmi_workflows.vendors.ibm.isa import check_isa, check_shots, read_backend
from qrmi_workflows.vendors.ibm.openqasm import scan
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
    qpu: str,
    target: str | None,
) -> None:
    """Refuse a PUB that cannot run on a QPU.

    Circuits are inspected only if they are OpenQASM 3, and their gates only if the target is known.
    Everything else is left to the vendor.

    Args:
        program: `sampler` or `estimator`.
        pub: The PUB.
        index: Its number in the payload, for messages.
        default_shots: The number of shots if the PUB has none of its own.
        qpu: The QPU's name, for messages.
        target: The QPU's target; `None` if unknown.

    Raises:
        PayloadError: The parameters have no values, a sampler's circuit has no measurements, an
            observable is malformed, the circuit is not ISA, or the QPU does not allow so many
            shots.
    """
    items: list[Any] = [pub] if isinstance(pub, str) else pub
    is_sampler = program == "sampler"
    backend = None if target is None else read_backend(target)
    if is_sampler and backend is not None:
        own_shots = items[2] if len(items) > 2 else None
        check_shots(own_shots or default_shots, backend, f"PUB {index}", qpu)
    if not is_sampler:
        _check_observables(items[1], f"the observables of PUB {index}")
    if not isinstance(items[0], str):
        return
    circuit, where = scan(items[0]), f"the circuit of PUB {index}"
    if is_sampler:
        with_registers(items[0], where)
    values_at = 1 if is_sampler else 2
    values = items[values_at] if len(items) > values_at else None
    _check_parameter_values(values, circuit.inputs, where)
    if is_sampler and circuit.calls and not circuit.measured:
        raise PayloadError(
            f"{where} has no measurements; a sampler needs at least one. Add them "
            "(`circuit.measure_all()`), or estimate observables instead."
        )
    if backend is not None:
        check_isa(circuit, backend, where, qpu)


def _check_observables(observables: Any, where: str) -> None:
    if isinstance(observables, list) and observables:
        for each in observables:
            _check_observables(each, where)
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


def _not_an_observable(where: str, value: object) -> PayloadError:
    return PayloadError(
        f"{where}: {value!r:.60} is not an observable; must be a Pauli label ('ZZ'), a mapping "
        "from labels to numbers ({'ZZ': 0.5, 'XI': 1.0}), or a list of these. Correct it."
    )


def _check_parameter_values(values: Any, parameters: tuple[str, ...], where: str) -> None:
    if isinstance(values, Mapping):
        return  # an array in qiskit-ibm-runtime's encoding, or values by parameter name
    count, names = len(parameters), ", ".join(parameters) or "none"
    try:
        array = np.asarray([] if values is None else values, dtype=float)
    except (TypeError, ValueError) as error:
        raise PayloadError(
            f"{where}: parameter values {values!r:.80} are not an array of numbers. Give a list of "
            f"{count} numbers, or a list of such lists."
        ) from error
    if array.size == 0 and not parameters:
        return
    if array.size == 0:
        raise PayloadError(
            f"{where} has unbound parameters: {names}. Add their values to the PUB (for a file: "
            "`Payload.from_file(…, parameter_values=…)`), or bind them with "
            "`circuit.assign_parameters`."
        )
    # As in Qiskit's `BindingsArray`, the last axis indexes the parameters. A single parameter needs
    # no axis of its own: a list of numbers is then a list of parameter sets.
    if not (count == 1 or (count and array.ndim and array.shape[-1] == count)):
        raise PayloadError(
            f"{where}: parameter values of shape {array.shape} do not match its {count} parameters "
            f"({names}); the last axis must have length {count}. Correct their shape."
        )

"""IBM's circuits: from files to PUBs, and what a QPU would refuse, found before it is asked."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from qrmi_workflows.errors import PayloadError
from qrmi_workflows.vendors.base import ProgramSettings, needs_extra
from qrmi_workflows.vendors.ibm.openqasm import GateCall, Program, scan

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

__all__ = ["check_pub", "primitive_content", "read_circuits", "to_openqasm"]

_QPY_MAGIC = b"QISKIT"
_VERSION = re.compile(r"\A(?:\s|//[^\n]*\n|/\*.*?\*/)*OPENQASM\s+(\d+)", re.S)
_PAULIS = re.compile(r"[IXYZ01+lr-]+")  # and projectors, as Qiskit's `ObservablesArray` has them
_TRANSPILE = (
    "Transpile it for this QPU: `qpu target {qpu}` fetches its target, and "
    "`qrmi_workflows.vendors.ibm.transpiler_target` gives it to Qiskit; `qpu target --refresh` "
    "when the QPU has changed."
)


def read_circuits(
    data: bytes, settings: ProgramSettings, *, where: str
) -> Mapping[str, Any] | None:
    """Make a payload's content of an OpenQASM 3 or a QPY file; `None` when it is neither.

    Raises:
        PayloadError: It cannot be read, or the settings do not fit it.
        ConfigError: QPY is read by Qiskit, which is not installed.
    """
    if data.startswith(_QPY_MAGIC):
        return _content([to_openqasm(each) for each in _load_qpy(data, where)], settings, where)
    text = data.decode(errors="replace")
    version = _VERSION.match(text)
    if version is None:
        return None
    if version[1] != "3":
        raise PayloadError(
            f"{where}: OpenQASM {version[1]}; allowed is OpenQASM 3. Convert it: "
            "`qiskit.qasm3.dumps(qiskit.qasm2.loads(text))`."
        )
    return _content([text], settings, where)


def to_openqasm(circuit: QuantumCircuit) -> str:
    """Render a circuit as IBM's services take it."""
    with needs_extra("ibm"):
        from qiskit import qasm3

    text: str = qasm3.dumps(
        circuit,
        disable_constants=True,
        allow_aliasing=True,
        experimental=qasm3.ExperimentalFeatures.SWITCH_CASE_V1,
    )
    return text


def primitive_content(
    program: str, pubs: Iterable[list[Any]], options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return a payload's content: IBM's primitives, version 2."""
    parameters = {
        "pubs": list(pubs),
        "version": 2,
        "support_qiskit": True,
        "options": dict(options or {}),
    }
    return {"program_id": program, "parameters": parameters}


def check_pub(program: str, pub: Any, *, index: int, qpu: str, target: str | None) -> None:
    """Refuse a PUB that cannot run on a QPU; circuits that are not OpenQASM 3 are not looked into.

    Raises:
        PayloadError: Its parameters have no values, it measures nothing, its observables are none,
            it is not ISA, or it asks for more shots than the QPU takes.
    """
    parts: list[Any] = [pub] if isinstance(pub, str) else pub
    abilities = None if target is None else _abilities(target)
    if program == "sampler" and len(parts) > 2 and abilities is not None:
        _check_shots(parts[2], abilities, f"PUB {index}", qpu)
    if program == "estimator":
        _check_observables(parts[1], f"the observables of PUB {index}")
    if not isinstance(parts[0], str):
        return
    found, where = scan(parts[0]), f"the circuit of PUB {index}"
    place = 1 if program == "sampler" else 2
    _check_values(found.inputs, parts[place] if len(parts) > place else None, where)
    if program == "sampler" and found.calls and not found.measured:
        raise PayloadError(
            f"{where} measures nothing, so that there is nothing to sample. Add measurements "
            "(`measure_all()`), or estimate observables instead."
        )
    if abilities is not None:
        _check_isa(found, abilities, where, qpu)


def _check_observables(observables: Any, where: str) -> None:
    if isinstance(observables, list) and observables:
        for each in observables:
            _check_observables(each, where)
        return
    if isinstance(observables, Mapping) and "__type__" in observables:
        return  # an array as qiskit-ibm-runtime encodes it
    terms = {observables: 1.0} if isinstance(observables, str) else observables
    if not isinstance(terms, Mapping) or not terms:
        raise _no_observable(where, observables)
    for label, weight in terms.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not _PAULIS.fullmatch(label):
            raise _no_observable(where, {label: weight})


def _no_observable(where: str, found: object) -> PayloadError:
    return PayloadError(
        f"{where}: {found!r:.60} is none; allowed are Pauli labels ('ZZ'), maps of labels to "
        "numbers ({'ZZ': 0.5, 'XI': 1.0}), and lists of those. Correct it."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Abilities:
    """What a QPU can do: its qubits, and on which of them each gate acts (`None`: on any)."""

    num_qubits: int
    max_shots: int | None
    gates: Mapping[str, frozenset[tuple[int, ...]] | None]


@lru_cache(maxsize=8)
def _abilities(target: str) -> _Abilities | None:
    try:
        configuration = json.loads(target)["configuration"]
        names = [*configuration["basis_gates"], *configuration.get("supported_instructions", ())]
        gates: dict[str, frozenset[tuple[int, ...]] | None] = dict.fromkeys(names)
        for gate in configuration.get("gates", ()):
            if places := gate.get("coupling_map"):
                gates[gate["name"]] = frozenset(tuple(place) for place in places)
        return _Abilities(
            num_qubits=configuration["n_qubits"],
            max_shots=configuration.get("max_shots"),
            gates=gates,
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return None  # of a form that is not known: the vendor has the last word


def _check_shots(shots: int | None, abilities: _Abilities, where: str, qpu: str) -> None:
    most = abilities.max_shots
    if shots is not None and most is not None and shots > most:
        raise PayloadError(
            f"{where}: {shots} shots; QPU {qpu!r} allows at most {most}. Ask for fewer, or for "
            "several such tasks."
        )


def _check_isa(found: Program, abilities: _Abilities, where: str, qpu: str) -> None:
    remedy = _TRANSPILE.format(qpu=qpu)
    used = {qubit for call in found.calls for qubit in call.qubits} | set(found.measured)
    highest = max((qubit for qubit in used if qubit is not None), default=0)
    if highest >= abilities.num_qubits:
        raise PayloadError(
            f"{where} uses qubit {highest}; QPU {qpu!r} has {abilities.num_qubits}, allowed are 0 "
            f"to {abilities.num_qubits - 1}. {remedy}"
        )
    for call in found.calls:
        if refusal := _refusal(call, abilities):
            raise PayloadError(f"{where} is not ISA for QPU {qpu!r}: {refusal}. {remedy}")


def _refusal(call: GateCall, abilities: _Abilities) -> str | None:
    if call.name not in abilities.gates:
        placed = sorted(name for name, places in abilities.gates.items() if places)
        allowed = ", ".join(placed or sorted(abilities.gates))
        return f"it has no gate {call.name!r}; allowed: {allowed}"
    places = abilities.gates[call.name]
    known = tuple(qubit for qubit in call.qubits if qubit is not None)
    if places is None or len(known) < len(call.qubits) or known in places:
        return None
    near = sorted(place for place in places if place[0] == known[0])
    allowed = ", ".join(str(place) for place in near) or "none there"
    return f"it has no {call.name!r} on qubits {known}; allowed from {known[0]} on: {allowed}"


def _check_values(inputs: tuple[str, ...], values: Any, where: str) -> None:
    """Refuse parameters without values; the last axis of the values runs over the parameters."""
    if isinstance(values, Mapping):
        return  # an encoded array, or values by name
    try:
        array = np.asarray([] if values is None else values, dtype=float)
    except (TypeError, ValueError) as error:
        raise PayloadError(
            f"{where}: parameter values {values!r:.80} are no array of numbers. Give a list of "
            f"{len(inputs)} numbers, or a list of such lists."
        ) from error
    if not inputs and array.size == 0:
        return
    count, names = len(inputs), ", ".join(inputs) or "none"
    if array.size == 0:
        raise PayloadError(
            f"{where} has unbound parameters: {names}. Give values for them in the PUB, or bind "
            "them (`assign_parameters`)."
        )
    if not (count == 1 or (count and array.ndim and array.shape[-1] == count)):
        raise PayloadError(
            f"{where}: parameter values of shape {array.shape} do not fit its {count} parameters "
            f"({names}); the last axis must have length {count}. Correct them."
        )


def _content(texts: list[str], settings: ProgramSettings, where: str) -> dict[str, Any]:
    program = settings.program or ("sampler" if settings.observables is None else "estimator")
    make = {"sampler": _sampler_pub, "estimator": _estimator_pub}.get(program)
    if make is None:
        raise PayloadError(f"{where}: program {program!r}; allowed: sampler, estimator. Name one.")
    return primitive_content(program, [_trimmed(make(text, settings, where)) for text in texts])


def _sampler_pub(text: str, settings: ProgramSettings, where: str) -> list[Any]:
    allowed = ("program", "shots", "parameter_values")
    settings.require_only(*allowed, where=where, reason="a sampler samples")
    return [text, settings.parameter_values, settings.shots]


def _estimator_pub(text: str, settings: ProgramSettings, where: str) -> list[Any]:
    allowed = ("program", "observables", "parameter_values", "precision")
    settings.require_only(*allowed, where=where, reason="an estimator estimates, to a precision")
    if settings.observables is None:
        raise PayloadError(f"{where}: an estimator needs observables. Give some ('ZZ').")
    values = [] if settings.parameter_values is None else settings.parameter_values
    return [text, settings.observables, values, settings.precision]


def _trimmed(pub: list[Any]) -> list[Any]:
    while pub[-1] is None:
        pub = pub[:-1]
    return pub


def _load_qpy(data: bytes, where: str) -> list[QuantumCircuit]:
    with needs_extra("ibm"):
        from qiskit import QuantumCircuit, qpy

    try:
        loaded = qpy.load(io.BytesIO(data))
    except Exception as error:  # Qiskit raises many types at a file that was cut off
        text = getattr(error, "message", None) or str(error) or type(error).__name__
        raise PayloadError(
            f"{where}: not a whole QPY file: {text}. Write it again with `qiskit.qpy.dump`, by a "
            "Qiskit that is not newer than the one installed here."
        ) from error
    if not loaded or not all(isinstance(item, QuantumCircuit) for item in loaded):
        raise PayloadError(f"{where}: a QPY file without circuits. Dump one or more circuits.")
    return list(loaded)

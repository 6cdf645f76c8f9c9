"""Convert circuits to payloads: OpenQASM 3 and QPY files, and Qiskit's own circuits."""

from __future__ import annotations

import base64
import io
import re
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from qrmi_workflows.errors import PayloadError
from qrmi_workflows.vendors.base import ProgramSettings, needs_extra
from qrmi_workflows.vendors.ibm.openqasm import is_openqasm, version
from qrmi_workflows.vendors.ibm.registers import escape, escaped, rename

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

__all__ = ["openqasm_of", "primitive_content", "read_circuits", "require_version_3", "to_openqasm"]

_QPY_MAGIC = b"QISKIT"
# The declarations of Qiskit's exporter, which writes one statement per line.
_REGISTER = re.compile(r"^bit\[\d+\] (\w+);$", re.M)
_ALIAS = re.compile(r"^let (\w+) = ", re.M)


def read_circuits(
    data: bytes, settings: ProgramSettings, *, where: str
) -> Mapping[str, Any] | None:
    """Convert an OpenQASM 3 or QPY file to a payload's content; return `None` for other files.

    Raises:
        PayloadError: The file cannot be read, or a setting does not apply to it.
        ConfigError: The file is QPY, and Qiskit is not installed.
    """
    if data.startswith(_QPY_MAGIC):
        circuits = [to_openqasm(circuit) for circuit in _load_qpy(data, where)]
        return _to_content(circuits, settings, where)
    text = data.decode(errors="replace")
    if not is_openqasm(text):
        return None
    require_version_3(text, where)
    return _to_content([text], settings, where)


def require_version_3(text: str, where: str) -> None:
    """Refuse a program in another version of OpenQASM.

    Raises:
        PayloadError: The program states another version.
    """
    stated = version(text)
    if stated not in (None, "3"):
        raise PayloadError(
            f"{where}: the circuit is in OpenQASM {stated}; must be OpenQASM 3. Convert it: "
            "`qiskit.qasm3.dumps(qiskit.qasm2.loads(text))`."
        )


def to_openqasm(circuit: QuantumCircuit) -> str:
    """Export a circuit in the dialect of OpenQASM 3 that IBM's services accept."""
    with needs_extra("ibm"):
        from qiskit import qasm3

    circuit = _with_register_of_loose_bits(circuit)
    # The options of QRMI's own primitives (qrmi 0.26.4, primitives/base_sampler.py): angles are
    # numbers, registers may be aliases, and `switch` has a syntax that Qiskit calls experimental.
    text: str = qasm3.dumps(
        circuit,
        disable_constants=True,
        allow_aliasing=True,
        experimental=qasm3.ExperimentalFeatures.SWITCH_CASE_V1,
    )
    return rename(text, _register_names(circuit, text))


def _with_register_of_loose_bits(circuit: QuantumCircuit) -> QuantumCircuit:
    """Put the bits that are in no register into one, because results have registers only."""
    loose = [bit for bit in circuit.clbits if not circuit.find_bit(bit).registers]
    if not loose:
        return circuit
    from qiskit import ClassicalRegister

    taken = {register.name for register in circuit.cregs}
    name = "loose_bits"
    while name in taken:
        name += "_"
    circuit = circuit.copy()
    circuit.add_register(ClassicalRegister(name=name, bits=loose))
    return circuit


def _register_names(circuit: QuantumCircuit, text: str) -> dict[str, str]:
    """Return new names for the exported registers that would not keep the circuit's names."""
    exported = _REGISTER.findall(text)
    if len(exported) != len(circuit.cregs):  # registers that share bits are exported as aliases
        exported = _ALIAS.findall(text)[: len(circuit.cregs)]
    names = {}
    for register, found in zip(circuit.cregs, exported, strict=True):
        sent = register.name if found == register.name else escaped(register.name)
        names[found] = escape(sent) if sent == found else sent
    return {found: sent for found, sent in names.items() if found != sent}


def openqasm_of(encoded: Mapping[str, Any], where: str) -> str | None:
    """Return a circuit that qiskit-ibm-runtime has encoded as QPY; `None` if it cannot be read.

    Raises:
        PayloadError: A bit would be missing in the result.
    """
    if encoded.get("__type__") != "QuantumCircuit" or find_spec("qiskit") is None:
        return None
    text, loses_bits = _read_encoded(str(encoded.get("__value__")))
    if loses_bits:
        raise PayloadError(
            f"{where}: a classical bit is in no register, so it would be missing in the result. "
            "Add it to one: `circuit.add_register(ClassicalRegister(bits=[bit]))`."
        )
    return text


@lru_cache(maxsize=64)
def _read_encoded(value: str) -> tuple[str | None, bool]:
    """Return a circuit as OpenQASM 3, and whether it has classical bits outside of registers."""
    try:
        circuit = _load_qpy(zlib.decompress(base64.standard_b64decode(value)), "")[0]
        loses_bits = any(not circuit.find_bit(bit).registers for bit in circuit.clbits)
        return to_openqasm(circuit), loses_bits
    except Exception:  # a version of QPY or an instruction that only the vendor knows
        return None, False


def primitive_content(
    program: str, pubs: Iterable[list[Any]], options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the content of a payload for one of IBM's primitives, version 2."""
    parameters = {
        "pubs": list(pubs),
        "version": 2,
        "support_qiskit": True,  # lets the service encode results as Qiskit's types
        "options": dict(options or {}),
    }
    return {"program_id": program, "parameters": parameters}


def _to_content(circuits: list[str], settings: ProgramSettings, where: str) -> dict[str, Any]:
    program = settings.program or ("sampler" if settings.observables is None else "estimator")
    if program == "sampler":
        pub_settings = _sampler_settings(settings, where)
    elif program == "estimator":
        pub_settings = _estimator_settings(settings, where)
    else:
        raise PayloadError(
            f"{where}: program={program!r}: must be one of: sampler, estimator. Use one of these."
        )
    pubs = [_without_trailing_none([circuit, *pub_settings]) for circuit in circuits]
    return primitive_content(program, pubs)


def _sampler_settings(settings: ProgramSettings, where: str) -> list[Any]:
    settings.require_only(
        *("program", "shots", "parameter_values"), where=where, subject="a sampler"
    )
    return [settings.parameter_values, settings.shots]


def _estimator_settings(settings: ProgramSettings, where: str) -> list[Any]:
    settings.require_only(
        *("program", "observables", "parameter_values", "precision"),
        where=where,
        subject="an estimator",
    )
    if settings.observables is None:
        raise PayloadError(
            f"{where}: an estimator needs observables. Give one or more, for example 'ZZ'."
        )
    values = [] if settings.parameter_values is None else settings.parameter_values
    return [settings.observables, values, settings.precision]


def _without_trailing_none(pub: list[Any]) -> list[Any]:
    while pub[-1] is None:
        pub = pub[:-1]
    return pub


def _load_qpy(data: bytes, where: str) -> list[QuantumCircuit]:
    with needs_extra("ibm"):
        from qiskit import QuantumCircuit, qpy

    try:
        loaded = qpy.load(io.BytesIO(data))
    except Exception as error:  # for a truncated file, Qiskit 2.6 raises many types
        text = getattr(error, "message", None) or str(error) or type(error).__name__
        raise PayloadError(
            f"{where}: not a complete QPY file: {text}. Write it again with `qiskit.qpy.dump`, "
            "using a version of Qiskit no newer than the one installed here."
        ) from error
    if not loaded or not all(isinstance(item, QuantumCircuit) for item in loaded):
        raise PayloadError(
            f"{where}: the QPY file must contain one or more circuits, and nothing else. Write it "
            "again with `qiskit.qpy.dump([circuit], file)`."
        )
    return list(loaded)

"""Alice & Bob: programs in QIR on Felis.

The API is documented at https://felis.alice-bob.com/docs, and QIR, which is LLVM's notation with
quantum operations, at https://github.com/qir-alliance/qir-spec.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qrmi_workflows.errors import PayloadError, ResultError
from qrmi_workflows.vendors.base import (
    Emulation,
    ProgramSettings,
    ResourceType,
    VendorPayload,
    WithoutSDK,
)
from qrmi_workflows.vendors.capabilities import Capabilities
from qrmi_workflows.vendors.counts import to_bits, to_register
from qrmi_workflows.vendors.registry import describe_unknown

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ALICE_BOB"]

_SHOTS = "nbShots"
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["human_qir", "input_params"],
    "properties": {
        "human_qir": {"type": "string", "minLength": 1},
        "input_params": {
            "type": "object",
            "properties": {_SHOTS: {"type": "integer", "minimum": 1}},
        },
    },
    "additionalProperties": False,
}
# QRMI makes the name of the vendor's target from the QPU's. This target is a simulator there, too.
_EMULATION = Emulation(
    models=lambda: {"logical-noiseless": "logical-noiseless"},
    resource_id="ab_emu_40q_logical_noiseless",
)
_CALL = b"@__quantum__"
_INSTRUCTION = re.compile(r"__quantum__qis__(\w+?)__(?:body|adj)\b")
_QUBIT = re.compile(r"%Qubit\* (?:null|inttoptr \(i64 (\d+) to %Qubit\*\))")


@dataclass(frozen=True, slots=True)
class _AliceBob(WithoutSDK):
    name: str = "alice-bob"
    reads: tuple[str, ...] = ("QIR's textual form (.ll)",)

    @property
    def schema(self) -> Mapping[str, Any]:
        return _SCHEMA

    @property
    def types(self) -> Mapping[str, ResourceType]:
        return {
            "alice-bob-felis": ResourceType(
                qrmi="AliceBobFelis", release_takes_token=True, emulation=_EMULATION
            )
        }

    def read(
        self, source: bytes | Mapping[str, Any], settings: ProgramSettings, *, where: str
    ) -> Mapping[str, Any] | None:
        if not isinstance(source, bytes) or _CALL not in source:
            return None
        settings.require_only("shots", where=where, subject="a QIR program")
        try:
            program = source.decode()
        except UnicodeDecodeError as error:
            raise PayloadError(
                f"{where}: not text in UTF-8: {error}. Must be QIR's textual form. Convert LLVM's "
                "bitcode with `llvm-dis`."
            ) from error
        if settings.shots is None:
            raise PayloadError(
                f"{where}: a QIR program needs a number of shots. Give one: `--shots 100`, or in "
                "Python `shots=100`."
            )
        return {"human_qir": program, "input_params": {_SHOTS: settings.shots}}

    def program(self, content: Mapping[str, Any]) -> str:  # noqa: ARG002 - part of the protocol
        return "qir"

    def check(self, content: Mapping[str, Any], *, qpu: str, target: str | None) -> None:
        if _CALL not in content["human_qir"].encode():
            raise PayloadError(
                f"human_qir={content['human_qir']!r:.60}: has no quantum operations; must be a "
                "program in QIR's textual form, which calls `@__quantum__qis__…`. Correct the "
                "payload."
            )
        if target is not None:
            document = _read_target(target)
            _check_qubits(content["human_qir"], document.get("numQubits"), qpu)
            _check_params(content["input_params"], document.get("inputParams"), qpu)

    def encode(self, content: Mapping[str, Any]) -> VendorPayload:
        # QRMI's task_runner (0.26.4) sends the program as a JSON string, with escaped line ends.
        # Felis takes the program itself.
        return VendorPayload(
            kind="AliceBobFelis",
            fields={
                "human_qir": content["human_qir"],
                "input_params": json.dumps(content["input_params"]),
            },
        )

    def count_shots(self, content: Mapping[str, Any]) -> int | None:
        return int(content["input_params"][_SHOTS])

    def with_shots(self, content: Mapping[str, Any], shots: int) -> Mapping[str, Any]:
        return {**content, "input_params": {**content["input_params"], _SHOTS: shots}}

    def decode(self, program: str, text: str) -> list[dict[str, Any]]:
        return [{"registers": {"results": to_register(_read_counts(text, program))}}]

    def arrays(self, program: str, text: str) -> list[dict[str, np.ndarray[Any, Any]]]:
        return [{"results": to_bits(_read_counts(text, program))}]

    def calibrated(self, target: str) -> str | None:
        if "numQubits" not in _read_target(target):
            raise ResultError(
                f"not a valid target of Felis: {target!r:.60}. Fetch it again: `qpu target NAME` "
                "and `lease.target()` return it as text."
            )
        return None  # Felis's targets have no date

    def capabilities(self, target: str, *, qpu: str) -> Capabilities:  # noqa: ARG002
        document = _read_target(target)
        signatures = (str(each.get("signature")) for each in document.get("instructions") or ())
        gates = [found[1] for each in signatures if (found := _INSTRUCTION.match(each))]
        return Capabilities.of(document.get("numQubits"), gates)


ALICE_BOB = _AliceBob()


def _read_target(target: str) -> Mapping[str, Any]:
    """Return a target's document; empty if its format is unknown, as the vendor checks it too."""
    try:
        document = json.loads(target)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, Mapping) else {}


def _check_qubits(program: str, limit: object, qpu: str) -> None:
    number = 1 + max((int(index or 0) for index in _QUBIT.findall(program)), default=-1)
    if isinstance(limit, int) and number > limit:
        raise PayloadError(
            f"human_qir: uses {number} qubits; must be at most {limit} on QPU {qpu!r}. Use fewer "
            "qubits, or another QPU."
        )


def _check_params(params: Mapping[str, Any], known: object, qpu: str) -> None:
    if not isinstance(known, Mapping):
        return
    for name, value in params.items():
        if name not in known:
            reason = describe_unknown(params, known, "parameter")
            raise PayloadError(f"input_params: {reason} on QPU {qpu!r}. Correct or remove it.")
        _check_range(name, value, known[name], qpu)
    for name, described in known.items():
        if name not in params and described.get("required") and described.get("default") is None:
            raise PayloadError(
                f"input_params: {name!r} is missing, which QPU {qpu!r} requires. Add it; `qpu "
                f"target {qpu}` describes it."
            )


def _check_range(name: str, value: object, described: Mapping[str, Any], qpu: str) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    for constraint in described.get("constraints") or ():
        low, high = constraint.get("min"), constraint.get("max")
        if (low is not None and value < low) or (high is not None and value > high):
            raise PayloadError(
                f"input_params: {name}={value}; must be from {low} to {high} on QPU {qpu!r}. "
                "Correct its value."
            )


def _read_counts(text: str, program: str) -> dict[str, int]:
    # The histogram is a CSV file without a header, in the order of the recorded results.
    try:
        rows = [line.split(",") for line in text.splitlines() if line.strip()]
        counts = {bits.strip(): int(count) for bits, count in rows}
        if not counts or any(set(bits) - {"0", "1"} for bits in counts):
            raise ValueError(text[:60])  # noqa: TRY301 - all malformed texts take one way
    except ValueError as error:
        raise ResultError(
            f"Alice & Bob's {program} result cannot be decoded ({error!r}); must be lines of a bit "
            "string, a comma and a count. A newer release of qrmi-workflows may decode it; the "
            "task need not run again."
        ) from error
    return dict(sorted(counts.items()))

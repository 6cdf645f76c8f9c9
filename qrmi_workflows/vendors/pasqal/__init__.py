"""Pasqal: Pulser sequences on Pasqal Cloud and Pasqal Local.

The APIs are documented by https://github.com/pasqal-io/pasqal-cloud (the client's source) and
https://github.com/pasqal-io/warden, and sequences by https://pulser.readthedocs.io.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from qrmi_workflows.errors import PayloadError, ResultError
from qrmi_workflows.vendors.base import (
    Converter,
    Emulation,
    ProgramSettings,
    ResourceType,
    VendorPayload,
    needs_extra,
)
from qrmi_workflows.vendors.capabilities import Capabilities
from qrmi_workflows.vendors.counts import to_bits, to_register
from qrmi_workflows.vendors.pasqal.checks import check_sequence

if TYPE_CHECKING:
    import numpy as np
    from pulser import Sequence
    from pulser.backend.results import Results

__all__ = ["PASQAL", "device_specs", "to_pulser_results"]


def _emulated_devices() -> Mapping[str, str]:
    # QRMI takes only the names of Pasqal's own QPUs, and sequences are for the QPU of their device.
    devices = ("AnalogDevice", "DigitalAnalogDevice", "MockDevice")
    return {"FRESNEL": "AnalogDevice", **{name: name for name in devices}}


_TYPES = {
    # QRMI 0.26.4 passes on no reason, and answers with this sentence for each task.
    "pasqal-cloud": ResourceType(
        qrmi="PasqalCloud",
        release_takes_token=True,
        empty_logs={
            "There are no logs for this job.": "QRMI passes on no reason. Look the batch up in "
            "Pasqal's portal, or ask Pasqal."
        },
        emulation=Emulation(models=_emulated_devices, resource_id="FRESNEL", has_noise=True),
    ),
    # The phrases are the warden's (v0.1.0, warden/api/routes), the last one is QRMI's.
    "pasqal-local": ResourceType(
        qrmi="PasqalLocal",
        remedies={
            "restricted to root": "A warden lets only root open and close sessions. Run this in a "
            "job for which the site has opened one, with {qpu}_QRMI_JOB_ACQUISITION_TOKEN in its "
            "environment: QRMI's SPANK plugin does that, or a prolog of the site. Ask your "
            "administrators which jobs get one.",
            "User ID not authorized": "The warden has a list of users who may have sessions, its "
            "`authorized_users`. Ask your administrators to add you.",
            "belongs to another user": "The session was opened for another user than the one who "
            "runs this. Run it as the user that QRMI_JOB_UID names.",
            "munge encode failed": "QRMI signs in with MUNGE, and munged does not answer on this "
            "host. Run this on a node of the cluster, or ask your administrators to start munged.",
        },
    ),
}
_FRONTENDS = {
    "pulser_backend": "qrmi_workflows.frontends.pulser:make_backend",
    "pulser_connection": "qrmi_workflows.frontends.pulser:make_connection",
}
_CONVERTERS = {
    "to_pulser_results": Converter(
        programs=("pulser",), function="qrmi_workflows.vendors.pasqal:to_pulser_results"
    )
}
# Keys of Pulser's abstract representation (pulser-core 1.9.1,
# pulser/json/abstract_repr/schemas/sequence-schema.json).
_ABSTRACT_REPR_KEYS = frozenset({"register", "version", "channels", "operations"})
# QRMI 0.26.4 sends a sequence with these keys to Pasqal's route for CUDA-Q, but asks that route for
# the result only with the handle that has started the task (`task_kinds` in src/pasqal/cloud.rs).
_CUDAQ_KEYS = frozenset({"setup", "hamiltonian"})
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["sequence", "job_runs"],
    "properties": {
        "sequence": {"type": "object", "required": ["register"]},
        "job_runs": {"type": "integer", "minimum": 1},
    },
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class _Pasqal:
    name: str = "pasqal"
    reads: tuple[str, ...] = ("Pulser's abstract representation (.json)",)

    @property
    def schema(self) -> Mapping[str, Any]:
        return _SCHEMA

    @property
    def types(self) -> Mapping[str, ResourceType]:
        return _TYPES

    @property
    def frontends(self) -> Mapping[str, str]:
        return _FRONTENDS

    @property
    def converters(self) -> Mapping[str, Converter]:
        return _CONVERTERS

    def identities(self) -> Mapping[type, Callable[[Any], bytes]]:
        if find_spec("pulser") is None:
            return {}
        from pulser import Sequence

        return {Sequence: lambda sequence: str(sequence.to_abstract_repr()).encode()}

    def export(self, program: object) -> Mapping[str, Any] | None:
        """Return a sequence in Pulser's abstract representation; `None` for anything else."""
        # Only a program that has imported Pulser can have made a sequence.
        pulser = sys.modules.get("pulser")
        if pulser is None or not isinstance(program, pulser.Sequence):
            return None
        representation: Mapping[str, Any] = json.loads(program.to_abstract_repr())
        return representation

    def read(
        self, source: bytes | Mapping[str, Any], settings: ProgramSettings, *, where: str
    ) -> Mapping[str, Any] | None:
        if isinstance(source, bytes):
            return None
        if isinstance(source.get("sequence"), str):
            source = _unquote(source, settings, where)
            _refuse_cudaq(source["sequence"], where)
            return source
        _refuse_cudaq(source.get("sequence", source), where)
        if not set(source) >= _ABSTRACT_REPR_KEYS:
            return None
        settings.require_only("shots", where=where, subject="a sequence")
        if settings.shots is None:
            raise PayloadError(
                f"{where}: a sequence needs a number of shots. Give one: `--shots 100`, or in "
                "Python `shots=100`."
            )
        return {"sequence": source, "job_runs": settings.shots}

    def program(self, content: Mapping[str, Any]) -> str:  # noqa: ARG002 - part of the protocol
        return "pulser"

    def check(self, content: Mapping[str, Any], *, qpu: str, target: str | None) -> None:
        devices = {} if target is None else _read_devices(target)
        check_sequence(content["sequence"], content["job_runs"], devices, qpu)

    def explain(self, content: Mapping[str, Any]) -> str | None:
        """Return why Pulser refuses a sequence; `None` if it does not, or is not installed."""
        if find_spec("pulser") is None:
            return None
        from pulser import Sequence

        try:
            Sequence.from_abstract_repr(json.dumps(content["sequence"]))
        except Exception as error:  # Pulser and jsonschema raise many types
            reason = getattr(error, "message", None) or str(error)
            return f"Pulser refuses the sequence: {reason}"
        return None

    def encode(self, content: Mapping[str, Any]) -> VendorPayload:
        return VendorPayload(
            kind="PasqalCloud",  # QRMI 0.26.4 accepts it for Pasqal Local too
            fields={
                "sequence": json.dumps(content["sequence"]),
                "job_runs": int(content["job_runs"]),
            },
        )

    def count_shots(self, content: Mapping[str, Any]) -> int | None:
        return int(content["job_runs"])

    def with_shots(self, content: Mapping[str, Any], shots: int) -> Mapping[str, Any]:
        return {**content, "job_runs": shots}

    def decode(self, program: str, text: str) -> list[dict[str, Any]]:
        return [{"registers": {"atoms": to_register(_read_counts(text, program))}}]

    def arrays(self, program: str, text: str) -> list[dict[str, np.ndarray[Any, Any]]]:
        return [{"atoms": to_bits(_read_counts(text, program))}]

    def calibrated(self, target: str) -> str | None:
        if not _read_devices(target):
            raise ResultError(
                f"not a valid target of a Pasqal QPU: {target!r:.60}. Fetch it again: `qpu target "
                "NAME` and `lease.target()` return it as text."
            )
        return None  # a Pulser device (pulser-core 1.9) has no date

    def capabilities(self, target: str, *, qpu: str) -> Capabilities:
        devices = _read_devices(target)
        # Pasqal Cloud may list several devices, of which tasks for the QPU may use any.
        chosen = [devices[qpu]] if qpu in devices else list(devices.values())
        found = [
            Capabilities.of(
                each.get("max_atom_num"),
                [channel.get("id") for channel in each.get("channels", ())],
            )
            for each in chosen
        ]
        atoms = max((each.qubits or 0 for each in found), default=None)
        return Capabilities.of(atoms, *(each.gates for each in found))


PASQAL = _Pasqal()


def device_specs(target: str) -> dict[str, str]:
    """Return the specifications of a target's devices in Pulser's JSON, by the vendor's names.

    Args:
        target: The answer of Pasqal Cloud (a list of devices), of Pasqal Local (an object with the
            key `specs`), or the specification of a single device.

    Raises:
        ValueError, TypeError, KeyError: The target has another format.
    """
    document = json.loads(target)
    if isinstance(document, list):
        return {device["device_type"]: device["specs"] for device in document}
    specs = document.get("specs", target)
    return {json.loads(specs)["name"]: specs}


def to_pulser_results(text: str, sequence: Sequence | str | Mapping[str, Any]) -> Results:
    """Convert a result to Pulser's `Results`. Needs the extra `pasqal`.

    Args:
        text: The result as the vendor sent it.
        sequence: The sequence that was run, or its abstract representation.

    Raises:
        ResultError: The text is not in the vendor's format, or the result is of another sequence.
        ConfigError: The extra is not installed.
    """
    with needs_extra("pasqal"):
        import pulser
        from pulser.backend.results import Results

    if isinstance(sequence, Mapping):
        sequence = json.dumps(sequence)
    if isinstance(sequence, str):
        sequence = pulser.Sequence.from_abstract_repr(sequence)
    atoms = sequence.get_register(include_mappable=True).qubit_ids
    counts = _read_counts(text, "pulser")
    if any(len(bits) != len(atoms) for bits in counts):
        raise ResultError(
            f"the result has {len(next(iter(counts)))} atoms, but the sequence has {len(atoms)}; "
            "they must be equal. Give the sequence that was run."
        )
    results: Results = Results.from_final_bitstrings(
        atom_order=atoms, total_duration=sequence.get_duration(), final_bitstrings=counts
    )
    return results


def _unquote(source: Mapping[str, Any], settings: ProgramSettings, where: str) -> Mapping[str, Any]:
    """Parse the sequence of a payload that has it as JSON text, as QRMI's generators write it."""
    settings.require_only("shots", where=where, subject="a complete payload")
    try:
        sequence = json.loads(source["sequence"])
    except (ValueError, RecursionError) as error:
        raise PayloadError(
            f"{where}: `sequence` is a string that is not JSON: {error}. Must be Pulser's abstract "
            "representation, as an object or as a string. Write what "
            "`sequence.to_abstract_repr()` returns."
        ) from error
    runs = {} if settings.shots is None else {"job_runs": settings.shots}
    return {**source, "sequence": sequence, **runs}


def _refuse_cudaq(sequence: object, where: str) -> None:
    """Refuse a sequence of CUDA-Q, by the same keys as QRMI's client."""
    if isinstance(sequence, Mapping) and set(sequence) >= _CUDAQ_KEYS:
        raise PayloadError(
            f"{where}: is a sequence of CUDA-Q (`setup`, `hamiltonian`); must be Pulser's abstract "
            "representation. QRMI's client (0.26.4) has a result of CUDA-Q only in the process "
            "that has submitted the task, so a rerun of a stopped step might lose what was paid "
            "for. Run it without a journal: `qpu lease exec --qpu NAME -- task_runner NAME PAYLOAD "
            "RESULT`, or put your program with CUDA-Q after the `--`."
        )


def _read_counts(text: str, program: str) -> dict[str, int]:
    # QRMI 0.26.4 returns `{"counter": {BITS: NUMBER}}`, from Pasqal Cloud's `full_results`.
    try:
        return {str(bits): int(n) for bits, n in sorted(_parse(text)["counter"].items())}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ResultError(
            f"Pasqal's {program} result cannot be decoded ({error!r}); must have a `counter` of "
            "bit strings. A newer release of qrmi-workflows may decode it; the task need not run "
            "again."
        ) from error


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        # The QPU that comes with Pasqal's warden (0.1.0) writes Python's repr.
        with suppress(ValueError, SyntaxError, MemoryError):
            return ast.literal_eval(text)
        raise


@lru_cache(maxsize=8)
def _read_devices(target: str) -> dict[str, dict[str, Any]]:
    """Return a target's devices by the name that sequences use; empty if its format is unknown.

    An unknown format is not an error, because the vendor checks the sequence as well.
    """
    try:
        devices = [json.loads(specs) for specs in device_specs(target).values()]
        return {device["name"]: device for device in devices}
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}

"""The interface that every vendor implements (`Vendor`), and the data it exchanges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from qrmi_workflows.errors import ConfigError, PayloadError

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Converter",
    "ProgramSettings",
    "ResourceType",
    "Vendor",
    "VendorPayload",
    "WithoutSDK",
    "needs_extra",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceType:
    """How QRMI's client reaches the QPUs of one resource type.

    Attributes:
        qrmi: The member of `qrmi.ResourceType` (`PasqalCloud`).
        settings: Default values of QRMI's settings; the keys omit the `NAME_` prefix.
        remedies: What to do about a refusal, by a phrase of the vendor's message. `{qpu}` stands
            for the QPU's name.
        start_waits_for_lane: Whether QRMI's `task_start` does not return while all of the QPU's
            lanes are taken.
        stop_deletes_finished: Whether QRMI's `task_stop` deletes a task that has ended, and with it
            its state and result. If so, tasks are deleted once their results are in the journal.
        status_waits: Whether QRMI's `task_status` and `task_stop` wait for a task's end, for longer
            than a stopped step has. The step tries to cancel its task, and leaves it if it must.
        release_cancels: Whether QRMI's `release()` cancels the tasks that are queued or running
            under the acquisition token. A lease of this type is not released while a rerun
            would wait for such a task.
        session_setting: QRMI's setting for the longest life of a session, in seconds, if any.
        session_seconds: The value of that setting by default.
        empty_logs: Logs that only say that there are none, and what to tell the user about a
            failed task instead.
    """

    qrmi: str
    settings: Mapping[str, str] = field(default_factory=dict)
    remedies: Mapping[str, str] = field(default_factory=dict)
    start_waits_for_lane: bool = False
    stop_deletes_finished: bool = False
    status_waits: bool = False
    release_cancels: bool = False
    session_setting: str | None = None
    session_seconds: float | None = None
    empty_logs: Mapping[str, str] = field(default_factory=dict)

    def longest_session(self, environment: Mapping[str, str]) -> float | None:
        """Return how many seconds a session may last at most; `None` if that is not known.

        Args:
            environment: The QPU's settings, without the `NAME_` prefix.
        """
        value = environment.get(self.session_setting or "", "")
        return float(value) if value.isdecimal() else self.session_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorPayload:
    """A payload in the form that QRMI's client accepts.

    Attributes:
        kind: The constructor in `qrmi.Payload` (`QiskitPrimitive`); `None` for the one that has
            arguments with the names of the fields.
        fields: The constructor's keyword arguments.
    """

    kind: str | None
    fields: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Converter:
    """A conversion of results to objects of the vendor's SDK.

    Attributes:
        programs: The programs (`sampler`) whose results it converts.
        function: The function as `module:name`, imported on first use. It takes the vendor's text
            and the arguments of `QuantumResult.convert`.
    """

    programs: tuple[str, ...]
    function: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSettings:
    """The settings that a task needs in addition to its circuit or sequence.

    Attributes:
        program: `sampler` or `estimator`, for circuits.
        shots: The number of shots.
        observables: The observables to estimate: Pauli labels, mappings from label to coefficient,
            or nested lists of these.
        parameter_values: Values for the circuit's parameters; the last axis indexes the parameters.
        precision: The standard error that the estimates must reach.
    """

    program: str | None = None
    shots: int | None = None
    observables: Any = None
    parameter_values: Any = None
    precision: float | None = None

    def names_set(self) -> list[str]:
        """Return the names of the settings that are not `None`."""
        names = ("program", "shots", "observables", "parameter_values", "precision")
        return [name for name in names if getattr(self, name) is not None]

    def require_only(self, *allowed: str, where: str, subject: str) -> None:
        """Refuse settings that do not apply.

        Args:
            *allowed: The names of the settings that apply.
            where: The file's name, for the message.
            subject: What the settings are for, for the message (`a sampler`).

        Raises:
            PayloadError: Another setting is given.
        """
        if extra := [name for name in self.names_set() if name not in allowed]:
            name, value = extra[0], getattr(self, extra[0])
            raise PayloadError(
                f"{where}: {name}={value!r:.40} does not apply to {subject}, which accepts only: "
                f"{', '.join(allowed) or 'no settings'}. Leave out {name}."
            )


class Vendor(Protocol):
    """A vendor's payloads and results.

    A payload's *content* is a JSON object in the schema of QRMI's `task_runner`.
    """

    @property
    def name(self) -> str:
        """The vendor's short name (`ibm`)."""

    @property
    def types(self) -> Mapping[str, ResourceType]:
        """The vendor's resource types, by their names in `qrmi_config.json`."""

    @property
    def schema(self) -> Mapping[str, Any]:
        """The JSON schema of a payload's content; its `required` keys identify the vendor."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The file formats that `read` accepts, for messages (`OpenQASM 3`)."""

    @property
    def frontends(self) -> Mapping[str, str]:
        """The vendor's front ends, by name (`sampler`).

        Each value is a function as `module:name`, imported on first use. It takes the lease and the
        arguments of `Lease.frontend`.
        """

    @property
    def converters(self) -> Mapping[str, Converter]:
        """The conversions of the vendor's results, by name (`to_primitive_result`)."""

    def identities(self) -> Mapping[type, Callable[[Any], bytes]]:
        """Return functions that identify the objects of the vendor's SDK, by type.

        A function maps equal circuits or sequences to equal bytes in any process. The mapping is
        empty if the SDK is not installed.
        """

    def read(
        self, source: bytes | Mapping[str, Any], settings: ProgramSettings, *, where: str
    ) -> Mapping[str, Any] | None:
        """Convert a program in one of the vendor's file formats to a payload's content.

        Args:
            source: The file's content: a mapping if it is JSON, otherwise bytes.
            settings: What the program itself does not specify.
            where: The file's name, for messages.

        Returns:
            The content, or `None` if this is not a program of this vendor.

        Raises:
            PayloadError: The program is malformed, or a setting does not apply to it.
        """

    def program(self, content: Mapping[str, Any]) -> str:
        """Return the program that a payload runs (`sampler`)."""

    def check(self, content: Mapping[str, Any], *, qpu: str, target: str | None) -> None:
        """Refuse a payload that the QPU would reject.

        Args:
            content: The payload's content, which follows the vendor's schema.
            qpu: The QPU's name, for messages.
            target: The QPU's capabilities as the vendor's JSON; `None` if unknown.

        Raises:
            PayloadError: The payload cannot run on the QPU.
        """

    def encode(self, content: Mapping[str, Any]) -> VendorPayload:
        """Encode a payload for QRMI's client."""

    def with_shots(self, content: Mapping[str, Any], shots: int) -> Mapping[str, Any]:
        """Return a copy of a payload's content with a different number of shots.

        Raises:
            PayloadError: The program has no number of shots.
        """

    def decode(self, program: str, text: str) -> list[dict[str, Any]] | None:
        """Decode a result into plain data: one object for each PUB or sequence.

        The vendor's text is recorded before this is called, so an error loses nothing.

        A sampled PUB or sequence gives `{"registers": {NAME: {"num_bits": n, "counts": …}}}`.
        `counts` maps bit strings to numbers; if parameters were broadcast, it is a nested list of
        such mappings. An estimated PUB gives `{"evs": …, "stds": …}`.

        Returns:
            The data; `None` if the vendor has no decoder for the program. The vendor's text is then
            the result, and the task has succeeded.

        Raises:
            ResultError: The text is not in the vendor's format.
        """

    def arrays(self, program: str, text: str) -> list[dict[str, np.ndarray[Any, Any]]]:
        """Decode a result into arrays, by name, for each PUB or sequence.

        `QuantumResult.to_numpy` describes their shapes.

        Raises:
            ResultError: The text is not in the vendor's format.
        """

    def calibrated(self, target: str) -> str | None:
        """Return when the QPU was last calibrated, in ISO 8601; `None` if the target has no date.

        Raises:
            ResultError: The text is not a target of this vendor.
        """


class WithoutSDK:
    """The part of `Vendor` that is empty for a vendor without an SDK."""

    __slots__ = ()

    @property
    def frontends(self) -> Mapping[str, str]:
        """No front ends."""
        return {}

    @property
    def converters(self) -> Mapping[str, Converter]:
        """No conversions."""
        return {}

    def identities(self) -> Mapping[type, Callable[[Any], bytes]]:
        """Return no functions: there are no objects to identify."""
        return {}


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Convert a failed import to an error that names the extra to install.

    Raises:
        ConfigError: A package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the package {error.name!r} is not installed. "
            f"Run `pip install 'qrmi-workflows[{extra}]'`."
        ) from error

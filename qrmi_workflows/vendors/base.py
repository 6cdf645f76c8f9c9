"""The interface that every vendor implements (`Vendor`), and the data it exchanges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from qrmi_workflows.errors import ConfigError, PayloadError

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Coalescible",
    "CoalescingVendor",
    "Converter",
    "Emulation",
    "ProgramSettings",
    "ResourceType",
    "Vendor",
    "VendorPayload",
    "WithoutSDK",
    "needs_extra",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulation:
    """Which QPUs of a resource type a name `emulated:MODEL` may ask for.

    Attributes:
        models: Returns the emulator's name for each model, by the name that users type. Raises a
            `ConfigError` if the package that has the models is not installed.
        resource_id: The name by which QRMI knows such a QPU, where `{model}` stands for the model.
            It should not be the name of a real QPU, unless the vendor leaves no choice.
        has_noise: Whether the emulator has noise for the models.
    """

    models: Callable[[], Mapping[str, str]]
    resource_id: str = "emulated_{model}"
    has_noise: bool = False


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
        release_takes_token: Whether QRMI's `release()` ends the session that its argument names, if
            any, and not that of the handle. Then one handle can release many leases.
        session_setting: QRMI's setting for the longest life of a session, in seconds, if any.
        session_seconds: The value of that setting by default.
        mode_setting: QRMI's setting for the mode of a session, `dedicated` (its default) or
            `batch`, if any. A dedicated session is billed by the wall clock while it is active;
            everything else by QPU seconds.
        warm_up: The content of a minimal payload, if a session is active only once a task of it has
            started. It must run on any QPU of the type.
        interactive_ttl: For how many seconds an idle session stays active.
        task_overhead: How many seconds are billed for each task besides its QPU seconds, except in
            a dedicated session.
        submission_seconds: For estimates: how many seconds a task takes besides its shots.
        shot_seconds: For estimates: how many seconds a shot takes; `None` if the vendor has
            published no figure.
        least_seconds: For estimates: how many seconds a task takes at least.
        bills_own_errors: Whether a task is billed that has failed because of the QPU, as far as the
            vendor says. If so, it is not repeated on another QPU.
        empty_logs: Logs that only say that there are none, and what to tell the user about a
            failed task instead.
        emulation: Which of its QPUs can be emulated by name (`emulated:fez`), if any.
    """

    qrmi: str
    settings: Mapping[str, str] = field(default_factory=dict)
    remedies: Mapping[str, str] = field(default_factory=dict)
    start_waits_for_lane: bool = False
    stop_deletes_finished: bool = False
    status_waits: bool = False
    release_cancels: bool = False
    release_takes_token: bool = False
    session_setting: str | None = None
    session_seconds: float | None = None
    mode_setting: str | None = None
    warm_up: Mapping[str, Any] | None = None
    interactive_ttl: float = 60.0
    task_overhead: float = 0.0
    submission_seconds: float = 0.0
    shot_seconds: float | None = None
    least_seconds: float = 0.0
    bills_own_errors: bool = True
    empty_logs: Mapping[str, str] = field(default_factory=dict)
    emulation: Emulation | None = None

    def longest_session(self, environment: Mapping[str, str]) -> float | None:
        """Return how many seconds a session may last at most; `None` if that is not known.

        Args:
            environment: The QPU's settings, without the `NAME_` prefix.
        """
        value = environment.get(self.session_setting or "", "")
        return float(value) if value.isdecimal() else self.session_seconds

    def session_mode(self, environment: Mapping[str, str]) -> str | None:
        """Return the mode of a session, `dedicated` or `batch`; `None` if the type has no modes.

        Args:
            environment: The QPU's settings, without the `NAME_` prefix.
        """
        if self.mode_setting is None:
            return None
        # As QRMI reads it: in any case, and anything else is an error when it acquires.
        return environment.get(self.mode_setting, "dedicated").lower()


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
class Coalescible:
    """What a payload needs in order to share a task with others.

    Attributes:
        key: Payloads may share a task if their keys are equal.
        pubs: The number of its PUBs.
        executions: How many times its circuits are executed in total, if the vendor limits that.
        size: The approximate size of its PUBs, in bytes.
    """

    key: str
    pubs: int
    executions: int
    size: int


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


@runtime_checkable
class CoalescingVendor(Protocol):
    """What a vendor adds if one of its tasks can do the work of several payloads."""

    def coalescible(self, content: Mapping[str, Any]) -> Coalescible | None:
        """Return what a payload needs in order to share a task; `None` if it has to go alone."""

    def coalesce(self, contents: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Return the content of one task that has the PUBs of several payloads, in order.

        Args:
            contents: Payloads whose keys are equal.
        """

    def split(self, text: str, counts: Sequence[int]) -> list[str]:
        """Split the result of such a task into one text for each payload, as if it had run alone.

        Args:
            text: The vendor's text.
            counts: The number of PUBs of each payload.

        Raises:
            ResultError: The text is not a result of so many PUBs.
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

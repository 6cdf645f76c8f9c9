"""What every vendor implements (`Vendor`), and the data that its methods exchange."""

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
    "needs_extra",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceType:
    """How QRMI's client reaches the QPUs of one resource type.

    Attributes:
        qrmi: The member of `qrmi.ResourceType` (`PasqalCloud`).
        settings: Defaults of QRMI's settings, keys without the `NAME_` prefix.
    """

    qrmi: str
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorPayload:
    """A payload as QRMI's client takes it.

    Attributes:
        kind: The constructor in `qrmi.Payload` (`QiskitPrimitive`).
        fields: Its arguments.
    """

    kind: str
    fields: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Converter:
    """How a result becomes an object of the users' own library.

    Attributes:
        programs: The programs (`sampler`) whose results can be converted.
        function: `module:name` of a function, loaded when it is first needed. It takes the
            vendor's text and the arguments of `QuantumResult`'s method.
    """

    programs: tuple[str, ...]
    function: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSettings:
    """What a file that holds only a circuit or a sequence does not say.

    Attributes:
        program: `sampler` or `estimator`, where both are possible.
        shots: How often to sample.
        observables: What to estimate: Pauli labels, maps of labels to coefficients, or nested
            lists of those.
        parameter_values: Values of the circuit's parameters; the last axis runs over them.
        precision: The standard error to reach.
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

    def require_only(self, *allowed: str, where: str, reason: str) -> None:
        """Refuse settings other than the allowed ones.

        Args:
            *allowed: Names of settings.
            where: What the settings are for, for the message.
            reason: Why no others apply, a clause.

        Raises:
            PayloadError: Another one is set.
        """
        if extra := [name for name in self.names_set() if name not in allowed]:
            accepted = ", ".join(allowed) or "no setting"
            raise PayloadError(
                f"{where}: {extra[0]} does not apply: {reason}, so it takes {accepted}. "
                f"Leave out {extra[0]}."
            )


class Vendor(Protocol):
    """One vendor's programs and results.

    A payload's *content* is a JSON object in the schema of QRMI's `task_runner`.
    """

    @property
    def name(self) -> str:
        """The vendor's short name (`ibm`)."""

    @property
    def types(self) -> Mapping[str, ResourceType]:
        """The vendor's resource types, by the names that `qrmi_config.json` has for them."""

    @property
    def schema(self) -> Mapping[str, Any]:
        """The JSON schema of a payload's content; its `required` keys tell vendors apart."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The kinds of program files that `read` takes, for messages (`OpenQASM 3`)."""

    @property
    def frontends(self) -> Mapping[str, str]:
        """The vendor's programming interfaces over a lease, by the name of `Lease`'s method.

        Each is `module:name` of a function, loaded when it is first needed, that takes the lease
        and that method's arguments.
        """

    @property
    def converters(self) -> Mapping[str, Converter]:
        """What results can be converted to, by the name of `QuantumResult`'s method."""

    def identities(self) -> Mapping[type, Callable[[Any], bytes]]:
        """Return functions that map equal values to equal bytes in any process, by type.

        The types are those of the users' own libraries (circuits, sequences); none where these
        are not installed.
        """

    def read(
        self, source: bytes | Mapping[str, Any], settings: ProgramSettings, *, where: str
    ) -> Mapping[str, Any] | None:
        """Make a payload's content of a program in one of the vendor's own forms.

        Args:
            source: The file: an object if it is JSON, else its bytes.
            settings: What the program does not say itself.
            where: What to call the file in messages.

        Returns:
            The content; `None` if this is not a program of this vendor.

        Raises:
            PayloadError: The program is malformed, or the settings do not fit it.
        """

    def program(self, content: Mapping[str, Any]) -> str:
        """Return the kind of program (`sampler`)."""

    def check(self, content: Mapping[str, Any], *, qpu: str, target: str | None) -> None:
        """Refuse what a QPU would reject.

        Args:
            content: Of the vendor's schema.
            qpu: The QPU's name, for messages.
            target: What the QPU can do, as the vendor's JSON; `None` if not known.

        Raises:
            PayloadError: It cannot run there.
        """

    def encode(self, content: Mapping[str, Any]) -> VendorPayload:
        """Encode a payload for QRMI's client."""

    def with_shots(self, content: Mapping[str, Any], shots: int) -> Mapping[str, Any]:
        """Return the content with another number of shots."""

    def decode(self, program: str, text: str) -> list[dict[str, Any]]:
        """Decode a result into plain data, one object for each PUB or sequence.

        A sampled one is `{"registers": {NAME: {"num_bits": n, "counts": …}}}`, where counts map
        bit strings to numbers (nested lists of such maps where parameters were broadcast); an
        estimated one is `{"evs": …, "stds": …}`.

        Raises:
            ResultError: The text is not in the vendor's form.
        """

    def arrays(self, program: str, text: str) -> list[dict[str, np.ndarray[Any, Any]]]:
        """Decode a result into arrays, one object for each PUB or sequence (see `to_numpy`).

        Raises:
            ResultError: The text is not in the vendor's form.
        """

    def calibrated(self, target: str) -> str | None:
        """Return when the QPU of a target was calibrated, ISO 8601; `None` if it does not say.

        Raises:
            ResultError: The text is not a target of this vendor.
        """


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turn a failed import into an error that names the extra to install.

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

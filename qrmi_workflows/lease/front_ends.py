"""The vendors' programming interfaces over a lease."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qrmi_workflows.vendors.registry import find_frontend

if TYPE_CHECKING:
    from pulser import Sequence
    from pulser.backend import BackendConfig
    from pulser.backend.remote import RemoteBackend, RemoteConnection
    from qiskit.primitives import BaseEstimatorV2, BaseSamplerV2

__all__ = ["FrontEnds"]


class FrontEnds:
    """The part of `Lease` that offers the front ends of its QPU's vendor.

    Attributes:
        qpu: The QPU's name.
        type: QRMI's resource type.
    """

    qpu: str
    type: str

    def sampler(self, options: Mapping[str, Any] | None = None) -> BaseSamplerV2:
        """Return Qiskit's sampler (V2) for this QPU; its tasks are journaled like all others.

        Args:
            options: As QRMI's `SamplerV2` takes them: `default_shots` (1024) and `run_options`.

        Raises:
            PayloadError: The QPU has no sampler, or no such option.
            ConfigError: The front end's package is not installed.
        """
        sampler: BaseSamplerV2 = self.frontend("sampler", options)
        return sampler

    def estimator(self, options: Mapping[str, Any] | None = None) -> BaseEstimatorV2:
        """Return Qiskit's estimator (V2) for this QPU; its tasks are journaled like all others.

        Args:
            options: As QRMI's `EstimatorV2` takes them: `default_precision` (1/64) and
                `run_options`.

        Raises:
            PayloadError: The QPU has no estimator, or no such option.
            ConfigError: The front end's package is not installed.
        """
        estimator: BaseEstimatorV2 = self.frontend("estimator", options)
        return estimator

    def pulser_connection(self) -> RemoteConnection:
        """Return Pulser's connection to this QPU, which lists the devices to build sequences for.

        Raises:
            PayloadError: The QPU runs no sequences.
            ConfigError: The front end's package is not installed.
        """
        connection: RemoteConnection = self.frontend("pulser_connection")
        return connection

    def pulser_backend(
        self, sequence: Sequence, *, config: BackendConfig | None = None
    ) -> RemoteBackend:
        """Return Pulser's backend for a sequence; its tasks are journaled like all others.

        Args:
            sequence: A sequence for a device that the QPU offers.
            config: As Pulser's `QPUBackend` takes it.

        Raises:
            PayloadError: The QPU runs no sequences, or the sequence is for another device.
            ConfigError: The front end's package is not installed.
        """
        backend: RemoteBackend = self.frontend("pulser_backend", sequence, config)
        return backend

    def frontend(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Return one of the front ends that the QPU's vendor offers, by its name.

        The methods above cover the vendors in this package; a vendor from another package may offer
        other front ends.

        Args:
            name: The front end's name (`sampler`).
            *args: The front end's own arguments.
            **kwargs: The front end's own arguments.

        Raises:
            PayloadError: The QPU has no such front end.
            ConfigError: The front end's package is not installed.
        """
        make = find_frontend(name, qpu=self.qpu, resource_type=self.type)
        return make(self, *args, **kwargs)

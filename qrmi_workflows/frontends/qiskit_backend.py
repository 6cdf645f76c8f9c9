"""A QPU as Qiskit's `BackendV2`: its name and its target, to transpile for."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from qrmi_workflows.vendors.ibm.target import transpiler_target

if TYPE_CHECKING:
    from qiskit.providers import BackendV2
    from qiskit.transpiler import Target

    from qrmi_workflows.lease.lease import Lease

__all__ = ["make_backend"]


def make_backend(lease: Lease) -> BackendV2:
    """Return a lease's QPU as a backend.

    Raises:
        ResourceError: The vendor did not give the QPU's target.
        ConfigError: Qiskit is not installed.
    """
    backend: BackendV2 = _backend_class()(lease.qpu, transpiler_target(lease.target()))
    return backend


class _Backend:
    """A QPU's name and target."""

    def __init__(self, name: str, target: Target) -> None:
        super().__init__(name=name)  # type: ignore[call-arg]  # BackendV2
        self._target = target

    @property
    def target(self) -> Target:
        """The QPU's target."""
        return self._target

    @property
    def max_circuits(self) -> None:
        """The number of circuits in a job, which the primitives do not limit."""

    @classmethod
    def _default_options(cls) -> Any:
        from qiskit.providers import Options

        return Options()

    def run(self, run_input: Any, **options: Any) -> NoReturn:
        """Refuse to run circuits: that is for the primitives."""
        del run_input, options
        raise NotImplementedError("use `lease.sampler().run(…)` or `lease.estimator().run(…)`.")


@cache
def _backend_class() -> Any:
    from qiskit.providers import BackendV2

    return type("LeaseBackend", (_Backend, BackendV2), {"__doc__": _Backend.__doc__})

"""Convert the results of IBM's `executor` and `noiselearner` to qiskit-ibm-runtime's objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qrmi_workflows.errors import ResultError
from qrmi_workflows.vendors.base import needs_extra

if TYPE_CHECKING:
    from qiskit_ibm_runtime.results.noise_learner import NoiseLearnerResult
    from qiskit_ibm_runtime.results.quantum_program import QuantumProgramResult

__all__ = ["to_noise_learner_result", "to_quantum_program_result"]


def to_quantum_program_result(text: str) -> QuantumProgramResult:
    """Decode the result of an executor. Needs the extra `ibm`.

    Raises:
        ResultError: The text is not such a result.
        ConfigError: The extra is not installed.
    """
    with needs_extra("ibm"):
        from qiskit_ibm_runtime.decoders.executor.decoder import ExecutorResultDecoder

    return _decode(ExecutorResultDecoder, "executor", text)


def to_noise_learner_result(text: str) -> NoiseLearnerResult:
    """Decode the result of a noise learner. Needs the extra `ibm`.

    Raises:
        ResultError: The text is not such a result.
        ConfigError: The extra is not installed.
    """
    with needs_extra("ibm"):
        from qiskit_ibm_runtime.decoders.noise_learner import NoiseLearnerResultDecoder

    return _decode(NoiseLearnerResultDecoder, "noiselearner", text)


def _decode(decoder: Any, program: str, text: str) -> Any:
    try:
        return decoder.decode(text)
    except Exception as error:  # the decoders document no exceptions
        raise ResultError(
            f"IBM's {program} result cannot be decoded ({error!r}); must be JSON as IBM's service "
            "writes it. A newer qiskit-ibm-runtime may decode it."
        ) from error

"""Pasqal's own simulators: emu-mps (matrix product states) and emu-sv (state vectors).

They handle more atoms than pulser-simulation, but need PyTorch and therefore the extra `emu`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qrmi_workflows.emulator.simulators import SimulationError
from qrmi_workflows.emulator.simulators.pulser import run_sequence

__all__ = ["MPS", "SV"]

_QUIET = 40  # logging.ERROR
_INSTALL = "run `pip install 'qrmi-workflows[emu]'`"


class _Emu:
    """One of the two simulators.

    Args:
        load: Imports the package and returns its backend class, its configuration class and the
            options that keep it on the CPU.
    """

    def __init__(self, load: Callable[[], tuple[Any, Any, dict[str, Any]]]) -> None:
        self._load = load

    def warm(self) -> None:
        """Import the package, so that the first task does not wait for it."""
        self._import()

    def run(self, work: dict[str, Any]) -> dict[str, Any]:
        """Run a sequence or describe the device, as `run` in `simulators/pulser.py`."""
        if work.get("noise"):
            raise SimulationError(
                "only the simulator 'pulser' emulates noise; set `simulator = \"pulser\"`"
            )
        return run_sequence(work, self._simulate)

    def _simulate(self, sequence: Any, runs: int, seed: int, noise: bool) -> dict[str, int]:
        import numpy as np
        import torch
        from pulser.backend import BitStrings

        del noise
        backend, configuration, options = self._import()
        torch.manual_seed(seed)
        np.random.seed(seed)
        bits = BitStrings(evaluation_times=[1.0], num_shots=runs)
        try:
            config = configuration(observables=[bits], log_level=_QUIET, **options)
            counts = backend(sequence, config=config).run().final_bitstrings
        except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
            raise SimulationError(f"the sequence cannot be simulated: {error}") from error
        return {str(bits): int(count) for bits, count in counts.items()}

    def _import(self) -> tuple[Any, Any, dict[str, Any]]:
        try:
            return self._load()
        except ImportError as error:
            raise SimulationError(f"{error}; {_INSTALL}") from error


def _load_mps() -> tuple[Any, Any, dict[str, Any]]:
    import emu_mps

    return emu_mps.MPSBackend, emu_mps.MPSConfig, {"num_gpus_to_use": 0}


def _load_sv() -> tuple[Any, Any, dict[str, Any]]:
    import emu_sv

    return emu_sv.SVBackend, emu_sv.SVConfig, {"gpu": False}


MPS = _Emu(_load_mps)
SV = _Emu(_load_sv)

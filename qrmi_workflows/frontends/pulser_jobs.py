"""The jobs of Pulser's backends, and what of their configuration QRMI can pass on.

QRMI sends a sequence and a number of runs, and returns bit strings (0.26.4). The backends of
Pasqal's SDK (pasqal-cloud 0.24) have a configuration with more in it. What would change the result
is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qrmi_workflows.errors import PayloadError
from qrmi_workflows.vendors.registry import describe_unknown

if TYPE_CHECKING:
    from pulser.backend import BackendConfig

__all__ = ["default_runs", "require_job_params", "require_plain", "require_same_device"]

# The keys of `pulser.backend.remote.JobParams` (pulser-core 1.9.1).
_JOB_PARAMS = frozenset({"runs", "variables"})


def require_job_params(params: Any, runs: int | None) -> list[Mapping[str, Any]]:
    """Return the parameters of each job, all with a number of runs.

    Args:
        params: What the user gave to `run`.
        runs: The default number of runs, if the backend has one.

    Raises:
        PayloadError: They are malformed.
    """
    is_list = isinstance(params, list | tuple) and all(isinstance(item, Mapping) for item in params)
    default: Mapping[str, Any] = {} if runs is None else {"runs": runs}
    complete: list[Mapping[str, Any]] = []
    if is_list:
        complete = [{**default, **item} for item in params]
    if not complete or not all("runs" in item for item in complete):
        raise PayloadError(
            f"job_params={params!r:.80}: must be a list of one or more objects with `runs`. Write "
            "`run([{'runs': 100}])`."
        )
    for item in complete:
        if set(item) - _JOB_PARAMS:
            reason = describe_unknown(item, sorted(_JOB_PARAMS), "key")
            raise PayloadError(f"job_params={item!r:.80}: {reason}. Correct or remove it.")
    return complete


def default_runs(config: BackendConfig | None) -> int | None:
    """Return the number of shots in a backend's configuration; `None` if it has none."""
    options = _options_of(config)
    observed = (getattr(each, "_num_shots", None) for each in options.get("observables") or ())
    runs: int | None = next(filter(None, observed), options.get("default_num_shots"))
    return runs


def require_same_device(device_type: Any, qpu: str) -> None:
    """Refuse a backend of Pasqal's SDK that is for another device (`RemoteEmuFreeBackend`).

    Raises:
        PayloadError: The device is not the leased QPU.
    """
    name = getattr(device_type, "value", device_type)
    if name is not None and name != qpu:
        raise PayloadError(
            f"the backend is for device {name!r}; under this lease, must be {qpu!r}. Open a lease "
            f"on {name!r}, or use `lease.pulser_backend(sequence)`."
        )


def require_plain(config: BackendConfig | None) -> None:
    """Refuse a configuration that would change the result, which QRMI does not pass on.

    Options that only tune a simulation have no effect.

    Raises:
        PayloadError: The configuration has noise, an initial state, other observables, …
    """
    options = _options_of(config)
    tags = [getattr(each, "_base_tag", "") for each in options.get("observables") or ()]
    times = options.get("default_evaluation_times")
    is_changed = {
        "noise_model": bool(getattr(options.get("noise_model"), "noise_types", ())),
        "observables": any(tag != "bitstrings" for tag in tags),
        "default_evaluation_times": times is not None and list(times) != [1.0],
        "initial_state": options.get("initial_state") is not None,
        "interaction_matrix": options.get("interaction_matrix") is not None,
        "with_modulation": bool(options.get("with_modulation")),
        "prefer_device_noise_model": bool(options.get("prefer_device_noise_model")),
    }
    if changed := [name for name, is_so in is_changed.items() if is_so]:
        raise PayloadError(
            f"config: {' and '.join(changed)} would change the result, but QRMI passes on only a "
            "sequence and its runs; must be the default. Leave it out, or simulate here with "
            "pulser-simulation."
        )


def _options_of(config: BackendConfig | None) -> Mapping[str, Any]:
    options: Mapping[str, Any] = getattr(config, "_backend_options", {})  # internal (Pulser 1.9)
    return options

"""The emulated QPUs that a name `emulated:MODEL` may ask for, by the vendors' own lists."""

from __future__ import annotations

from dataclasses import dataclass

from qrmi_workflows.config.emulated import EMULATED_PREFIX, parse_emulated
from qrmi_workflows.errors import ConfigError, RequestError
from qrmi_workflows.vendors.base import Emulation
from qrmi_workflows.vendors.registry import registered_type, registered_types

__all__ = ["EmulatedQPU", "emulated_models", "find_emulated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedQPU:
    """An emulated QPU.

    Attributes:
        name: The name that users type (`emulated:fez`).
        type: QRMI's resource type.
        model: The model as the emulator knows it.
        resource_id: The name by which QRMI and the emulator know it.
        is_noisy: Whether it has the model's calibrated noise.
    """

    name: str
    type: str
    model: str
    resource_id: str
    is_noisy: bool


def emulated_models() -> dict[str, str]:
    """Return the models that can be emulated here, and the resource type of each.

    Raises:
        ConfigError: A package with the models of a vendor is not installed.
    """
    found: dict[str, str] = {}
    for type_, emulation in _emulations().items():
        for model in emulation.models():
            found.setdefault(model, type_)
    return found


def find_emulated(qpu: str) -> EmulatedQPU:
    """Return the emulated QPU that a name asks for.

    Raises:
        RequestError: The name has another form, or there is no such model, or none with noise.
        ConfigError: The package that has the model may not be installed.
    """
    model, is_noisy = parse_emulated(qpu)
    missing: ConfigError | None = None
    for type_, emulation in _emulations().items():
        try:
            models = emulation.models()
        except ConfigError as error:
            missing = error
            continue
        if model in models:
            if is_noisy and not emulation.has_noise:
                raise RequestError(
                    f"emulated QPU {qpu!r}: the emulator has no noise for this model. Ask for "
                    f"{EMULATED_PREFIX}{model}."
                )
            return EmulatedQPU(
                name=qpu,
                type=type_,
                model=models[model],
                resource_id=_resource_id(emulation, model, is_noisy=is_noisy),
                is_noisy=is_noisy,
            )
    if missing is not None:
        raise missing
    raise _unknown(qpu, model, is_noisy=is_noisy)


def _emulations() -> dict[str, Emulation]:
    """Return what each resource type says, in an order that does not change."""
    known = {type_: registered_type(type_) for type_ in registered_types()}
    return {type_: each.emulation for type_, each in known.items() if each and each.emulation}


def _resource_id(emulation: Emulation, model: str, *, is_noisy: bool) -> str:
    # Shells drop variables whose names have other characters.
    words = "".join(each if each.isalnum() else "_" for each in model)
    return emulation.resource_id.format(model=f"{words}_noisy" if is_noisy else words)


def _unknown(qpu: str, model: str, *, is_noisy: bool) -> RequestError:
    from difflib import get_close_matches  # most processes make no mistake

    models = sorted(emulated_models())
    folded = {each.lower(): each for each in models}
    # `ibm_fez` is how the vendor spells `fez`.
    candidates = (model.lower(), model.lower().rpartition("_")[2])
    near = [folded[match] for each in candidates for match in get_close_matches(each, folded, n=1)]
    suffix = ":noisy" if is_noisy else ""
    advice = f" Did you mean {EMULATED_PREFIX + near[0] + suffix!r}?" if near else ""
    return RequestError(
        f"emulated QPU {qpu!r}: unknown model {model!r}; must be one of: {', '.join(models)}."
        f"{advice}"
    )

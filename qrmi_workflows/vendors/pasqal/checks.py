"""Refuse sequences that a Pasqal QPU would reject, by the limits of its device.

The limits are those that Pulser enforces when it loads a sequence (pulser-core 1.9.1), as far as
they can be computed without Pulser, which compute nodes need not have. The vendor checks the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from qrmi_workflows.errors import PayloadError

__all__ = ["SEQUENCE_KEYS", "check_sequence", "is_emulator"]

SEQUENCE_KEYS = (
    *("$schema", "channels", "device", "layout", "magnetic_field", "measurement", "metadata"),
    *("name", "operations", "pulser_version", "register", "slm_mask_targets", "variables"),
    "version",
)
"""The keys of a sequence in Pulser's own schema (pulser-core 1.9.1, sequence-schema.json)."""

_COORDINATE_PRECISION = 1e-6  # Pulser's, in µm
_ROUNDING = 1e-6  # relative: Pulser rounds detunings, and we compute peaks in another order
_INTERPOLATED = 0.99  # of a value between two samples, at least this much is reached


def is_emulator(qpu: str) -> bool:
    """Return whether a QPU is one of Pasqal Cloud's emulators, which run any device's sequences.

    QRMI recognises them by the same prefix (0.26.4): the QPU's name is the vendor's device type.
    """
    return qpu.startswith("EMU_")


def check_sequence(
    sequence: Mapping[str, Any], runs: int, devices: Mapping[str, Mapping[str, Any]], qpu: str
) -> None:
    """Refuse a sequence that the QPU would reject.

    Args:
        sequence: The sequence, in Pulser's abstract representation.
        runs: How often it is run.
        devices: The QPU's devices, by the name that sequences use; empty if they are not known.
        qpu: The QPU's name.

    Raises:
        PayloadError: The sequence is not built, is for another device, or exceeds a limit.
    """
    _check_keys(sequence)
    _check_is_built(sequence)
    requested = sequence.get("device")
    if not isinstance(requested, Mapping):
        return
    if is_emulator(qpu):
        _check_limits(sequence, requested, f"device {requested.get('name')!r}")
    elif devices:
        device = _find_device(requested.get("name"), devices, qpu)
        _check_numbers(sequence, runs, device, qpu)
        _check_limits(sequence, device, f"QPU {qpu!r}")


def _check_keys(sequence: Mapping[str, Any]) -> None:
    """Refuse a misspelt key. Another unknown one may be of a newer Pulser."""
    unknown = [key for key in sequence if key not in SEQUENCE_KEYS]
    if not unknown:
        return
    import difflib  # most processes describe no mistake

    for key in unknown:
        if matches := difflib.get_close_matches(key.lower(), SEQUENCE_KEYS, n=1, cutoff=0.75):
            raise PayloadError(
                f"the sequence has an unknown key {key!r}; did you mean {matches[0]!r}? It must be "
                f"one of: {', '.join(SEQUENCE_KEYS)}. Correct or remove it."
            )


def _check_is_built(sequence: Mapping[str, Any]) -> None:
    if variables := sequence.get("variables"):
        raise PayloadError(
            f"the sequence has unbound parameters: {', '.join(variables)}; must be built. Give "
            "their values with `sequence.build(NAME=…)`, and use the sequence that it returns."
        )
    register = sequence["register"]
    # The atoms of a mappable register have no coordinates yet.
    if isinstance(register, list) and any(
        isinstance(atom, dict) and "x" not in atom for atom in register
    ):
        raise PayloadError(
            "the sequence's register is mappable; must be built. Map the qubits with "
            "`sequence.build(qubits={…})`, and use the sequence that it returns."
        )


def _find_device(
    name: object, devices: Mapping[str, Mapping[str, Any]], qpu: str
) -> Mapping[str, Any]:
    device = devices.get(str(name))
    if device is None:
        raise PayloadError(
            f"the sequence is for device {name!r}; on QPU {qpu!r}, it must be one of: "
            f"{', '.join(devices)}. Build it for one of these (`sequence.switch_device`); `qpu "
            f"target {qpu} --refresh` prints their specifications."
        )
    return device


def _check_numbers(
    sequence: Mapping[str, Any], runs: int, device: Mapping[str, Any], qpu: str
) -> None:
    for what, number, limit in (
        ("runs", runs, device.get("max_runs")),
        ("atoms", len(sequence["register"]), device.get("max_atom_num")),
    ):
        if limit is not None and number > limit:
            raise PayloadError(
                f"{number} {what}: must be at most {limit} on QPU {qpu!r}. Use fewer {what}."
            )


def _check_limits(sequence: Mapping[str, Any], device: Mapping[str, Any], where: str) -> None:
    _check_distance(sequence["register"], device.get("min_atom_distance"), where)
    _check_duration(sequence, device.get("max_sequence_duration"), where)
    channels = {
        channel["id"]: channel
        for channel in _objects(device.get("channels"))
        if isinstance(channel.get("id"), str)
    }
    names = sequence.get("channels")
    for operation in _objects(sequence.get("operations")):
        name = operation.get("channel")
        channel_id = names.get(name) if isinstance(names, Mapping) else None
        if (channel := channels.get(str(channel_id))) is not None:
            _check_pulse(operation, channel, f"channel {name!r} of {where}")


def _check_distance(register: Any, least: Any, where: str) -> None:
    if not least:
        return
    points = [_numbers(*(atom.get(axis, 0) for axis in "xyz")) for atom in _objects(register)]
    places = sorted(point for point in points if len(point) == 3)
    for index, place in enumerate(places):
        for other in places[index + 1 :]:
            if other[0] - place[0] >= least:
                break  # sorted by x: all that follow are farther away
            if (distance := math.dist(place, other)) < least - _COORDINATE_PRECISION:
                raise PayloadError(
                    f"two atoms are {distance:.4g} µm apart: must be at least {least:g} µm on "
                    f"{where}. Move them apart."
                )


def _check_duration(sequence: Mapping[str, Any], most: Any, where: str) -> None:
    """Refuse a sequence that is too long even without the pauses that the device adds."""
    used: dict[str, float] = {}
    for operation in _objects(sequence.get("operations")):
        parts = (operation.get("time"), operation.get("duration"))
        nanoseconds = sum(_numbers(*parts)) + _duration(operation.get("amplitude"))
        name = str(operation.get("channel"))
        used[name] = used.get(name, 0.0) + nanoseconds
    longest = max(used.values(), default=0.0)
    if _is_number(most) and longest > most:
        raise PayloadError(
            f"the sequence takes at least {longest:g} ns: must be at most {most:g} ns on {where}. "
            "Shorten its pulses."
        )


def _duration(waveform: Any) -> float:
    if not isinstance(waveform, Mapping):
        return 0.0
    parts = sum(_duration(part) for part in _objects(waveform.get("waveforms")))
    samples = waveform.get("samples")
    own = len(samples) if isinstance(samples, list) else 0
    return sum(_numbers(waveform.get("duration"))) + parts + own


def _check_pulse(operation: Mapping[str, Any], channel: Mapping[str, Any], where: str) -> None:
    amplitudes = [*_values(operation.get("amplitude")), *_numbers(operation.get("amp_on"))]
    detunings = [*_values(operation.get("detuning")), *_numbers(operation.get("detuning_on"))]
    for what, values, key in (
        ("amplitude", amplitudes, "max_amp"),
        ("detuning", [abs(value) for value in detunings], "max_abs_detuning"),
    ):
        limit, peak = channel.get(key), max(values, default=0.0)
        if _is_number(limit) and peak > limit * (1 + _ROUNDING):
            raise PayloadError(
                f"a pulse has {what} {peak:.4g} rad/µs: must be at most {limit:.4g} rad/µs on "
                f"{where}. Reduce the {what}."
            )


def _values(waveform: Any) -> Iterator[float]:
    """Return values that a waveform is certain to reach."""
    if not isinstance(waveform, Mapping):
        return
    kind = waveform.get("kind")
    if kind == "composite":
        for part in _objects(waveform.get("waveforms")):
            yield from _values(part)
    elif kind == "blackman":
        yield from _blackman_peak(waveform.get("area"), waveform.get("duration"))
    elif kind == "interpolated":
        values = waveform.get("values")
        reached = _numbers(*values) if isinstance(values, list) else []
        yield from (value * _INTERPOLATED for value in reached)
    else:
        samples = waveform.get("samples")
        ends = (waveform.get(key) for key in ("value", "start", "stop"))
        yield from _numbers(*ends, *(samples if isinstance(samples, list) else []))


def _blackman_peak(area: Any, duration: Any) -> Iterator[float]:
    if _is_number(area) and _is_number(duration) and duration > 3:
        phase = 2 * math.pi * ((duration - 1) // 2) / (duration - 1)
        peak = 0.42 - 0.5 * math.cos(phase) + 0.08 * math.cos(2 * phase)
        yield peak * area * 1000 / (0.42 * (duration - 1))  # the sum of the window's samples


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _numbers(*values: Any) -> list[float]:
    return [value for value in values if _is_number(value)]


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)

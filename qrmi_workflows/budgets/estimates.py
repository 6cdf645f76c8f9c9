"""Estimates: what a task is expected to take, from the vendor's figures or from earlier tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qrmi_workflows.journal.cost import Amount
from qrmi_workflows.payloads import Payload
from qrmi_workflows.vendors.metering import count_executions
from qrmi_workflows.vendors.registry import load_vendor, registered_type

__all__ = ["FEWEST", "Sample", "estimate_task"]

FEWEST = 3
"""How many earlier tasks measure what a task takes."""

_FIGURES = "vendor's figures"
_SIMILAR = 4.0  # how many times more, or fewer, shots an earlier task may have had


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What an earlier task has taken.

    Attributes:
        digest: The digest of its payload.
        program: The program that it ran.
        shots: How many shots it took.
        seconds: How many QPU seconds it took.
    """

    digest: str
    program: str
    shots: int
    seconds: float


def estimate_task(payload: Payload, resource_type: str, earlier: Sequence[Sample] = ()) -> Amount:
    """Return what a task is expected to take.

    Args:
        payload: Its payload.
        resource_type: QRMI's type of the QPU.
        earlier: What earlier tasks on this QPU have taken. Those with the same payload count, else
            those with the same program and a similar number of shots; if there are too few, the
            vendor's figures do.
    """
    shots = count_executions(load_vendor(payload.vendor), payload.content)
    alike = [sample for sample in earlier if sample.digest == payload.digest]
    if len(alike) < FEWEST and shots:
        alike = [
            sample
            for sample in earlier
            if sample.program == payload.program
            and shots <= sample.shots * _SIMILAR
            and sample.shots <= shots * _SIMILAR
        ]
    if len(alike) >= FEWEST:
        from statistics import median  # its imports take longer than all of this

        # Not the time per shot: most of a short task is an overhead that does not grow with them.
        nearest = sorted(alike, key=lambda sample: abs(sample.shots - (shots or 0)))[:50]
        seconds = median(sample.seconds for sample in nearest)
        return Amount(shots=shots, seconds=seconds, origin=f"measured: {len(nearest)} tasks")
    figures = registered_type(resource_type)
    if shots is None or figures is None or figures.shot_seconds is None:
        return Amount(shots=shots)
    seconds = figures.submission_seconds + shots * figures.shot_seconds
    return Amount(shots=shots, seconds=max(seconds, figures.least_seconds), origin=_FIGURES)

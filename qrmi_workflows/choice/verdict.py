"""Whether a QPU is what a request asks for, and what it lacks if not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qrmi_workflows.choice.candidates import Candidate
from qrmi_workflows.choice.expression import Value, compile_expression
from qrmi_workflows.choice.facts import Facts
from qrmi_workflows.config.constraints import QPUConstraint, is_pattern, matches
from qrmi_workflows.config.emulated import is_emulated

__all__ = [
    "Verdict",
    "is_asked_for",
    "judge",
    "names_asked_for",
    "needs_calibration",
    "needs_target",
    "passes_by_name",
]

_OF_TARGETS = {"qubits", "gates", "calibration_age"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a QPU fits.

    Attributes:
        lacks: What it lacks, one entry for each condition; empty if it fits.
        may_fit_later: Whether it may come to fit without a change of the request.
        shortfall: By what share of the qubits asked for it falls short.
    """

    lacks: tuple[str, ...] = ()
    may_fit_later: bool = False
    shortfall: float = 0.0

    @property
    def fits(self) -> bool:
        """Whether it is what the request asks for."""
        return not self.lacks


def needs_target(constraint: QPUConstraint) -> bool:
    """Return whether what the QPUs' targets say matters for a request."""
    fields = compile_expression(constraint.where).fields if constraint.where else frozenset()
    return constraint.min_qubits is not None or bool(fields & _OF_TARGETS)


def needs_calibration(constraint: QPUConstraint) -> bool:
    """Return whether it matters when the QPUs were calibrated."""
    where = constraint.where
    return where is not None and "calibration_age" in compile_expression(where).fields


def passes_by_name(name: str, candidate: Candidate, constraint: QPUConstraint) -> Verdict:
    """Return what is wrong with a candidate before anybody is asked about it."""
    lacks = []
    if not is_asked_for(name, constraint):
        lacks.append("its name was not asked for")
    if candidate.refusal:
        lacks.append(candidate.refusal)
    type_ = None if candidate.definition is None else candidate.definition.type
    if constraint.type is not None:
        wanted = [part.strip() for part in constraint.type.split("|")]
        if type_ is None:
            lacks.append("its type is not known: no definition of it can be read")
        elif not matches(type_, wanted):
            lacks.append(f"its type is {type_}")
    return Verdict(lacks=tuple(lacks))


def judge(facts: Facts, constraint: QPUConstraint) -> Verdict:
    """Return whether a QPU fits that has passed by its name."""
    lacks: list[str] = []
    shortfall, may_fit_later = 0.0, True
    known = facts.fields()
    # What could not be asked for now may be known later, if there is a definition to ask with.
    is_known_later = facts.definition is not None and bool(facts.unknown_target)
    if constraint.min_qubits is not None:
        qubits = facts.capabilities.qubits
        if qubits is None:
            reason = facts.unknown_target.removesuffix(".") or "its target does not say"
            lacks.append(f"its number of qubits is not known: {reason}")
            may_fit_later = is_known_later
        elif qubits < constraint.min_qubits:
            lacks.append(f"it has {qubits} qubits, not {constraint.min_qubits}")
            shortfall = 1 - qubits / constraint.min_qubits
            may_fit_later = False
    if constraint.where is not None and (failed := _failures(constraint.where, known, facts)):
        lacks += failed
        if may_fit_later and not compile_expression(constraint.where).may_ever_hold(known):
            may_fit_later = is_known_later and needs_target(constraint)
    return Verdict(
        lacks=tuple(lacks), may_fit_later=bool(lacks) and may_fit_later, shortfall=shortfall
    )


def _failures(where: str, known: Mapping[str, Value], facts: Facts) -> list[str]:
    failed = compile_expression(where).failures(known)
    if facts.unknown_target:
        return [
            f"{each}: {facts.unknown_target.removesuffix('.')}"
            if each.endswith(" not known")
            else each
            for each in failed
        ]
    return failed


def names_asked_for(constraint: QPUConstraint) -> list[str]:
    """Return the plain names in a request, without those of emulated QPUs."""
    return [name for name in constraint.names if not is_pattern(name) and not is_emulated(name)]


def is_asked_for(name: str, constraint: QPUConstraint) -> bool:
    """Return whether a request names a QPU, by a pattern or by asking for any.

    An emulated one has to be named: a rehearsal must not stand for any QPU.
    """
    if is_emulated(name):
        return name in constraint.names
    return not constraint.names or matches(name, constraint.names)

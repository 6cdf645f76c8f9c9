"""What rules ask for, before it is known which QPUs their jobs get.

`qpu_name` is a name, alternatives, a pattern, or several of these joined with `+`; with
`qpu_min_qubits`, `qpu_type` and `qpu_where`, it may be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from qrmi_workflows.config.constraints import QPUConstraint, matches, parse_qpus
from qrmi_workflows.config.emulated import is_emulated
from qrmi_workflows.config.site import SitePolicy
from qrmi_workflows.errors import RequestError
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.vendors.emulated import find_emulated

__all__ = [
    "CONDITIONS",
    "RESOURCES",
    "Wish",
    "WishedQPU",
    "constraints_of",
    "find_names",
    "is_choice",
    "is_emulated_wish",
    "merge_wishes",
    "parse_wish",
    "refuse_unknown_resources",
]

CONDITIONS = ("qpu_min_qubits", "qpu_type", "qpu_where")

RESOURCES = (
    *("qpu", "qpu_name", *CONDITIONS, "qpu_exclusive", "qpu_coalesce"),
    *("qpu_stage", "qpu_mode", "qpu_fallback"),
)
"""The resources of rules that this plugin knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WishedQPU:
    """One QPU that a job asks for.

    Attributes:
        constraint: What it must be.
        count: How many units of it.
        is_exclusive: Whether all of its units.
    """

    constraint: QPUConstraint
    count: int
    is_exclusive: bool = False


Wish = tuple[WishedQPU, ...]
"""What a job asks for: one QPU, or several, of which it holds all or none."""


def is_choice(wish: Wish) -> bool:
    """Return whether it is left open which QPUs they are."""
    return any(each.constraint.name is None for each in wish)


def is_emulated_wish(wish: Wish) -> bool:
    """Return whether it asks for emulated QPUs by name, and for no others."""
    return all(is_emulated(each.constraint.name) for each in wish)


def constraints_of(resources: Mapping[str, Any]) -> tuple[QPUConstraint, ...]:
    """Read what a rule says about its QPUs; any QPU, if it only has conditions.

    Raises:
        RequestError: It cannot be read.
    """
    min_qubits, type_, where = (resources.get(name) for name in CONDITIONS)
    name = resources.get("qpu_name")
    # An empty text means none, so that a profile can set one for all rules.
    return parse_qpus(
        name, several="any", min_qubits=min_qubits, type=type_ or None, where=where or None
    )


def parse_wish(resources: Any, site: Callable[[], SitePolicy]) -> Wish:
    """Read what a rule with `qpu` asks for.

    Args:
        resources: The rule's resources.
        site: Returns the site policy; a job with emulated QPUs alone needs none.

    Raises:
        RequestError: It cannot be read, or names no QPU of a site with several.
    """
    name, has_conditions = resources.get("qpu_name"), any(map(resources.get, CONDITIONS))
    constraints: tuple[QPUConstraint, ...] = ()
    if name is None and not has_conditions:
        only = [*site().qpus] if len(site().qpus) == 1 else []
        constraints = tuple(QPUConstraint(names=(each,)) for each in only)
    elif name is None or isinstance(name, str):
        constraints = constraints_of(resources)
    if not constraints:
        raise RequestError(
            f"it asks for qpu={resources.qpu!r} with qpu_name={name!r}; the name must be one "
            f'of: {", ".join(sorted(site().qpus))}. Add qpu_name="…" to its resources.'
        )
    for each in constraints:
        if each.name is not None and is_emulated(each.name):
            find_emulated(each.name)  # refuses an unknown model
        elif each.name is not None:
            site().qpu(each.name)  # refuses a QPU that the site does not offer
    is_exclusive = bool(resources.get("qpu_exclusive"))
    return tuple(
        WishedQPU(
            constraint=each,
            count=QPURequest(qpu=str(each), count=resources.qpu).count,  # refuses a wrong number
            is_exclusive=is_exclusive,
        )
        for each in constraints
    )


def merge_wishes(group: str, wishes: Iterable[Wish]) -> Wish:
    """Return the wish of a group, or of a single job: that of the rule that asks for most.

    Raises:
        RequestError: No rule asks for all that the others ask for.
    """
    wishes = list(wishes)
    asked: dict[QPUConstraint, WishedQPU] = {}
    for each in (each for wish in wishes for each in wish):
        known = asked.setdefault(each.constraint, each)
        asked[each.constraint] = replace(
            known,
            count=max(known.count, each.count),
            is_exclusive=known.is_exclusive or each.is_exclusive,
        )
    most = max(wishes, key=len)
    if len(most) < len(asked):
        names = sorted(map(str, asked))
        raise RequestError(
            f"group {group!r} asks for the QPUs {', '.join(names)}, but none of its "
            "rules for all of them; a group is one Slurm job. Put the rules of each QPU into a "
            f'group of their own, or have one rule hold all: qpu_name="{"+".join(names)}".'
        )
    return tuple(asked[each.constraint] for each in most)


def find_names(constraints: Sequence[QPUConstraint], held: Iterable[str]) -> list[str] | None:
    """Return the QPUs of a job that a rule in it uses, one for each constraint.

    Args:
        constraints: What the rule asks for.
        held: The QPUs that the job holds, in order.

    Returns:
        The names; `None` if the job does not hold what the rule asks for by name.
    """
    left = list(held)
    # Names first: an alternative must not take a QPU that another part asks for by its name.
    order = sorted(range(len(constraints)), key=lambda index: not constraints[index].is_fixed)
    names: dict[int, str] = {}
    for index in order:
        wanted = constraints[index].names
        name = next((qpu for qpu in left if not wanted or matches(qpu, wanted)), None)
        if name is None:
            return None
        left.remove(name)
        names[index] = name
    return [names[index] for index in range(len(constraints))]


def refuse_unknown_resources(names: Iterable[str]) -> None:
    """Refuse resources that look like this plugin's and are not: a typo would have no effect.

    Raises:
        RequestError: There is one.
    """
    for name in names:
        if name.startswith("qpu") and name not in RESOURCES:
            near = get_close_matches(name, RESOURCES, n=1)
            advice = f"Did you mean {near[0]!r}?" if near else "Remove it."
            raise RequestError(
                f"unknown resource {name!r}; must be one of: {', '.join(RESOURCES)}. {advice}"
            )

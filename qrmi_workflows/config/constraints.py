"""Requests for QPUs as users write them: one name, alternatives, a pattern, several, emulated ones.

The text is the same wherever a QPU is named::

    request      = one { ( "+" | "," ) one }      all of them, or none
    one          = alternative { "|" alternative }  one of them is chosen
    alternative  = NAME                           ibm_fez
                 | PATTERN                        ibm_*      (as the shell matches names)
                 | "emulated:" MODEL [ ":noisy" ]   emulated:fez  (see `config.emulated`)

What is asked for besides the name (`QPUConstraint`) holds for each QPU of the request. This module
only reads the text; `qrmi_workflows.choice` chooses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from qrmi_workflows.config.emulated import is_emulated, parse_emulated
from qrmi_workflows.errors import RequestError

__all__ = [
    "QPUConstraint",
    "is_pattern",
    "matches",
    "parse_fallback",
    "parse_qpus",
    "plain_names",
]

_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_PATTERN = re.compile(r"[A-Za-z0-9_.*?\[\]!-]+")
_EMULATED = re.compile(r"emulated:[A-Za-z0-9_.:-]+")
_MOST_TEXT = 2000
_MOST_WHERE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class QPUConstraint:
    """What one QPU must be; all conditions that are given must hold.

    Attributes:
        names: Names, patterns and `emulated:MODEL`, of which one must match; any QPU if empty.
        min_qubits: How many qubits it has at least.
        type: Its resource type: a name, a pattern (`ibm-*`), or alternatives with `|`.
        where: An expression over what is known of it (`queue < 10 and "ecr" in gates`).
    """

    names: tuple[str, ...] = ()
    min_qubits: int | None = None
    type: str | None = None
    where: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no QPU could satisfy because it is not written correctly."""
        for name in self.names:
            _require_alternative(name, name)
        if self.min_qubits is not None and (
            isinstance(self.min_qubits, bool)
            or not isinstance(self.min_qubits, int)
            or self.min_qubits < 1
        ):
            raise RequestError(
                f"min_qubits={self.min_qubits!r}: must be a positive integer. Ask for "
                "min_qubits=1 or more, or leave it out."
            )
        if self.type is not None:
            _require_type(self.type)
        if self.where is not None:
            _require_where(self.where)

    @property
    def name(self) -> str | None:
        """The name if the request leaves nothing to choose and nothing to check; else `None`.

        Conditions are for real QPUs: a rehearsal on an emulated one does not wait for its queue.
        """
        if not self.is_fixed or (self.has_conditions and not is_emulated(self.names[0])):
            return None
        return self.names[0]

    @property
    def is_fixed(self) -> bool:
        """Whether it names one QPU, and no pattern."""
        return len(self.names) == 1 and not is_pattern(self.names[0])

    @property
    def has_conditions(self) -> bool:
        """Whether it asks for anything besides the name."""
        return (self.min_qubits, self.type, self.where) != (None, None, None)

    def __str__(self) -> str:
        """Return the request in words: `ibm_*|FRESNEL with min_qubits=100, where='queue < 5'`."""
        conditions = [
            f"{key}={value!r}"
            for key in ("min_qubits", "type", "where")
            if (value := getattr(self, key)) is not None
        ]
        names = "|".join(self.names)
        if not names:
            return ", ".join(conditions) or "any QPU"
        return f"{names} with {', '.join(conditions)}" if conditions else names


def parse_qpus(
    request: str | Sequence[str] | None,
    *,
    several: Literal["all", "any"] = "all",
    min_qubits: int | None = None,
    type: str | None = None,  # noqa: A002 - QRMI's own word
    where: str | None = None,
) -> tuple[QPUConstraint, ...]:
    """Read a request: one constraint for each QPU that the job needs.

    Args:
        request: The text, or a list of texts; any QPU if `None`.
        several: What a list means: the job needs `all` of its QPUs, or `any` of them.
        min_qubits: How many qubits each QPU has at least.
        type: The resource type of each.
        where: An expression that must hold for each.

    Raises:
        RequestError: The text is not a request, names a QPU twice, or a condition is not valid.
    """
    terms: list[list[str]] = [[]]
    if request is not None:
        listed = _listed(request)
        if not listed:
            raise RequestError("no QPU named: the list is empty. Name at least one.")
        joined = {"all": "+", "any": "|"}[several].join(map(_text, listed))
        if several == "any" and len(listed) > 1 and re.search(r"[+,]", joined):
            raise RequestError(
                f"QPU {joined!r}: a list of alternatives cannot have `+` or `,` in it; must be "
                "names or patterns. Write the request as one text."
            )
        terms = [_alternatives(term, joined) for term in re.split(r"[+,]", joined)]
        _require_distinct(terms, joined)
    return tuple(
        QPUConstraint(names=tuple(names), min_qubits=min_qubits, type=type, where=where)
        for names in terms
    )


def plain_names(constraints: Sequence[QPUConstraint]) -> list[str] | None:
    """Return the names if nothing has to be chosen or checked; `None` otherwise."""
    names = [each.name for each in constraints]
    return [name for name in names if name is not None] if None not in names else None


def parse_fallback(fallback: str | Sequence[str] | None) -> tuple[str, ...]:
    """Read the QPUs to fall back to, in order: `a,b`, `a|b`, or a list.

    Each is a name or `emulated:MODEL`.

    Raises:
        RequestError: One is not a name, or is named twice.
    """
    if fallback is None:
        return ()
    text = "|".join(map(_text, _listed(fallback)))
    names = [name.strip() for name in re.split(r"[|,]", text)]
    for name in names:
        if is_pattern(name) or "+" in name:
            raise RequestError(
                f"fallback {text!r}: {name!r} is not one QPU; must be names of QPUs, or "
                "emulated:MODEL, in order. Name each QPU."
            )
        _require_alternative(name, text)
    _require_distinct([(name,) for name in names], text)
    return tuple(names)


def is_pattern(name: str) -> bool:
    """Return whether an alternative is a pattern, and no name."""
    return not is_emulated(name) and any(sign in name for sign in "*?[")


def matches(name: str, alternatives: Sequence[str]) -> bool:
    """Return whether a QPU's name is one of these names, or matches one of these patterns."""
    return any(
        fnmatchcase(name, each) if is_pattern(each) else name == each for each in alternatives
    )


def _listed(request: str | Sequence[str]) -> Sequence[str]:
    return request if isinstance(request, list | tuple) else [_text(request)]


def _text(part: object) -> str:
    if not isinstance(part, str):
        raise RequestError(
            f"QPU {part!r}: must be a name, a pattern, or `emulated:MODEL`, as text. Put it in "
            "quotes."
        )
    return part


def _alternatives(term: str, request: str) -> list[str]:
    names = [name.strip() for name in term.split("|")]
    for name in names:
        _require_alternative(name, request)
    return list(dict.fromkeys(names))


def _require_alternative(name: str, request: str) -> None:
    if len(request) <= _MOST_TEXT and (_EMULATED if is_emulated(name) else _PATTERN).fullmatch(
        name
    ):
        if is_emulated(name):
            parse_emulated(name)
        return
    shown = request if len(request) <= 80 else f"{request[:80]}…"
    if not name:
        what = "a name is missing"
    elif is_emulated(name):
        what = f"{name[:80]!r} is not emulated:MODEL"
    else:
        what = f"{name[:80]!r} is not a QPU's name"
    raise RequestError(
        f"QPU {shown!r}: {what}; must be a name (letters, digits, `_`, `.`, `-`), a pattern "
        "(`ibm_*`), or `emulated:MODEL`; `|` between alternatives, `+` between QPUs that the job "
        "needs together. Correct it."
    )


def _require_distinct(terms: Sequence[Sequence[str]], request: str) -> None:
    fixed = [term[0] for term in terms if len(term) == 1 and not is_pattern(term[0])]
    if twice := next((name for name in fixed if fixed.count(name) > 1), None):
        raise RequestError(
            f"QPU {twice!r} named twice in {request!r}: must be named once. Correct the request."
        )


def _require_type(text: str) -> None:
    if not isinstance(text, str) or not all(
        _PATTERN.fullmatch(part.strip()) for part in text.split("|")
    ):
        raise RequestError(
            f"type={text!r}: must be a resource type (`pasqal-cloud`), a pattern (`ibm-*`), or "
            "alternatives with `|`. Correct it."
        )


def _require_where(text: str) -> None:
    if not isinstance(text, str) or not text.strip() or len(text) > _MOST_WHERE:
        shown = f"{text[:40]}…" if isinstance(text, str) and len(text) > 40 else text
        raise RequestError(
            f"where={shown!r}: must be an expression of at most {_MOST_WHERE} characters, for "
            'example "qubits >= 100 and queue < 10". Correct it.'
        )

"""Faults by rule: what a vendor's API does on a bad day, on purpose and counted.

A rule matches requests by method and path, skips the first of them, and acts on the next. Rules
come from the TOML file or from the control endpoint; all that match act, in their order::

    [[faults]]
    kind = "status"             # see KINDS
    route = "POST */jobs"       # method and path, with shell wildcards
    count = 3                   # how many requests it acts on; without it: all
    after = 1                   # how many matching requests it lets pass first
    when = "after"              # act after the request was carried out: its answer gets lost
    status = 503
    body = "try later"
    retry_after = 2
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from qrmi_workflows.errors import EmulatorError

__all__ = ["IMMEDIATE", "KINDS", "FaultRule", "FaultRules"]

KINDS = {
    "status": "answers `status` with `body`",
    "delay": "answers `seconds` later",
    "drop": "closes the connection without an answer",
    "hang": "accepts the request and never answers",
    "malformed": "answers with a body that is cut in half",
    "slow": "sends the body in pieces over `seconds`",
    "expire-tokens": "makes all access tokens expire",
    "close-sessions": "closes the sessions of all QPUs",
    "clock-skew": "makes the server's clock wrong by `seconds`",
}
IMMEDIATE = ("expire-tokens", "close-sessions", "clock-skew")
_MOMENTS = ("before", "after")


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultRule:
    """One rule.

    Attributes:
        kind: What happens, one of `KINDS`.
        route: Which requests: a method and a path with shell wildcards (`POST */jobs`).
        count: How many requests it acts on; `None`: all.
        after: How many matching requests it lets pass first.
        when: `before`: the request is not carried out; `after`: it is, and the answer is changed.
        seconds: How long, for the kinds that take time.
        status: The HTTP status, for `status`.
        body: The body, for `status`.
        retry_after: The header Retry-After, for `status`.
    """

    kind: str
    route: str = "*"
    count: int | None = None
    after: int = 0
    when: str = "before"
    seconds: float = 1.0
    status: int = 500
    body: str = ""
    retry_after: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no rule can be."""
        self._check("kind", self.kind in KINDS, ", ".join(KINDS))
        self._check("when", self.when in _MOMENTS, ", ".join(_MOMENTS))
        self._check("status", 100 <= self.status <= 599, "100 to 599")
        self._check("count", self.count is None or self.count >= 1, "1 or more")
        self._check("after", self.after >= 0, "0 or more")
        self._check("seconds", self.kind == "clock-skew" or self.seconds >= 0, "0 or more")

    @classmethod
    def parse(cls, table: Mapping[str, Any], where: str = "fault") -> FaultRule:
        """Read a rule as TOML or JSON gives it.

        Raises:
            EmulatorError: It has a field or a value that does not exist.
        """
        allowed = {item.name: str(item.type) for item in fields(cls)}
        for name, value in table.items():
            if name not in allowed:
                raise EmulatorError(
                    f"{where}: unknown field {name!r}; allowed: {', '.join(allowed)}. "
                    "Correct or remove it."
                )
            types = _TYPES[allowed[name]]
            if type(value) not in types:
                names = " or ".join(item.__name__ for item in types)
                raise EmulatorError(f"{where}: {name} = {value!r}; allowed is a {names}.")
        if "kind" not in table:
            raise EmulatorError(f"{where}: no `kind`; allowed: {', '.join(KINDS)}. Add it.")
        return cls(**table)

    def _check(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            value = getattr(self, name)
            raise EmulatorError(f"fault: {name} {value!r}; allowed: {allowed}. Correct it.")


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (int, float),
}


class FaultRules:
    """The rules in force, and how often each has matched."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._rules: dict[int, tuple[FaultRule, list[int]]] = {}

    def __bool__(self) -> bool:
        return bool(self._rules)

    def add(self, rule: FaultRule) -> int:
        """Put a rule in force and return its number."""
        number = next(self._numbers)
        self._rules[number] = (rule, [0])
        return number

    def remove(self, number: int) -> bool:
        """End a rule; `False` when there is none of that number."""
        return self._rules.pop(number, None) is not None

    def clear(self) -> None:
        """End all rules."""
        self._rules.clear()

    def list(self) -> list[dict[str, Any]]:
        """Return the rules with their numbers and how many requests each has matched."""
        return [
            {"number": number, **asdict(rule), "matched": matched[0]}
            for number, (rule, matched) in self._rules.items()
        ]

    def match(self, method: str, path: str) -> tuple[FaultRule, ...]:
        """Return the rules that act on a request, and count it."""
        acting = []
        for rule, matched in self._rules.values():
            if fnmatchcase(f"{method} {path}", rule.route):
                matched[0] += 1
                rank = matched[0] - rule.after
                if rank > 0 and (rule.count is None or rank <= rule.count):
                    acting.append(rule)
        return tuple(acting)

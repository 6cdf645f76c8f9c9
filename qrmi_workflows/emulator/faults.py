"""Fault rules: deliberate failures of a vendor's API.

A rule matches requests by method and path. It lets the first `after` of them pass and acts on the
next `count`. Rules come from the TOML file or the control endpoint. If several rules match a
request, they act in the order in which they were added::

    [[faults]]
    kind = "status"             # see KINDS
    route = "POST */jobs"       # method and path, with shell wildcards; default: every request
    count = 3                   # number of requests to act on; default: all
    after = 1                   # number of matching requests to let pass first
    when = "after"              # carry out the request, then replace its response
    status = 503
    body = "try later"
    retry_after = 2
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any

from qrmi_workflows.errors import EmulatorError

__all__ = ["IMMEDIATE", "KINDS", "FaultRule", "FaultRules"]

KINDS = {
    "status": "responds with `status` and `body`",
    "delay": "delays the response by `seconds`",
    "hold": "delays the response until the rule is removed",
    "drop": "closes the connection without a response",
    "hang": "accepts the request and never responds",
    "malformed": "truncates the response body to half its length",
    "slow": "sends the response body in pieces over `seconds`",
    "expire-tokens": "expires all access tokens",
    "close-sessions": "closes the sessions of all QPUs",
    "clock-skew": "sets the server's clock wrong by `seconds`",
}
IMMEDIATE = ("expire-tokens", "close-sessions", "clock-skew")
_MOMENTS = ("before", "after")


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultRule:
    """One fault rule.

    Attributes:
        kind: The kind of fault, one of `KINDS`.
        route: The requests it matches: a method and a path with shell wildcards (`POST */jobs`).
        count: The number of requests to act on; `None`: all.
        after: The number of matching requests to let pass first.
        when: `before` or `after` the request is carried out.
        seconds: The duration, for `delay`, `slow` and `clock-skew`.
        status: The HTTP status, for `status`.
        body: The response body, for `status`.
        retry_after: The value of the Retry-After header in seconds, for `status`.
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
        """Check every field."""
        self._require("kind", self.kind in KINDS, f"one of {', '.join(KINDS)}")
        self._require("when", self.when in _MOMENTS, f"one of {', '.join(_MOMENTS)}")
        self._require("status", 100 <= self.status <= 599, "from 100 to 599")
        self._require("count", self.count is None or self.count >= 1, "a positive integer")
        self._require("after", self.after >= 0, "0 or greater")
        self._require("seconds", self.kind == "clock-skew" or self.seconds >= 0, "0 or greater")

    @classmethod
    def parse(cls, table: Mapping[str, Any], where: str = "fault") -> FaultRule:
        """Make a rule from a TOML table or a JSON object.

        Args:
            table: The rule's fields.
            where: The rule's name, for error messages.

        Raises:
            EmulatorError: A field is unknown or has a value that is not allowed.
        """
        allowed = {item.name: str(item.type) for item in fields(cls)}
        for name, value in table.items():
            if name not in allowed:
                raise EmulatorError(
                    f"{where}: field {name!r} is unknown; allowed: {', '.join(allowed)}. "
                    "Correct or remove it."
                )
            types = _TYPES[allowed[name]]
            if type(value) not in types:  # not isinstance: a bool is not a count
                names = " or ".join(item.__name__ for item in types)
                raise EmulatorError(
                    f"{where}: {name} = {value!r}: must be of type {names}. Correct it."
                )
        if "kind" not in table:
            raise EmulatorError(f"{where}: `kind` is missing; allowed: {', '.join(KINDS)}. Add it.")
        return cls(**table)

    def _require(self, name: str, is_met: bool, requirement: str) -> None:
        if not is_met:
            value = getattr(self, name)
            raise EmulatorError(f"fault: {name} = {value!r}: must be {requirement}. Correct it.")


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (int, float),
}


@dataclass(slots=True)
class _Active:
    rule: FaultRule
    matched: int = 0
    removed: asyncio.Event = field(default_factory=asyncio.Event)


class FaultRules:
    """The active rules, with the number of requests that each has matched."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._active: dict[int, _Active] = {}

    def __bool__(self) -> bool:
        return bool(self._active)

    def add(self, rule: FaultRule) -> int:
        """Activate a rule and return its number."""
        number = next(self._numbers)
        self._active[number] = _Active(rule)
        return number

    def remove(self, number: int) -> bool:
        """Remove a rule; return `False` if the number is unknown."""
        active = self._active.pop(number, None)
        if active is None:
            return False
        active.removed.set()
        return True

    def clear(self) -> None:
        """Remove all rules."""
        for number in list(self._active):
            self.remove(number)

    def list(self) -> list[dict[str, Any]]:
        """Return each rule's number, fields and number of matched requests."""
        return [
            {"number": number, **asdict(active.rule), "matched": active.matched}
            for number, active in self._active.items()
        ]

    def match(self, method: str, path: str) -> tuple[FaultRule, ...]:
        """Count a request and return the rules that act on it."""
        acting = []
        for active in self._active.values():
            rule = active.rule
            if fnmatchcase(f"{method} {path}", rule.route):
                active.matched += 1
                rank = active.matched - rule.after
                if rank > 0 and (rule.count is None or rank <= rule.count):
                    acting.append(rule)
        return tuple(acting)

    async def wait_for_removal(self, rule: FaultRule) -> None:
        """Wait until a rule has been removed."""
        for active in self._active.values():
            if active.rule is rule:
                await active.removed.wait()
                return

"""The keys of `site.toml`: what each may be, and which contradict each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from qrmi_workflows.config.qpus import require_valid_name
from qrmi_workflows.errors import ConfigError

__all__ = ["POLICY_KEYS", "Key", "Mistake", "find_mistakes", "merge"]

_MODES = ("auto", "dedicated", "batch")
_WORD = r"[A-Za-z0-9_.-]+"
_NODES = rf"{_WORD}(\[[0-9,-]+\][A-Za-z0-9_.-]*)?"
_ACCOUNT = r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*\$?"
_LARGEST = 1e15  # a greater integer may not even be a float
_ACCESS = ("users", "groups", "accounts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What a key's value may be.

    Attributes:
        expected: The values that are allowed, to follow "must be".
        accepts: Whether a value is one of these.
        has_none: Whether `""` in a QPU's own table takes the default back.
    """

    expected: str
    accepts: Callable[[Any], bool]
    has_none: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A mistake in a site policy.

    Attributes:
        keys: The path to the key that has to be corrected: `("qpus", "ibm_fez", "lanes")`.
        text: What is wrong, what is allowed, what to do.
    """

    keys: tuple[str, ...]
    text: str


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < _LARGEST


def _matching(pattern: str) -> Callable[[Any], bool]:
    compiled = re.compile(pattern)

    def accepts(value: Any) -> bool:
        # `{qpu}` stands for a QPU's name, which has only letters, digits, `_`, `.` and `-`.
        return isinstance(value, str) and bool(compiled.fullmatch(value.replace("{qpu}", "q")))

    return accepts


def _names(pattern: str) -> Callable[[Any], bool]:
    is_name = _matching(pattern)
    return lambda value: isinstance(value, list) and bool(value) and all(map(is_name, value))


def _is_gres(value: Any) -> bool:
    # `qpu:1` is a name and a count, which the request adds.
    is_gres = _matching(rf"{_WORD}(:{_WORD})?")
    return is_gres(value) and not value.rpartition(":")[2].isdigit()


def _is_folder(value: Any) -> bool:
    return isinstance(value, str) and PurePath(value).is_absolute() and "\0" not in value


_BOOLEAN = Key(expected="true or false", accepts=lambda value: isinstance(value, bool))

POLICY_KEYS: Mapping[str, Key] = {
    "gres": Key(
        expected="the name of a GRES, without a count: NAME or NAME:TYPE",
        accepts=_is_gres,
        has_none=True,
    ),
    "gres_nodes": Key(
        expected='a list of nodes as Slurm writes it: "gw1" or "n[1-4],gw1"',
        accepts=_matching(rf"{_NODES}(,{_NODES})*"),
        has_none=True,
    ),
    "licence": Key(
        expected="the name of a licence, without a count: NAME or NAME@SERVER",
        accepts=_matching(rf"{_WORD}(@{_WORD})?"),
        has_none=True,
    ),
    "qpu_option": _BOOLEAN,
    "partition": Key(expected="the name of a partition", accepts=_matching(_WORD), has_none=True),
    "partitions": Key(
        expected='a list of names of partitions: ["quantum", "debug"]', accepts=_names(_WORD)
    ),
    "lanes": Key(
        expected="a positive integer", accepts=lambda value: type(value) is int and value > 0
    ),
    "exclusive": _BOOLEAN,
    "users": Key(expected='a list of names of users: ["ada"]', accepts=_names(_ACCOUNT)),
    "groups": Key(expected='a list of names of groups: ["qc"]', accepts=_names(_ACCOUNT)),
    "accounts": Key(
        expected='a list of accounts of the scheduler: ["qc"]', accepts=_names(_ACCOUNT)
    ),
    "require_grant": _BOOLEAN,
    "kill_wait": Key(
        expected="a positive number of seconds",
        accepts=lambda value: _is_number(value) and value > 0,
    ),
    "mode": Key(
        expected=" or ".join(f'"{mode}"' for mode in _MODES), accepts=lambda value: value in _MODES
    ),
    "warm_up": _BOOLEAN,
    "waiting_cost": Key(
        expected="a number that is not negative",
        accepts=lambda value: _is_number(value) and value >= 0,
    ),
    "interactive_ttl": Key(
        expected="a positive number of seconds",
        accepts=lambda value: _is_number(value) and value > 0,
    ),
    "task_seconds": Key(
        expected="a positive number of seconds",
        accepts=lambda value: _is_number(value) and value > 0,
    ),
    "options": Key(
        expected="a table of strings",
        accepts=lambda value: (
            isinstance(value, dict) and all(isinstance(each, str) for each in value.values())
        ),
    ),
}
"""The keys of `[defaults]` and `[qpus.NAME]`, which `QPUPolicy` explains."""

_SITE_KEYS: Mapping[str, Key] = {
    name: Key(expected="the absolute path of a folder", accepts=_is_folder)
    for name in ("records", "budgets", "state", "maintenance")
}
_TOP = ("defaults", "qpus", "scheduler", "site")
_SCHEDULER = Key(expected="a string", accepts=_matching(_WORD))


def find_mistakes(document: Mapping[str, Any]) -> Iterator[Mistake]:
    """Find all mistakes in a site policy, in the order of its tables."""
    yield from _unknown(document, _TOP, ())
    if "scheduler" in document:
        yield from _wrong_value(_SCHEDULER, document["scheduler"], ("scheduler",))
    yield from _in_table(document.get("site", {}), _SITE_KEYS, ("site",))
    defaults = document.get("defaults", {})
    yield from _in_table(defaults, POLICY_KEYS, ("defaults",))
    qpus = document.get("qpus", {})
    if not isinstance(qpus, dict) or not qpus:
        yield Mistake(keys=("qpus",), text="offers no QPU. Add a table [qpus.NAME] for each.")
        return
    for name, table in qpus.items():
        yield from _in_qpu(name, table, defaults if isinstance(defaults, dict) else {})


def _in_qpu(name: str, table: Any, defaults: Mapping[str, Any]) -> Iterator[Mistake]:
    keys = ("qpus", name)
    try:
        require_valid_name(name, _shown(keys))
    except ConfigError as error:
        yield Mistake(keys=keys, text=str(error))
    own = _without_taken_back(table) if isinstance(table, dict) else table
    wrong = list(_in_table(own, POLICY_KEYS, keys))
    yield from wrong
    if not wrong and not any(_in_table(defaults, POLICY_KEYS, ("defaults",))):
        yield from _contradictions(name, table, defaults)


def _in_table(table: Any, known: Mapping[str, Key], keys: tuple[str, ...]) -> Iterator[Mistake]:
    if not isinstance(table, dict):
        text = f"{_shown(keys)}: {table!r} is not a table. Write {_shown(keys)}."
        yield Mistake(keys=keys, text=text)
        return
    yield from _unknown(table, known, keys)
    for key, value in table.items():
        if key in known:
            yield from _wrong_value(known[key], value, (*keys, key))


def _wrong_value(key: Key, value: Any, keys: tuple[str, ...]) -> Iterator[Mistake]:
    if not key.accepts(value):
        text = f"{keys[-1]} = {_written(value)}: must be {key.expected}. Correct it."
        yield Mistake(keys=keys, text=_in(keys[:-1], text))


def _unknown(
    table: Mapping[str, Any], known: Iterable[str], keys: tuple[str, ...]
) -> Iterator[Mistake]:
    for key in (key for key in table if key not in known):
        from difflib import get_close_matches  # most policies have no mistake

        near = get_close_matches(key, known, n=1)
        advice = f"Did you mean {near[0]!r}?" if near else "Correct or remove it."
        text = f"unknown key {key!r}; must be one of: {', '.join(sorted(known))}. {advice}"
        yield Mistake(keys=(*keys, key), text=_in(keys, text))


def _contradictions(
    name: str, table: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Iterator[Mistake]:
    merged = merge(defaults, table)
    for key, text in _contradicting(merged):
        place = ("qpus", name) if key in table else ("defaults",)
        yield Mistake(keys=(*place, key), text=f"[qpus.{name}]: {text}")


def _contradicting(merged: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Return the keys that contradict others of the same QPU, and what is wrong."""
    if "partition" in merged and "partitions" in merged:
        yield (
            "partitions",
            "sets both partition and partitions. Keep `partitions` if jobs may use several.",
        )
    if "gres_nodes" in merged and "gres" not in merged:
        yield "gres_nodes", "gres_nodes without gres. Set `gres`, or remove `gres_nodes`."
    if merged.get("exclusive") is False:
        if not {"gres", "licence"} & merged.keys():
            yield (
                "exclusive",
                "exclusive = false, but neither gres nor licence counts the lanes that jobs share. "
                "Set `licence`, or `gres`.",
            )
        if merged.get("lanes", 1) == 1:
            yield (
                "exclusive",
                "exclusive = false, but the QPU has one lane, which jobs cannot share. Set `lanes` "
                "to the number of lanes, or exclusive = true.",
            )
    limits = [key for key in _ACCESS if key in merged]
    if limits and not {"partition", "partitions"} & merged.keys():
        yield (
            limits[0],
            f"{limits[0]} without a partition: the scheduler can keep others from the QPU only by "
            "its partition. Set `partition`.",
        )


def merge(defaults: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a QPU's settings: the defaults, except for what its own table sets or takes back.

    Its own `partitions` replaces the defaults' `partition`, and the other way round.
    """
    own = _without_taken_back(table)
    merged = {**{key: value for key, value in defaults.items() if key not in table}, **own}
    for key, other in (("partition", "partitions"), ("partitions", "partition")):
        if key in own and other not in own:
            merged.pop(other, None)
    return merged


def _without_taken_back(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in table.items()
        if value != "" or key not in POLICY_KEYS or not POLICY_KEYS[key].has_none
    }


def _shown(keys: tuple[str, ...]) -> str:
    return f"[{'.'.join(keys)}]"


def _in(keys: tuple[str, ...], text: str) -> str:
    return f"{_shown(keys)}: {text}" if keys else text


def _written(value: Any) -> str:
    """Return a value as TOML writes it, as far as it differs from Python."""
    return str(value).lower() if isinstance(value, bool) else repr(value)

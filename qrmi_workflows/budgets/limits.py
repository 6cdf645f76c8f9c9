"""Budgets: how much the tasks of a user, an account, a job or a stage may take.

The site's budgets are in `limits.toml` in the folder that the site policy names (`[site] budgets`).
Only root writes the file (`qpu budget set`). Jobs and stages have the budgets that their own users
give them.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

from qrmi_workflows.config.qpus import require_valid_name
from qrmi_workflows.errors import ConfigError, RequestError
from qrmi_workflows.state.files import write_atomically

__all__ = [
    "ANYBODY",
    "PERIODS",
    "SCOPES",
    "Limit",
    "applicable",
    "limits_file",
    "parse_limit",
    "period_end",
    "read_limits",
    "render_amount",
    "require_name",
    "write_limits",
]

ANYBODY = "*"
"""Stands for each user, or each account, that has no budget of its own of the same kind."""

PERIODS = ("day", "month", "total")
"""The periods after which a budget begins anew, in UTC; `total` never does."""

SCOPES = ("user", "account")
"""Whose budgets the site sets."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,127}")
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)")
_UNITS = {"shot": 1, "shots": 1}
_SECONDS = {
    **dict.fromkeys(("s", "second", "seconds"), 1),
    **dict.fromkeys(("min", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hour", "hours"), 3600),
}
_LARGEST = 10**15
_LONGEST_FILE = 1_000_000
_HEADER = "# Written by `qpu budget set`. Only root may write this file.\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One budget.

    Attributes:
        scope: `user`, `account`, `job` or `stage`.
        name: Whose budget it is; `ANYBODY` for each user or account.
        unit: `shots` or `seconds`.
        amount: How much it is: shots, or milliseconds of the QPU.
        per: The period after which it begins anew: `day`, `month` (in UTC) or `total`.
        qpu: The QPU that it is for; all of them if `None`.
    """

    scope: str
    name: str
    unit: str
    amount: int
    per: str = "total"
    qpu: str | None = None

    @property
    def kind(self) -> tuple[str, str, str | None]:
        """What two budgets of one name must not have in common."""
        return self.unit, self.per, self.qpu

    def describe(self) -> str:
        """Return whose budget it is, for messages."""
        return f"{self.scope} {self.name}"


def require_name(name: object, what: str) -> str:
    """Return the name of a user, an account, a job or a stage, if it is one.

    Names become parts of paths, so nothing is escaped: anything unusual is refused.

    Raises:
        ConfigError: It has other characters than letters, digits and `_.@+-`, or begins with one of
            the last four.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{what} {name!r:.140}: must begin with a letter, a digit or `_`, and have only these "
            "and `.`, `@`, `+`, `-`, at most 128 in all. Correct the name."
        )
    return name


def parse_limit(text: str, where: str) -> tuple[str, int]:
    """Parse an amount (`1000 shots`, `90 min`).

    Args:
        text: The amount.
        where: What it is for, for the message.

    Returns:
        The unit (`shots` or `seconds`), and the number of shots or milliseconds.

    Raises:
        RequestError: It is not an amount.
    """
    match = _AMOUNT.fullmatch(text.strip().lower()) if isinstance(text, str) else None
    factor = 0
    if match is not None:
        unit = "shots" if match[2] in _UNITS else "seconds"
        factor = _UNITS.get(match[2], 0) or 1000 * _SECONDS.get(match[2], 0)
        # Not with floats: 1.1 h would be 3960000.0000000005 ms.
        amount = Fraction(match[1]) * factor
        if factor and amount.denominator == 1 and amount <= _LARGEST:
            return unit, int(amount)
    raise RequestError(
        f"{where}: {text!r}: must be a number of shots, or a time in seconds, minutes or hours "
        '("1000 shots", "600 s", "90 min", "2 h"). Correct it.'
    )


def render_amount(unit: str, amount: int) -> str:
    """Render an amount for people, and for `parse_limit`."""
    if unit == "shots":
        return f"{amount} shots"
    return f"{amount / 1000:.3f}".rstrip("0").rstrip(".") + " s"


def period_end(per: str, day: str) -> str | None:
    """Return when a budget's period ends, ISO 8601 in UTC; `None` if it has no end.

    Args:
        per: The period.
        day: A day in it (`2026-11-26`).
    """
    start = datetime.fromisoformat(day).replace(tzinfo=UTC)
    if per == "day":
        return (start + timedelta(days=1)).isoformat()
    if per == "month":
        return (start.replace(day=1) + timedelta(days=32)).replace(day=1).isoformat()
    return None


def limits_file(folder: Path) -> Path:
    """Return the file of the site's budgets."""
    return folder / "limits.toml"


def read_limits(folder: Path) -> tuple[Limit, ...]:
    """Read the site's budgets; there are none if the file does not exist.

    Raises:
        ConfigError: The file is malformed, or others than root (or this user, at a site of their
            own) might have written it.
    """
    path = limits_file(folder)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ConfigError(
            f"{path}: the budgets cannot be read: {error.strerror or error}. Ask your "
            "administrators to correct the file: root's, mode 0644, no link."
        ) from error
    try:
        found = os.fstat(descriptor)
        _require_trusted(path, found, stat.S_ISREG(found.st_mode))
        above = folder.stat()
        _require_trusted(folder, above, stat.S_ISDIR(above.st_mode))
        return _parse(str(path), found.st_mtime_ns, _read(descriptor, path))
    finally:
        os.close(descriptor)


def write_limits(folder: Path, limits: Iterable[Limit]) -> None:
    """Write the site's budgets; the caller holds the lock of the folder.

    Raises:
        OSError: The file could not be written.
    """
    tables = [_HEADER]
    for limit in limits:
        keys = {limit.scope: limit.name, "per": limit.per, "qpu": limit.qpu}
        lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items() if value is not None]
        lines.append(f"limit = {json.dumps(render_amount(limit.unit, limit.amount))}")
        tables.append("\n[[budget]]\n" + "\n".join(lines) + "\n")
    path = limits_file(folder)
    write_atomically(path, "".join(tables), mode=0o644, durable=True)
    path.chmod(0o644)  # whatever the umask is


def applicable(
    limits: Sequence[Limit], *, user: str, account: str | None, qpu: str
) -> tuple[Limit, ...]:
    """Return the site's budgets from which a task draws, with the names of its user and account."""
    found = []
    for scope, name in (("user", user), ("account", account)):
        ours = [limit for limit in limits if limit.scope == scope and limit.qpu in (None, qpu)]
        own = [limit for limit in ours if limit.name == name]
        kinds = {limit.kind for limit in own}
        found += own
        if name is not None:
            found += [
                replace(limit, name=name)
                for limit in ours
                if limit.name == ANYBODY and limit.kind not in kinds
            ]
    return tuple(found)


def _require_trusted(path: Path, found: os.stat_result, is_right: bool) -> None:
    if not is_right or found.st_uid not in (0, os.getuid()) or found.st_mode & 0o022:
        raise ConfigError(
            f"{path}: owner {found.st_uid}, mode {stat.filemode(found.st_mode)}: the budgets must "
            "be a file, in a folder, that only root can write. Correct the owner and the mode "
            "(`chown root`, `chmod go-w`)."
        )


def _read(descriptor: int, path: Path) -> str:
    with os.fdopen(os.dup(descriptor), encoding="utf-8", errors="replace") as file:
        text = file.read(_LONGEST_FILE + 1)
    if len(text) > _LONGEST_FILE:
        raise ConfigError(
            f"{path}: must have at most {_LONGEST_FILE} characters. Use `*` for users and accounts "
            "with the same budget."
        )
    return text


@lru_cache(maxsize=4)
def _parse(where: str, _modified: int, text: str) -> tuple[Limit, ...]:
    import tomllib  # only where the site has budgets

    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid TOML: {error}. Correct the file.") from error
    if unknown := sorted(document.keys() - {"budget"}):
        # A misspelt name must not switch a budget off.
        raise ConfigError(
            f"{where}: unknown key {unknown[0]!r}; must have tables [[budget]] only. Correct or "
            "remove it."
        )
    tables = document.get("budget", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{where}: `budget` must be tables: [[budget]]. Correct the file.")
    limits = [_limit(table, f"{where}: budget {n}") for n, table in enumerate(tables, 1)]
    for index, limit in enumerate(limits):
        for other in limits[:index]:
            if (limit.scope, limit.name, limit.kind) == (other.scope, other.name, other.kind):
                raise ConfigError(
                    f"{where}: two budgets of {limit.describe()} for the same unit, period and "
                    "QPU. Remove one of them."
                )
    return tuple(limits)


def _limit(table: dict[str, Any], where: str) -> Limit:
    known = {*SCOPES, "per", "qpu", "limit"}
    if unknown := sorted(set(table) - known):
        raise ConfigError(
            f"{where}: unknown key {unknown[0]!r}; must be one of: {', '.join(sorted(known))}. "
            "Correct or remove it."
        )
    scopes = [scope for scope in SCOPES if scope in table]
    if len(scopes) != 1:
        raise ConfigError(f"{where}: must have one of the keys {' and '.join(SCOPES)}. Correct it.")
    name, per, qpu = table[scopes[0]], table.get("per", "total"), table.get("qpu")
    if name != ANYBODY:
        require_name(name, f"{where}: {scopes[0]}")
    if per not in PERIODS:
        raise ConfigError(
            f"{where}: per = {per!r:.80}: must be one of: {', '.join(PERIODS)}. Correct it."
        )
    if qpu is not None:
        if not isinstance(qpu, str):
            raise ConfigError(f"{where}: qpu = {qpu!r:.80}: must be the name of a QPU. Correct it.")
        require_valid_name(qpu, where)
    try:
        unit, amount = parse_limit(table.get("limit", ""), f"{where}: limit")
    except RequestError as error:
        raise ConfigError(error.message) from error
    return Limit(scope=scopes[0], name=name, unit=unit, amount=amount, per=per, qpu=qpu)

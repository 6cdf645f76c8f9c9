"""What root writes about QPUs that are away: notices for everybody, and its own memory.

::

    STATE/admission/        root's, 0700
      lock                  held while notices and the scheduler are changed
      known.json            what the vendors have answered, and what is closed at the scheduler
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from qrmi_workflows.config.notices import BY_HAND, BY_STATE, operators, read_entries, valid_since
from qrmi_workflows.config.site import SitePolicy
from qrmi_workflows.errors import ConfigError, SchedulerError
from qrmi_workflows.site.job_folder import require_own_folder
from qrmi_workflows.state.files import write_atomically
from qrmi_workflows.state.locks import try_lock
from qrmi_workflows.state.users import user_name

__all__ = ["Known", "NoticeBoard", "Seen"]

_LOCK_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is known of a QPU from its vendor's answers.

    Attributes:
        answered: When the vendor last answered, in seconds since the epoch; when it was first
            asked, if it never has.
        away: Why the QPU is not operational; `None` if it is.
        since: When that became known.
        is_silent: Whether the vendor did not answer when it was last asked.
    """

    answered: float
    away: str | None = None
    since: float = 0.0
    is_silent: bool = False


@dataclass(slots=True, kw_only=True)
class Known:
    """What is kept between runs.

    Attributes:
        seen: What is known of each QPU, by name.
        marks: What is closed at the scheduler by this software.
    """

    seen: dict[str, Seen] = field(default_factory=dict)
    marks: frozenset[str] = frozenset()


class NoticeBoard:
    """The notices of a site, as an operator changes them.

    Args:
        site: The site policy.

    Raises:
        ConfigError: This user is no operator.
    """

    def __init__(self, site: SitePolicy) -> None:
        if os.geteuid() not in (allowed := operators(site)):
            names = " or ".join(sorted(user_name(uid) for uid in allowed))
            raise ConfigError(f"user {user_name()!r} may not do this; must be {names}.")
        self._site = site
        self._folder = site.folders.state / "admission"

    @contextmanager
    def changed(self) -> Iterator[Known]:
        """Keep others from changing anything; yield what is known.

        Raises:
            ConfigError: A folder belongs to somebody else, or a file cannot be understood.
            SchedulerError: Another process has been changing something for too long.
            OSError: The files could not be read or written.
        """
        self._create_folders()
        lock = self._folder / "lock"
        lock.touch(mode=0o600)
        with try_lock(lock, _LOCK_SECONDS) as is_held:
            if not is_held:
                raise SchedulerError(
                    f"{lock}: another `qpu site` command has held it for {_LOCK_SECONDS:g} s. "
                    "Check the scheduler's state and try again.",
                    retryable=True,
                )
            yield self._read()

    def save(self, known: Known) -> None:
        """Keep what is known; to be called under the lock, before the scheduler is changed."""
        document = {
            "seen": {name: asdict(seen) for name, seen in known.seen.items()},
            "marks": sorted(known.marks),
        }
        path = self._folder / "known.json"
        write_atomically(path, json.dumps(document), mode=0o600, durable=True)

    def post(self, messages: Mapping[str, str], *, since: float | None = None) -> None:
        """Write notices by hand; one that is there already keeps its time.

        Args:
            messages: The messages, by QPU.
            since: Since when the QPUs are away; since now if `None`.

        Raises:
            ConfigError: The file cannot be understood.
        """
        entries = self._entries(BY_HAND)
        for qpu, message in messages.items():
            before = entries.get(qpu)
            known = valid_since(before.get("since")) if isinstance(before, Mapping) else 0.0
            begun = known or since or time.time()
            entries[qpu] = {"message": message, "since": begun, "user": user_name()}
        self._write(BY_HAND, entries)

    def take_down(self, qpus: Iterable[str]) -> None:
        """Remove notices that were written by hand.

        Raises:
            ConfigError: The file cannot be understood.
        """
        gone = set(qpus)
        entries = self._entries(BY_HAND)
        self._write(BY_HAND, {name: each for name, each in entries.items() if name not in gone})

    def post_states(self, seen: Mapping[str, Seen]) -> None:
        """Replace the notices from the vendors' answers."""
        away = {name: each for name, each in seen.items() if each.away is not None}
        entries = {name: {"message": each.away, "since": each.since} for name, each in away.items()}
        self._write(BY_STATE, entries)

    def _entries(self, kind: str) -> dict[str, object]:
        path = self._site.folders.maintenance / kind
        return read_entries(path, operators(self._site), strict=True)

    def _write(self, kind: str, entries: Mapping[str, object]) -> None:
        path = self._site.folders.maintenance / kind
        text = json.dumps(entries, indent=1)
        if path.exists() and path.read_bytes() == text.encode():
            return
        write_atomically(path, text, durable=True)
        path.chmod(0o644)  # whatever the umask is

    def _create_folders(self) -> None:
        state, maintenance = self._site.folders.state, self._site.folders.maintenance
        state.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        maintenance.mkdir(parents=True, exist_ok=True)
        for folder in (state, self._folder):
            require_own_folder(folder)
        state.chmod(0o711)  # whatever the umask is
        require_own_folder(maintenance)
        maintenance.chmod(0o755)

    def _read(self) -> Known:
        path = self._folder / "known.json"
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            seen = {
                str(name): seen
                for name, each in document["seen"].items()
                if (seen := _seen(each)) is not None
            }
            marks = frozenset(map(_require_text, document["marks"]))
        except FileNotFoundError:
            return Known()
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            # Not just forgotten: it knows which partitions to open again.
            raise ConfigError(
                f"{path}: not as `qpu site reconcile` writes it. Remove it. If the partition of a "
                "QPU is DOWN, and nobody has closed it by hand, set it to UP."
            ) from error
        return Known(seen=seen, marks=marks)


def _require_text(mark: object) -> str:
    if not isinstance(mark, str):
        raise TypeError(f"mark {mark!r:.40}")
    return mark


def _seen(entry: Any) -> Seen | None:
    """Return what is known of a QPU, without what only later releases know.

    What cannot be understood is forgotten: the vendor is asked again anyway.
    """
    if not isinstance(entry, Mapping) or not (answered := valid_since(entry.get("answered"))):
        return None
    away = entry.get("away")
    return Seen(
        answered=answered,
        away=None if away is None else str(away),
        since=valid_since(entry.get("since")),
        is_silent=entry.get("is_silent") is True,
    )

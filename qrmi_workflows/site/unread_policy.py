"""Which jobs ask for a QPU, while nobody can read the site policy.

They must not start without their lease, and no other job of the site may be touched. So a job's
GRES and licences are compared to those of the last policy that could be read, of which a copy is
kept, and to those that can be made out in the file with the mistake.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from qrmi_workflows.config.qpus import load_qpus
from qrmi_workflows.config.site import QPUPolicy, load_site_policy
from qrmi_workflows.errors import ConfigError
from qrmi_workflows.schedulers.slurm_grants import GrantedJob
from qrmi_workflows.schedulers.slurm_scripts import ScriptJob
from qrmi_workflows.state.files import write_atomically

__all__ = ["asks_for_qpu", "keep_copy", "names_in"]

_COPY = "site.toml"
_SETTING = re.compile(r"""\b(?:gres|licence)["']?\s*=\s*["']?((?:\{qpu\}|[^"',#{}\s])+)""")


def keep_copy(policy: Path, state: Path) -> None:
    """Keep a copy of a policy that could be read.

    Args:
        policy: The file.
        state: The folder of root's files.
    """
    with suppress(OSError):
        text, copy = policy.read_bytes(), state / _COPY
        if not copy.exists() or copy.read_bytes() != text:
            write_atomically(copy, text, mode=0o600)


def asks_for_qpu(
    granted: GrantedJob, job: ScriptJob, *, policy: Path, state: Path, config: Path
) -> bool:
    """Return whether a job may have been granted a QPU.

    Args:
        granted: What it was granted.
        job: The job.
        policy: The site policy, which cannot be read.
        state: The folder of root's files.
        config: The site's `qrmi_config.json`.
    """
    if job.plugin_qpus:
        return not granted.is_batch  # QRMI's SPANK plugin acquires for batch jobs
    known = _last_policies(state)
    if any((each.gres or each.licence) and granted.grants.hold(each) for each in known):
        return True
    # What the last policy names as well counts as above: only with all that a QPU requires.
    named = {name.lower() for each in known for name in (each.gres, each.licence) if name}
    held = (granted.grants.gres | granted.grants.licences) - named
    seen = names_in(_text(policy))
    return _hold_any(held, seen if seen or known else _usual_names(config))


def names_in(text: str) -> set[str]:
    """Find the GRES and licences that a policy names, however malformed it is.

    Returns:
        Patterns in lower case, with `*` for the name of a QPU.
    """
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    found = _SETTING.findall("\n".join(lines))
    return {name.replace("{qpu}", "*").lower() for name in found} - {"*"}


def _hold_any(held: Iterable[str], patterns: Iterable[str]) -> bool:
    """Return whether one of a job's GRES and licences is among those that a policy names.

    A job may request a GRES without its type, and a licence may be that of another server.
    """
    names = {part for name in held for part in (name, name.partition("@")[0])}
    return any(
        fnmatchcase(name, pattern)
        or fnmatchcase(name, f"{pattern}:*")
        or pattern.startswith(f"{name}:")
        for name in names
        for pattern in patterns
    )


def _usual_names(config: Path) -> set[str]:
    """Return the names that `qpu doctor --write` proposes, if no policy is left to look at."""
    qpus: Iterable[str] = ()
    with suppress(ConfigError):
        qpus = load_qpus(config)
    ends = {f"{separator}{name.lower()}" for name in qpus for separator in (":", "_", "-")}
    return {"qpu", "qpu_*", "qpu-*", *(name.lower() for name in qpus), *(f"*{e}" for e in ends)}


def _last_policies(state: Path) -> list[QPUPolicy]:
    try:
        return list(load_site_policy(state / _COPY).qpus.values())
    except ConfigError:  # there is none, or an earlier version of this package has kept it
        return []


def _text(policy: Path) -> str:
    try:
        return policy.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

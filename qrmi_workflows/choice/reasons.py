"""Why QPUs were chosen, for the records of their leases.

A choice is made where a job is submitted; its lease is opened in the job. `$QPU_CHOICE` carries the
reasons from one to the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from qrmi_workflows.config.variables import QPU_CHOICE

if TYPE_CHECKING:
    from qrmi_workflows.choice.choose import Choice

__all__ = ["choice_variable", "note_choices", "why_chosen"]

_MOST = 1000  # characters
_noted: dict[str, str] = {}


def choice_variable(choices: Iterable[Choice]) -> dict[str, str]:
    """Render the variable that tells a job why its QPUs were chosen."""
    reasons = {each.qpu: _reason(each) for each in choices}
    return {QPU_CHOICE: json.dumps(reasons)} if reasons else {}


def note_choices(choices: Iterable[Choice]) -> None:
    """Keep why this process has chosen QPUs, for the leases that it opens next."""
    _noted.update({each.qpu: _reason(each) for each in choices})


def why_chosen(qpu: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return what was asked for, and why the QPU was chosen; empty if it was named."""
    if qpu in _noted:
        return _noted[qpu]
    try:
        reason = json.loads(environ.get(QPU_CHOICE) or "{}").get(qpu, "")
    except (ValueError, AttributeError, RecursionError):
        return ""
    return _in_one_line(reason) if isinstance(reason, str) else ""


def _reason(choice: Choice) -> str:
    return _in_one_line(f"{choice.request}: {choice.why}")


def _in_one_line(text: str) -> str:
    line = " ".join(text.split())[:_MOST]
    return "".join(each if each.isprintable() else "?" for each in line)

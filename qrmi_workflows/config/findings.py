"""What an examination of a site finds: the findings of `qpu doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Finding", "Severity"]


class Severity(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One finding.

    Attributes:
        check: What was examined, in a word (`licences`).
        severity: How bad it is.
        problem: What is wrong, with the value; or what was found, if all is well.
        remedy: What to do; empty if all is well.
    """

    check: str
    severity: Severity
    problem: str
    remedy: str = ""

    @classmethod
    def ok(cls, check: str, found: str) -> Finding:
        """Return a finding that all is well."""
        return cls(check=check, severity=Severity.OK, problem=found)

    @classmethod
    def warning(cls, check: str, problem: str, remedy: str) -> Finding:
        """Return a finding that may cause harm."""
        return cls(check=check, severity=Severity.WARNING, problem=problem, remedy=remedy)

    @classmethod
    def error(cls, check: str, problem: str, remedy: str) -> Finding:
        """Return a finding that keeps jobs from working, or QPUs from being safe."""
        return cls(check=check, severity=Severity.ERROR, problem=problem, remedy=remedy)

"""Find out from a failed job's log why it failed.

Logs may have any size, so only their ends are read. A Snakemake inside the job closes its log with
a dozen lines of its own; what the program has written comes before them.
"""

from __future__ import annotations

import re
from pathlib import Path

from qrmi_workflows.state.files import read_tail

__all__ = ["error_lines", "is_too_long_to_show", "read_error"]

_MAX_SHOWN_BYTES = 1_000_000
_SHOWN_LINES = 12
_LINE_CHARACTERS = 300

# As snakemake 9.27.1 writes them (`logging.DefaultFormatter`, `exceptions.print_exception`).
_TIMESTAMP = r"\[\w{3} \w{3} [ \d]\d [\d:]{8} \d{4}\]"
_RULE_STARTS = re.compile(
    rf"^{_TIMESTAMP}\n(?:local)?(?:rule|checkpoint) [^\n]+:\n(?:    [^\n]*\n)*", re.MULTILINE
)
_RULE_FAILED = re.compile(rf"^{_TIMESTAMP}\nError in (?:rule|group) ", re.MULTILINE)
_COMMAND_FAILED = re.compile(
    r"^RuleException:\nCalledProcessError in file .*? "
    r"(returned non-zero exit status \d+|died with [^\n]+)\.$",
    re.MULTILINE | re.DOTALL,
)
_NOISE = re.compile(
    rf"{_TIMESTAMP}$|(?:RuleException|WorkflowError):$"
    r"|Shutting down, this might take|Exiting because a job execution failed|Complete log\(s\): "
    r"|Storing output in storage|Elapsed time: |At least one job did not complete successfully"
    r"|Removing output files of failed job |Trying to restart job |(?:Select|Execute) .*jobs"
)


def read_error(log: Path | None, *, has_snakemake: bool) -> str:
    """Return the lines of a failed job's log that say why; empty if it cannot be read.

    Args:
        log: The log.
        has_snakemake: Whether the job ran a Snakemake, which writes to the log too.
    """
    try:
        text = read_tail(log) if log else ""
    except OSError:
        return ""
    lines = error_lines(text) if has_snakemake else text.splitlines()
    return "\n".join(f"    {_shorten(line)}" for line in lines[-_SHOWN_LINES:])


def is_too_long_to_show(log: Path | None) -> bool:
    """Return whether a log is too long for Snakemake to read and print whole."""
    try:
        return log is not None and log.stat().st_size > _MAX_SHOWN_BYTES
    except OSError:
        return False


def error_lines(text: str) -> list[str]:
    """Return what a program has written before its rule failed, without Snakemake's own lines.

    Args:
        text: The end of the log of a job that ran a Snakemake.
    """
    failure = _RULE_FAILED.search(text)  # the first, if several rules of a group have failed
    before = text[: failure.start()] if failure else text
    start = max((match.end() for match in _RULE_STARTS.finditer(before)), default=0)
    # Snakemake repeats the whole command, which its own message shows too.
    written = _COMMAND_FAILED.sub(r"Command \1.", before[start:])
    candidates = (written, text)
    return next((lines for each in candidates if (lines := _without_noise(each))), [])


def _without_noise(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip() and not _NOISE.match(line)]


def _shorten(line: str) -> str:
    if len(line) <= _LINE_CHARACTERS:
        return line
    return f"{line[:_LINE_CHARACTERS]}… ({len(line)} characters)"

"""`qpu doctor`: what is missing or misconfigured at this site, and what to do."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from qrmi_workflows.cli.types import CONFIG_OPTION, JSON_OPTION, Command
from qrmi_workflows.config.findings import Finding, Severity
from qrmi_workflows.errors import RequestError

__all__ = ["doctor"]

_STDOUT = "-"
_COLOURS = {Severity.OK: "green", Severity.WARNING: "yellow", Severity.ERROR: "red"}
_INDENT = 9


@click.command(cls=Command)
@CONFIG_OPTION
@JSON_OPTION
@click.option("-q", "--quiet", is_flag=True, help="Print only warnings and errors.")
@click.option(
    "--write",
    "output",
    is_flag=False,
    flag_value=_STDOUT,
    metavar="[FILE]",
    help="Propose a site.toml from what the scheduler grants, instead of checking: print it, or "
    "write it to a new FILE.",
)
def doctor(config: Path | None, as_json: bool, quiet: bool, output: str | None) -> int:
    """Find what is misconfigured at this site, and say what to do.

    It checks the site's two files, the modes of credentials, the vendors, the scheduler, clocks,
    KillWait, budgets, the state folder and its locks, users, versions and plugins. It changes
    nothing.

    The exit code is 0 if all is well, 1 if there are warnings, and 2 if there are errors, as
    monitoring systems expect.

    \b
    Examples:
      qpu doctor --quiet
      qpu doctor --write site.toml
    """  # noqa: D301
    if output is not None:
        return _write(output, config)
    from qrmi_workflows.site.doctor import examine_site

    findings = examine_site(config)
    if as_json:
        click.echo(json.dumps([asdict(each) for each in findings], indent=1))
    else:
        _print(findings, quiet=quiet)
    severities = {each.severity for each in findings}
    return 2 if Severity.ERROR in severities else 1 if Severity.WARNING in severities else 0


def _print(findings: Sequence[Finding], *, quiet: bool) -> None:
    width = max((len(each.check) for each in findings), default=0)
    for each in findings:
        if quiet and each.severity is Severity.OK:
            continue
        severity = click.style(f"{each.severity:<{_INDENT}}", fg=_COLOURS[each.severity])
        click.echo(f"{severity}{each.check:<{width}}  {each.problem}")
        if each.remedy:
            click.echo(f"{'':<{_INDENT}}{'':<{width}}  → {each.remedy}")
    counts = Counter(each.severity for each in findings)
    click.echo(
        f"{_count(counts[Severity.ERROR], 'error')}, {_count(counts[Severity.WARNING], 'warning')}"
    )


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _write(output: str, config: Path | None) -> int:
    from qrmi_workflows.site.proposal import propose_policy

    text = propose_policy(config)
    if output == _STDOUT:
        click.echo(text, nl=False)
        return 0
    try:
        with Path(output).open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise RequestError(
            f"{output} exists, and is not overwritten. Name another file, or compare the two: "
            f"`qpu doctor --write | diff {output} -`."
        ) from error
    click.echo(f"{output} is written; read it, then run `QPU_SITE={output} qpu doctor`.", err=True)
    return 0

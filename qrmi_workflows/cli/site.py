"""`qpu site`: what an administrator installs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qrmi_workflows.cli.admission import maintenance, reconcile
from qrmi_workflows.cli.types import JSON_OPTION, Group
from qrmi_workflows.errors import ConfigError

if TYPE_CHECKING:
    from qrmi_workflows.site.install import Installation

__all__ = ["site"]

_prefix = click.option(
    "--prefix",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/"),
    show_default=True,
    help="Read and write files below this folder instead of /, for packages and images.",
)
_slurm_conf = click.option(
    "--slurm-conf",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Slurm's configuration [default: $SLURM_CONF, or /etc/slurm/slurm.conf]; gres.conf is in "
    "the same folder.",
)
_write = click.option("--write", "is_written", is_flag=True, help="Write the files, as root.")


@click.group(cls=Group)
def site() -> None:
    """Set up a site's scheduler for QPUs, and take QPUs out of service."""


site.add_command(maintenance)
site.add_command(reconcile)


@site.command()
@_prefix
@_slurm_conf
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("/etc/slurm/qrmi_config.json"),
    show_default=True,
    help="The site's qrmi_config.json, which only root can read.",
)
@click.option(
    "--policy",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("/etc/qrmi-workflows/site.toml"),
    show_default=True,
    help="The site policy.",
)
@_write
@JSON_OPTION
def install(
    prefix: Path,
    slurm_conf: Path | None,
    config: Path,
    policy: Path,
    is_written: bool,
    as_json: bool,
) -> None:
    """Print what Slurm needs to acquire QPUs for jobs, or write it.

    This is a Prolog, a TaskProlog and an Epilog, lines of slurm.conf and gres.conf, and timers for
    `qpu reap --all` and `qpu site reconcile`. Scripts that the site already has run first. The
    first time, slurm.conf is kept as slurm.conf.before-qpu. The command is safe to repeat, also
    after the site policy has changed.
    """
    from qrmi_workflows.config.site import load_site_policy
    from qrmi_workflows.schedulers.slurm_site import find_conf
    from qrmi_workflows.site.install import SiteScripts, plan_installation, require_safe_python

    at_prefix = prefix / policy.absolute().relative_to("/")
    if not at_prefix.exists():
        raise ConfigError(
            f"{at_prefix} does not exist. Write the site policy first (`qpu doctor --write FILE` "
            "proposes one), or name it with --policy."
        )
    loaded = load_site_policy(at_prefix)
    scripts = SiteScripts(
        state=loaded.folders.state, config=config.absolute(), policy=policy.absolute()
    )
    if is_written and prefix == Path("/"):
        require_safe_python(scripts)
    conf = slurm_conf or find_conf()
    plan = plan_installation(loaded, scripts, slurm_conf=conf.absolute(), prefix=prefix)
    _carry_out(plan, prefix, is_written=is_written, as_json=as_json)


@site.command()
@_prefix
@_slurm_conf
@_write
@JSON_OPTION
def uninstall(prefix: Path, slurm_conf: Path | None, is_written: bool, as_json: bool) -> None:
    """Print what `qpu site install` has added, or remove it.

    Slurm's files become what they were before, except for later changes to other lines.
    """
    from qrmi_workflows.schedulers.slurm_site import find_conf
    from qrmi_workflows.site.install import plan_removal

    conf = slurm_conf or find_conf()
    plan = plan_removal(slurm_conf=conf.absolute(), prefix=prefix)
    _carry_out(plan, prefix, is_written=is_written, as_json=as_json)


def _carry_out(plan: Installation, prefix: Path, *, is_written: bool, as_json: bool) -> None:
    from qrmi_workflows.site.install import write

    changed = write(plan.files, prefix) if is_written else []
    if as_json:
        files = [
            {
                "path": str(each.path),
                "text": each.text,
                "mode": f"{each.mode:04o}",
                "added": list(each.added),
            }
            for each in plan.files
        ]
        document = {"files": files, "by_hand": plan.by_hand, "changed": list(map(str, changed))}
        click.echo(json.dumps(document, indent=1))
        return
    for path in changed:
        click.echo(f"{'written' if path.exists() else 'removed'}: {path}")
    if not is_written:
        _print(plan)
    if plan.by_hand:
        click.echo("\nTo do:" if plan.files else "To do:")
        for each in plan.by_hand:
            click.echo(f"- {each}")
    sys.exit(0)


def _print(plan: Installation) -> None:
    if not plan.files:
        click.echo("Nothing is installed.")
    for each in plan.files:
        if each.text is None:
            click.echo(f"# {each.path}: is removed")
        elif each.added:
            click.echo(f"# {each.path}: these lines are added; what they replace is commented out")
            click.echo("\n".join(each.added))
        elif each.path.suffix == ".conf":
            click.echo(f"# {each.path}: the added lines are removed")
        else:
            click.echo(f"# {each.path}, of mode {each.mode:04o}, root's")
            click.echo(each.text.rstrip("\n"))
        click.echo()

"""`qpu request`: print the options with which any tool submits a job that holds a QPU."""

from __future__ import annotations

import json
import shlex

import click

from qrmi_workflows.cli.types import JSON_OPTION, Command, constraint_options

__all__ = ["request"]


@click.command(cls=Command)
@click.argument("qpu", metavar="[REQUEST]", required=False)
@constraint_options
@click.option(
    "--count",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="How many units of each QPU to request; where jobs share it, each is a lane.",
)
@click.option(
    "--scheduler", "named", metavar="NAME", help="The scheduler; by default the site's own."
)
@click.option("--account", metavar="NAME", help="The account that the job will be charged to.")
@click.option("--partition", metavar="NAME", help="The job's partition, if you choose it yourself.")
@JSON_OPTION
def request(
    qpu: str | None,
    min_qubits: int | None,
    type_: str | None,
    where: str | None,
    count: int,
    named: str | None,
    account: str | None,
    partition: str | None,
    as_json: bool,
) -> None:
    """Print the scheduler's options for a job that uses a QPU.

    The options are those that the site policy sets for the QPU, on one line, for sbatch and for any
    tool that submits jobs. REQUEST is a QPU's name; NAME+NAME for a job that holds both; or a
    pattern (ibm_*) or alternatives (ibm_fez|ibm_torino), of which the least busy available one is
    chosen. With a condition, REQUEST may be omitted: any QPU that satisfies it may then be chosen.
    The choice and the reason for it are printed to stderr. While no QPU fits, the command waits
    for up to $QPU_CHOICE_WAIT seconds. For emulated:MODEL, there are no options.

    If the site cannot grant the request, nothing is printed to stdout, and the exit code is 2.

    \b
    Examples:
      sbatch $(qpu request ibm_fez) job.sh
      sbatch $(qpu request ibm_fez+FRESNEL) job.sh
      sbatch $(qpu request 'ibm_*' --where 'queue < 10') job.sh
    """  # noqa: D301
    from qrmi_workflows.choice.candidates import Asker
    from qrmi_workflows.cli.choosing import choose_for_job, describe_choices
    from qrmi_workflows.config.constraints import parse_qpus
    from qrmi_workflows.config.emulated import is_emulated
    from qrmi_workflows.config.site import site_policy_for
    from qrmi_workflows.errors import SchedulerError
    from qrmi_workflows.schedulers import load_scheduler, this_scheduler
    from qrmi_workflows.schedulers.base import QPURequest
    from qrmi_workflows.schedulers.several import check_all_offered, compile_requests
    from qrmi_workflows.vendors.emulated import find_emulated

    if (qpu, min_qubits, type_, where) == (None, None, None, None):
        raise click.UsageError("Missing argument 'REQUEST', or a condition such as --min-qubits.")
    constraints = parse_qpus(qpu, min_qubits=min_qubits, type=type_, where=where)
    asker = Asker(for_job=True, count=count, account=account, partition=partition, scheduler=named)
    names, choices = choose_for_job(constraints, asker)
    for name in filter(is_emulated, names):
        find_emulated(name)
    site = site_policy_for(names)
    asked = [QPURequest(qpu=name, count=count) for name in names]
    scheduler = load_scheduler(named) if named else this_scheduler()
    options = compile_requests(asked, site, scheduler, account=account, partition=partition)
    try:
        check_all_offered(asked, site, scheduler)
    except SchedulerError as error:  # for example in a container, without the scheduler's commands
        click.echo(f"qpu: not checked against the scheduler: {error}", err=True)
    if as_json:
        shown = {"qpu": "+".join(names), "count": count, "scheduler": scheduler.name}
        chosen = {"choices": describe_choices(choices)} if choices else {}
        click.echo(json.dumps({**shown, "options": options, **chosen}, indent=1))
    elif options:
        click.echo(shlex.join(options))

"""The batch scripts of a stage's own jobs, the keeper's and the guard's (pure functions)."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence

from qrmi_workflows.schedulers.base import Scheduler

__all__ = ["render_guard_script", "render_keeper_script"]

_KEEPER = """\
#!/bin/bash
{directives}
{exports}
stopped=
trap 'stopped=1' HUP INT TERM
for attempt in 1 2 3 4 5 6; do
    {command}
    status=$?
    case "$stopped$status" in
        132|134|135|136|137|139) ;;
        *) break ;;
    esac
    signal=$((status - 128))
    echo "$(date +%FT%T) qpu: the keeper was killed by signal $signal (attempt $attempt of 6)" >&2
    sleep 1
done
exit "$status"
"""
# trap, because the shell must outlive the keeper, which the scheduler signals too: if the batch
# script ended first, the scheduler would kill the keeper, which could not release the lease.
# The loop, because only the keeper's process may have been killed, for example by the kernel when
# memory ran out, or have crashed (SIGILL, SIGABRT, SIGBUS, SIGFPE, SIGKILL, SIGSEGV). The next one
# takes the lease over, or releases it and opens another.
# The exit status, because the jobs that wait for a keeper are cancelled unless it is 0.

_GUARD = """\
#!/bin/bash
{directives}
{exports}
exec {command}
"""


def render_keeper_script(
    command: Sequence[str],
    *,
    scheduler: Scheduler,
    options: Iterable[str],
    exports: Mapping[str, str],
) -> str:
    """Render the script that runs the keeper, and starts it again if it is killed.

    Args:
        command: The keeper's command.
        scheduler: The scheduler's hooks.
        options: The job's options.
        exports: Variables for the command; never credentials, because schedulers store scripts.
    """
    return _render(_KEEPER, command, scheduler, options, exports)


def render_guard_script(
    command: Sequence[str],
    *,
    scheduler: Scheduler,
    options: Iterable[str],
    exports: Mapping[str, str],
) -> str:
    """Render the script that cleans up after a keeper; see `render_keeper_script`."""
    return _render(_GUARD, command, scheduler, options, exports)


def _render(
    template: str,
    command: Sequence[str],
    scheduler: Scheduler,
    options: Iterable[str],
    exports: Mapping[str, str],
) -> str:
    return template.format(
        directives="\n".join(map(scheduler.directive, options)),
        exports="\n".join(f"export {name}={shlex.quote(text)}" for name, text in exports.items()),
        command=shlex.join(command),
    )

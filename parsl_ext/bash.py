"""Bash apps that use a QPU."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

from parsl.app.bash import remote_side_bash_executor
from parsl.app.errors import AppException, AppTimeout

from parsl_ext.block import BlockCall, block_lease, cancel_left_tasks

__all__ = ["BashCall"]


class BashCall(BlockCall):
    """A function whose command line workers run, with bash, as a step.

    Parsl's own bash app (read in 2026.10.26) leaves the command running when its walltime is over,
    and its tasks. Here the command runs under `timeout` of the GNU coreutils.
    """

    def __init__(self, body: Callable[..., Any], qpu: str | None) -> None:
        super().__init__(body, qpu)
        self._mark(True)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the command line that the function returns."""
        block_lease(self._qpu)  # fails if the block does not hold the QPU
        streams = {name: kwargs[name] for name in ("stdout", "stderr", "outputs") if name in kwargs}

        def compose(**_: Any) -> Any:
            command, walltime = self._call_body(args, kwargs), kwargs.get("walltime")
            if walltime is None or not isinstance(command, str):
                return command  # Parsl refuses what is not a command line
            return f"exec timeout --kill-after=30 {walltime} bash -c {shlex.quote(command)}"

        compose.__name__ = self._body.__name__
        try:
            return remote_side_bash_executor(compose, **streams)
        except AppException as error:
            # Parsl wraps the `AppTimeout` that arrives while the command runs.
            if not any(isinstance(each, AppTimeout) for each in (error, *error.args)):
                raise
            cancel_left_tasks()  # in a block, a stopped `qpu run` leaves its task to a retry
            raise AppTimeout(f"{compose.__name__}() exceeded its walltime") from error

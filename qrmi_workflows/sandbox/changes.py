"""What cannot change while a sandbox is up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qrmi_workflows.errors import SandboxError
from qrmi_workflows.sandbox.layout import Layout
from qrmi_workflows.sandbox.state import State

__all__ = ["NO_MULTIPLE_SLURMD", "OneNodeOnlyError", "require_unchanged", "settings_file"]

NO_MULTIPLE_SLURMD = (
    "this Slurm was built without --enable-multiple-slurmd, so one machine can be only one node"
)


class OneNodeOnlyError(SandboxError):
    """This Slurm cannot run several nodes on one machine."""


def require_unchanged(
    state: State,
    layout: Layout,
    *,
    nodes: int | None,
    qpus: Sequence[str],
    config: Path | None,
    site_scripts: bool | None,
    accounting: bool | None,
) -> None:
    """Refuse to change a sandbox that is up.

    Raises:
        SandboxError: It has other nodes, QPUs or settings.
    """
    if nodes is not None and nodes > 1 and not state.multiple_slurmd:
        raise OneNodeOnlyError(f"nodes={nodes}: {NO_MULTIPLE_SLURMD}. Leave out --nodes.")
    settings = settings_file(layout)
    running_qpus = f"QPUs {', '.join(state.qpus)}" if state.qpus else "the default QPUs"
    is_different = {
        f"{state.nodes} nodes": nodes not in (None, state.nodes),
        running_qpus: bool(qpus) and tuple(qpus) != state.qpus,
        f"{'' if state.site_scripts else 'no '}scripts of the site": site_scripts
        not in (None, state.site_scripts),
        f"{'no ' if state.database_port is None else ''}accounting": accounting
        not in (None, state.database_port is not None),
        "other emulator settings": config is not None
        and (settings is None or config.read_bytes() != settings.read_bytes()),
    }
    if differences := [what for what, differs in is_different.items() if differs]:
        raise SandboxError(
            f"the sandbox in {layout.directory} is up with {' and '.join(differences)}. Stop it "
            "with `qpu sandbox down` first, or choose another directory with --dir."
        )


def settings_file(layout: Layout) -> Path | None:
    """Return the emulator's settings file, if the sandbox has one."""
    return layout.emulator_settings if layout.emulator_settings.exists() else None

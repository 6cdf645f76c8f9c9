"""`qpu site maintenance`: take QPUs out of service by hand, and back."""

from __future__ import annotations

from collections.abc import Sequence

from qrmi_workflows.config.site import SitePolicy
from qrmi_workflows.errors import ConfigError
from qrmi_workflows.schedulers import scheduler_of
from qrmi_workflows.site.admission import Applied, apply
from qrmi_workflows.site.notice_board import NoticeBoard

__all__ = ["end_maintenance", "start_maintenance"]

_LONGEST = 500


def start_maintenance(qpus: Sequence[str], message: str, site: SitePolicy) -> Applied:
    """Have no job of these QPUs start until `end_maintenance`; running jobs go on.

    Args:
        qpus: Their names.
        message: Why; users see it.
        site: The site policy.

    Raises:
        UnknownQPUError: The site does not offer one of them.
        ConfigError: This user may not do this, or the message is not one line.
        SchedulerError: The scheduler did not answer. The QPUs are in maintenance all the same: the
            next `qpu site reconcile` makes up for it.
    """
    _require_line(message)
    _require_offered(qpus, site)
    board = NoticeBoard(site)
    with board.changed() as known:
        board.post(dict.fromkeys(qpus, message))
        return apply(board, known, site, scheduler_of(site).admission())


def end_maintenance(qpus: Sequence[str], site: SitePolicy) -> Applied:
    """Let jobs of these QPUs start again, unless their vendors say that they are not operational.

    Raises:
        UnknownQPUError: The site does not offer one of them.
        ConfigError: This user may not do this.
        SchedulerError: The scheduler did not answer; the next `qpu site reconcile` makes up for it.
    """
    _require_offered(qpus, site)
    board = NoticeBoard(site)
    with board.changed() as known:
        board.take_down(qpus)
        return apply(board, known, site, scheduler_of(site).admission())


def _require_offered(qpus: Sequence[str], site: SitePolicy) -> None:
    for name in qpus:
        if site.qpu(name).name not in site.qpus:  # an emulated one is on offer anywhere
            raise ConfigError(f"QPU {name!r}: is not a QPU of this site. Name one that is.")


def _require_line(message: str) -> None:
    if not message.isprintable() or len(message) > _LONGEST:
        raise ConfigError(
            f"message of {len(message)} characters: must be one line of at most {_LONGEST} "
            "printable characters. Correct --message."
        )

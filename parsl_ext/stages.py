"""Stages of several jobs: the lease that blocks of several executors share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qrmi_workflows.config.emulated import refuse_emulated_stage
from qrmi_workflows.config.site import SitePolicy
from qrmi_workflows.errors import RequestError
from qrmi_workflows.lease.stage_folder import require_stage_name
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.stages.opening import MODES, Mode

__all__ = ["QPUStage", "resolve_stage"]


@dataclass(frozen=True, slots=True)
class QPUStage:
    """A stage of several jobs, which a run of Parsl opens: blocks share the lease of its keeper.

    `QPUSlurmProvider(qpu="ibm_fez", stage="vqe")` is short for a stage with the defaults.

    Parameters
    ----------
    name : str
        The stage's name, unique among the user's open stages.
    qpu : str | None
        The QPU's name. If None, that of the providers with this stage, or of an open stage.
    mode : {"auto", "dedicated", "batch"}
        The kind of session: dedicated for a loop whose calls wait for each other's results, batch
        for many calls that do not. By default, the keeper decides.
    warm_up : bool
        Whether the keeper runs a minimal task first, where the vendor makes a session active only
        with a task. Default is True.
    lanes : int | None
        How many tasks of the stage may run at once. If None, what the site policy says.
    idle_limit : float | None
        The keeper ends after so many seconds without a block, a process and a task.
    walltime, partition, account : str | None
        Of the keeper's job, as in `QPUSlurmProvider`; the site's defaults if None.
    options : sequence of str
        More options of the scheduler for the keeper's job, such as `"--reservation=qday"`.

    Raises
    ------
    RequestError
        The name is not a plain name, or an option has a value that is not allowed.
    """

    name: str
    qpu: str | None = None
    mode: Mode = "auto"
    warm_up: bool = True
    lanes: int | None = None
    idle_limit: float | None = None
    walltime: str | None = None
    partition: str | None = None
    account: str | None = None
    options: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse what no stage can have."""
        require_stage_name(self.name)
        options = (self.options,) if isinstance(self.options, str) else tuple(self.options)
        object.__setattr__(self, "options", options)  # so that two stages can be compared
        if self.mode not in MODES:
            raise RequestError(
                f"mode={self.mode!r} of stage {self.name!r}: must be one of: "
                f"{', '.join(MODES)}. Leave it out to let the keeper decide."
            )
        if self.lanes is not None and self.lanes < 1:
            raise RequestError(
                f"lanes={self.lanes} of stage {self.name!r}: must be a positive integer. Leave it "
                "out for those of the site policy."
            )
        if self.idle_limit is not None and not self.idle_limit > 0:  # NaN is not
            raise RequestError(
                f"idle_limit={self.idle_limit} of stage {self.name!r}: must be above zero, in "
                "seconds. Leave it out for the default."
            )


def resolve_stage(
    stage: QPUStage | str | None, requests: Sequence[QPURequest], policy: SitePolicy
) -> QPUStage | None:
    """Return the stage of a provider's blocks, with their QPU.

    Parameters
    ----------
    stage : QPUStage | str | None
        What the provider was given.
    requests : sequence of QPURequest
        The QPUs of each block; empty if the blocks are classical.
    policy : SitePolicy
        The site policy.

    Raises
    ------
    RequestError
        A stage cannot serve these blocks, or they have neither a stage nor a QPU.
    UnknownQPUError
        The site does not offer the stage's QPU.
    """
    if stage is None:
        if not requests:
            raise RequestError(
                "qpu=None: must be a QPU, unless a stage is given. For blocks without either, use "
                "one of Parsl's own providers."
            )
        return None
    stage = QPUStage(stage) if isinstance(stage, str) else stage
    if len(requests) > 1 or any(each.count > 1 for each in requests):
        raise RequestError(
            f"stage {stage.name!r}: its blocks must use one QPU, with count=1. Name a stage for "
            "each QPU, on an executor of its own."
        )
    for qpu in (*(each.qpu for each in requests), stage.qpu or ""):
        refuse_emulated_stage(qpu)
    for request in requests:
        if stage.qpu not in (None, request.qpu):
            raise RequestError(
                f"stage {stage.name!r} is for QPU {stage.qpu!r}, but its blocks are for "
                f"{request.qpu!r}: both must be the same. Leave out `qpu` of the `QPUStage`."
            )
        stage = replace(stage, qpu=request.qpu)
    if stage.qpu is not None:
        policy.qpu(stage.qpu)
    return stage

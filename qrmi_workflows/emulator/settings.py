"""The emulator's settings: its QPUs and how each behaves."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from qrmi_workflows.emulator.durations import Duration
from qrmi_workflows.emulator.faults import FaultRule
from qrmi_workflows.errors import EmulatorError

__all__ = ["EmulatorSettings", "QPUSettings", "ServerSettings"]

_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How a QPU's server behaves where real servers differ, or where that is not documented.

    Clients may rely on neither value of a setting. The default is what the vendor documents, or
    what was observed. A dialect names the settings that it has in `Dialect.server_settings`.

    Attributes:
        bills_cancelled_tasks: Whether the time of a task that its owner cancelled is billed. IBM's
            page on usage says so; other vendors do not say.
        bills_failed_tasks: Whether the time of a failed task is billed. IBM bills a mistake of the
            user's, but no error of its own; other vendors do not say.
        bills_inactive_sessions: Whether IBM bills a dedicated session also while it is inactive,
            after the interactive TTL. IBM's page on usage says that only an active one is.
        bills_own_errors: Whether the time of a task is billed that the QPU itself has failed, by
            going offline. IBM says that an error of its own is free; other vendors do not say.
        cancel_route: Whether tasks can be cancelled; if not, the route does not exist (404).
        closing_cancels_running: Whether closing a session also cancels its running tasks.
        counts_others: Whether the length of the queue that the server tells includes the tasks of
            other customers. IBM documents it as the length of the backend's queue; other vendors do
            not say.
        encodes_if_asked: Whether IBM's results have Qiskit's encoding if the job's parameters have
            `support_qiskit: true`, and are plain JSON otherwise; if not, the other way round.
        finished_jobs_hold_lanes: Whether a job keeps its lane after its end, until it is deleted.
        has_measurements: Whether IQM's server keeps the bits of each shot of a job; if not, only
            their counts. QRMI's client takes either artifact to be optional.
        json_results: Whether results are JSON; otherwise they are Python's repr of the same data.
        limits_shots: Whether more shots than the backend's `max_shots` fail a job of IBM's, with
            code 6000. IBM's page on job limits says that this limit is no longer enforced.
        log_route: Whether a task's log can be requested.
        offline_fails_running: Whether the tasks that are running fail when the QPU goes offline; if
            not, they run to their end. No vendor says.
        nests_samples: Whether the samples of IBM's plain JSON are nested lists in the shape of the
            parameter values; if not, they are one flat list. IBM documents only one list.
        quoted_programs: Whether Pasqal takes a sequence, and Felis QIR, as the content of a JSON
            string. QRMI's `task_runner` (0.26.4) quotes QIR, and sequences that its payload has as
            text; what the vendors make of it is not documented.
        refuses_offline: Whether IBM Quantum Compute Service refuses an offline QPU's tasks; if not,
            they wait until it is back. IBM does not say.
        repeated_jobs_accepted: Whether a job that is submitted twice with the same id is accepted
            both times, as one; otherwise the second submission is refused (409).
        root_opens_sessions: Whether only root can open and close sessions, for all users.
        refuses_closed_sessions: Whether it refuses to close a session that has ended already.
        has_timeslot: Whether IQM's account has booked a timeslot of the QPU, which is now. Without
            one, jobs with `use_timeslot` are refused (403).
        sorts_parameters: Whether IBM takes the values for a program in OpenQASM in the order of
            Qiskit's parameters, which are sorted by name; if not, in the order of the declarations.
            IBM does not say.
    """

    bills_cancelled_tasks: bool = True
    bills_failed_tasks: bool = True
    bills_inactive_sessions: bool = False
    bills_own_errors: bool = False
    cancel_route: bool = True
    closing_cancels_running: bool = True
    counts_others: bool = True
    encodes_if_asked: bool = True
    finished_jobs_hold_lanes: bool = False
    has_measurements: bool = True
    json_results: bool = True
    limits_shots: bool = True
    log_route: bool = False
    nests_samples: bool = True
    offline_fails_running: bool = False
    quoted_programs: bool = True
    refuses_offline: bool = False
    repeated_jobs_accepted: bool = True
    root_opens_sessions: bool = True
    refuses_closed_sessions: bool = False
    has_timeslot: bool = False
    sorts_parameters: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class QPUSettings:
    """One emulated QPU.

    Attributes:
        name: The QPU's name, as jobs request it.
        type: QRMI's resource type, which selects the dialect.
        model: The machine it imitates (`fez`, `AnalogDevice`).
        simulator: The engine that computes its results.
        noise: Whether to add the model's calibrated noise to results.
        exact: Whether to omit shot noise from estimates, for any requested precision.
        strict: Whether to require the model's native instructions, as IBM's machines do.
        lanes: The number of tasks prepared in parallel.
        preparation: The time a lane needs to prepare a task.
        execution: The time the device needs to execute a task; `None`: the simulator's run time.
        pub_seconds: What each PUB of a task adds to `execution`.
        queue: The time that a task outside of an active session waits for other customers' work.
        overhead_seconds: What the vendor bills for each task in addition to its QPU seconds.
        interactive_ttl_seconds: The time after which an idle session loses the device.
        server: How its server behaves where real servers differ.
    """

    name: str
    type: str
    model: str
    simulator: str
    noise: bool = False
    exact: bool = False
    strict: bool = False
    lanes: int = 5
    preparation: Duration = field(default_factory=Duration)
    execution: Duration | None = None
    pub_seconds: float = 0.0
    queue: Duration = field(default_factory=Duration)
    overhead_seconds: float = 0.0
    interactive_ttl_seconds: float = 60.0
    server: ServerSettings = ServerSettings()

    def __post_init__(self) -> None:
        """Check the name and the number of lanes; `settings_file` checks against the dialect."""
        where = f"QPU {self.name!r}"
        if not _NAME.fullmatch(self.name):
            raise EmulatorError(
                f"{where}: a name may only contain letters, digits, `_`, `.` and `-`. Rename it."
            )
        if self.lanes < 1:
            raise EmulatorError(
                f"{where}: lanes = {self.lanes}: must be a positive integer. Set at least 1."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatorSettings:
    """Settings of one emulator.

    Attributes:
        qpus: Its QPUs, by name.
        seed: The seed of all random numbers, with which the same jobs give the same results;
            `None`: all results are independent, as on a QPU.
        workers: The number of simulation processes.
        worker_memory_gib: The memory limit of one simulation, in GiB.
        simulation_seconds: The limit on the computing time of a circuit that is too wide for a
            state vector, and of an estimate whose shots are simulated one by one.
        record: Whether to write every request to `requests.jsonl` in the state folder.
        faults: The fault rules that apply from the start.
    """

    qpus: Mapping[str, QPUSettings]
    seed: int | None = None
    workers: int = field(default_factory=lambda: max(2, os.cpu_count() or 1))
    worker_memory_gib: float = 4.0
    simulation_seconds: float = 50.0
    record: bool = False
    faults: tuple[FaultRule, ...] = ()

    @property
    def types(self) -> tuple[str, ...]:
        """The resource types of its QPUs, sorted."""
        return tuple(sorted({qpu.type for qpu in self.qpus.values()}))

"""One error of every class, with values for all of its attributes."""

from qrmi_workflows import errors

EXAMPLES = [
    errors.QPUError("no"),
    errors.ConfigError("no"),
    errors.UnknownQPUError("ibm_fex", ["ibm_fez", "FRESNEL"], "in a.json", "Look."),
    errors.RequestError("no"),
    errors.PayloadError("no"),
    errors.ResultError("no"),
    errors.UndecodedResultError("no", None),
    errors.BudgetError("no", "user ada", 1.0, 2.0, "shots", "2026-12-01T00:00:00+00:00", True),
    errors.LeaseError("no", "ibm_fez", True),
    errors.StepMovedError("no", "ibm_fez", "ibm_torino"),
    errors.ResourceError("no", "ibm_fez", "task_start", 503, True, True),
    errors.AuthenticationError("no", "ibm_fez", "task_start", 401),
    errors.DeadlineError("no", "ibm_fez", "status", retryable=True),
    errors.QPUGoneError("no", "ibm_fez", "status", None, True, True),
    errors.SessionEndedError("no", "ibm_fez", "task_start", 400, True, True),
    errors.TaskError("no", "ibm_fez", "t1"),
    errors.TaskFailedError("no", "ibm_fez", "t1"),
    errors.TaskCancelledError("no", "ibm_fez", "t1"),
    errors.TaskUnknownError("no", "ibm_fez", "t1"),
    errors.AmbiguousTaskError("no", "ibm_fez"),
    errors.JournalError("no"),
    errors.SchedulerError("no", ("sbatch", "x"), 1, "denied", True),
    errors.SandboxError("no"),
    errors.EmulatorError("no"),
]

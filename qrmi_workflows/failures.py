"""Which failure it was: QRMI's exceptions as ours.

Their class and their text are all that tells them apart: what may be tried again, what certainly
was not carried out, and what the vendor said.
"""

from __future__ import annotations

import re

from qrmi_workflows.errors import (
    AuthenticationError,
    ConfigError,
    ResourceError,
    SessionEndedError,
    TaskUnknownError,
)

__all__ = ["classify"]

_STATUS = re.compile(r"(?:status(?: code)?|body|http)[ :=(]*([1-5]\d\d)\b", re.IGNORECASE)
_TRANSIENT = frozenset({408, 423, 425, 429, 500, 502, 503, 504})
# A gateway may answer 5xx for a server that has carried the request out; 4xx comes before that.
_NOT_ACTED_ON = frozenset(range(400, 500)) - {408}
_REFUSALS = frozenset({"UnsupportedPayloadError", "UnsupportedFunctionError"})
_STATUS_OF_CLASS = {
    "InvalidInputError": 400,
    "AuthenticationFailedError": 401,
    "ResourceNotFoundError": 404,
    "TaskNotFoundError": 404,
}
_CUT_OFF = re.compile(
    r"error sending request|error decoding|serde|EOF while parsing", re.IGNORECASE
)
_SESSION = re.compile(r"\bsession\b.*\b(closed|expired|ended|not found)\b", re.IGNORECASE)


def classify(
    error: Exception, qpu: str, method: str, args: tuple[object, ...]
) -> ResourceError | ConfigError | TaskUnknownError:
    """Turn what a call of QRMI's client raised into the error to raise instead.

    Args:
        error: QRMI's exception.
        qpu: The QPU's name.
        method: The method that was called.
        args: Its arguments; the first of the methods about one task is the task's id.
    """
    name, text = type(error).__name__, str(error)
    match = _STATUS.search(text)
    status = int(match[1]) if match else _STATUS_OF_CLASS.get(name)
    said = f"QPU {qpu!r}: {method} failed: {text.rstrip()}"
    if name in ("ConfigError", "EnvVarNotSetError"):
        return ConfigError(f"{said}. Correct its `environment` in qrmi_config.json.")
    if status == 404 and method.startswith("task_") and method != "task_start":
        return TaskUnknownError(f"{said}. The vendor does not know it.", qpu, str(args[0]))
    if status == 401:
        remedy = "Renew the QPU's credentials in qrmi_config.json."
        return AuthenticationError(f"{said}. {remedy}", qpu, method, 401, refused=True)
    if method == "task_start" and status in (400, 404) and _SESSION.search(text):
        return SessionEndedError(said, qpu, method, status, retryable=True, refused=True)
    transient = status in _TRANSIENT or (status is None and bool(_CUT_OFF.search(text)))
    refused = name in _REFUSALS or status in _NOT_ACTED_ON
    if transient:
        said = f"{said.removesuffix('.')}. Look at its state with `qpu list`; try again later."
    return ResourceError(said, qpu, method, status, transient, refused)

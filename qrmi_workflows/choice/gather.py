"""Gather what is known of QPUs: their targets, states, notices and free units.

The vendors and the scheduler are asked in parallel, with short deadlines; their answers are kept in
the cache for a few seconds, across the steps and processes of a user. Who does not answer is not
known, and does not hold up the next choices.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from qrmi_workflows.choice.cache import cache_file, read_cached, write_cached
from qrmi_workflows.choice.facts import Facts
from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.client.states import Answer, ask_in_parallel, ask_state
from qrmi_workflows.client.targets import (
    QPUTarget,
    cached_since,
    cached_target,
    fetch_target,
)
from qrmi_workflows.config.job import JobQPU
from qrmi_workflows.config.notices import read_notices
from qrmi_workflows.config.site import QPUPolicy, SitePolicy
from qrmi_workflows.errors import QPUError, ResultError
from qrmi_workflows.schedulers import scheduler_of
from qrmi_workflows.schedulers.admission import Capacity
from qrmi_workflows.vendors.capabilities import Capabilities
from qrmi_workflows.vendors.registry import capabilities

__all__ = ["FRESH_SECONDS", "gather", "gone"]

FRESH_SECONDS = 5.0
"""For how long the answers of vendors and scheduler are used."""

_CONFIRM_SECONDS = 0.5
_SILENT_SECONDS = 30.0  # for which who did not answer is not asked again
_STATE_SECONDS = 4.0
_TARGET_SECONDS = 30.0
_SCHEDULER_SECONDS = 5.0
_FACTS_SECONDS = 30 * 86400.0
_NO_DEFINITION = "no definition of it can be read"


def gather(
    known: Mapping[str, tuple[JobQPU | None, QPUPolicy | None]],
    site: SitePolicy | None,
    *,
    target_hours: float | None = None,
    environ: Mapping[str, str] = os.environ,
) -> dict[str, Facts]:
    """Return what is known of QPUs.

    Args:
        known: The definition and the site's policy of each, by name, as far as there are any.
        site: The site policy, if there is one.
        target_hours: How old the targets may be, if what they say matters. Those that are not in
            the cache are fetched.
        environ: The environment.
    """
    definitions = {name: each for name, (each, _) in known.items() if each is not None}
    notices = {} if site is None else read_notices(site)
    capacities, counted = _capacities(site, environ)
    answers = _answers(definitions, environ)
    targets = {} if target_hours is None else _targets(definitions, target_hours, environ)
    found = {}
    for name, (definition, policy) in known.items():
        answer, asked = answers.get(name, (_NO_DEFINITION, counted))
        target = targets.get(name, _Target())
        found[name] = Facts(
            name=name,
            definition=definition,
            policy=policy,
            answer=None if isinstance(answer, str) else answer,
            silence=answer if isinstance(answer, str) else "",
            capabilities=target.capabilities,
            calibrated=target.calibrated,
            unknown_target=target.problem if definition is not None else _NO_DEFINITION,
            notice=notices.get(name),
            capacity=capacities.get(name),
            is_offered=not capacities or name in capacities or not _is_counted(policy),
            asked=min(asked, counted),
        )
    return found


def _is_counted(policy: QPUPolicy | None) -> bool:
    return policy is not None and bool(policy.gres or policy.licence)


def gone(qpus: Mapping[str, JobQPU], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return which QPUs are not operational any more, and why; the vendors are asked again.

    The next choice knows their answers.

    Args:
        qpus: The definitions of the QPUs, by name.
        environ: The environment.
    """
    answers = _answers(qpus, environ, fresh_seconds=_CONFIRM_SECONDS)
    return {
        name: answer.reason or f"it is {answer.state}"
        for name, (answer, _) in answers.items()
        if isinstance(answer, Answer) and not answer.is_operational
    }


def _state_file(qpu: JobQPU, environ: Mapping[str, str]) -> Path | None:
    return cache_file(f"state-{qpu.name}-{qpu.identity}.json", environ)


def _answers(
    definitions: Mapping[str, JobQPU],
    environ: Mapping[str, str],
    fresh_seconds: float | None = None,
) -> dict[str, tuple[Answer | str, float]]:
    """Return the vendors' answers, or why there is none, and when they were asked."""
    fresh = FRESH_SECONDS if fresh_seconds is None else fresh_seconds
    found: dict[str, tuple[Answer | str, float]] = {}
    for name, definition in definitions.items():
        document = read_cached(_state_file(definition, environ), _SILENT_SECONDS)
        if document is None:
            continue
        at = float(document.pop("at"))
        silence = document.pop("silence", "")
        if silence:
            found[name] = str(silence), at
        elif abs(time.time() - at) < fresh:
            try:
                found[name] = Answer(**document), at
            except TypeError:  # of another release
                continue
    missing = {name: each for name, each in definitions.items() if name not in found}
    if not missing:
        return found
    at = time.time()
    asked = ask_in_parallel(
        lambda definition: ask_state(definition, seconds=_STATE_SECONDS),
        missing,
        seconds=_STATE_SECONDS,
        in_all=_STATE_SECONDS + 1.0,
    )
    for name, definition in missing.items():
        answer = asked.get(name, "not asked in time")
        document = {"silence": answer} if isinstance(answer, str) else asdict(answer)
        write_cached(_state_file(definition, environ), document, at=at)
        found[name] = answer, at
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    capabilities: Capabilities = field(default_factory=Capabilities)
    calibrated: float | None = None
    problem: str = ""


def _targets(
    definitions: Mapping[str, JobQPU], hours: float, environ: Mapping[str, str]
) -> dict[str, _Target]:
    """Return what the QPUs' targets say; those that are not cached are fetched."""
    found = {}
    for name, definition in definitions.items():
        if (target := _known_target(definition, hours, environ)) is not None:
            found[name] = target
    missing = {name: each for name, each in definitions.items() if name not in found}
    if not missing:
        return found

    def fetch(definition: JobQPU) -> QPUTarget:
        limits = {"target": _TARGET_SECONDS}
        resource = QRMIResource(
            definition.name, definition.type, definition.environment, deadlines=limits
        )
        try:
            return fetch_target(definition, resource=resource, max_age_hours=hours, environ=environ)
        finally:
            resource.close()

    asked = ask_in_parallel(fetch, missing, seconds=_TARGET_SECONDS, in_all=_TARGET_SECONDS + 1.0)
    for name, definition in missing.items():
        fetched = asked.get(name, "not asked in time")
        if isinstance(fetched, str):
            found[name] = _Target(problem=fetched)
            path = _facts_file(definition, environ)
            write_cached(path, {"problem": fetched}, at=time.time())
        else:
            since = cached_since(definition, environ=environ)
            found[name] = _read(definition, fetched, since, environ)
    return found


def _facts_file(qpu: JobQPU, environ: Mapping[str, str]) -> Path | None:
    return cache_file(f"facts-{qpu.name}-{qpu.identity}.json", environ)


def _known_target(definition: JobQPU, hours: float, environ: Mapping[str, str]) -> _Target | None:
    """Return what the cache has; a target may have a megabyte, so what it says is kept, too."""
    fetched = cached_since(definition, max_age_hours=hours, environ=environ)
    document = read_cached(_facts_file(definition, environ), _FACTS_SECONDS)
    if document is not None and fetched is not None and document.get("fetched") == fetched:
        gates = document.get("gates")
        return _Target(
            capabilities=Capabilities.of(document.get("qubits"), gates),
            calibrated=document.get("calibrated"),
        )
    if fetched is not None and (target := cached_target(definition, environ=environ)) is not None:
        return _read(definition, target, fetched, environ)
    is_recent = document is not None and abs(time.time() - document["at"]) < _SILENT_SECONDS
    if document is not None and is_recent and "problem" in document:
        return _Target(problem=str(document["problem"]))
    return None


def _read(
    definition: JobQPU, target: QPUTarget, fetched: float | None, environ: Mapping[str, str]
) -> _Target:
    try:
        found = capabilities(definition.type, target.text, qpu=definition.name)
    except ResultError as error:
        return _Target(problem=str(error))
    calibrated = _seconds(target.calibrated)
    if fetched is not None:
        document = {
            "fetched": fetched,
            "qubits": found.qubits,
            "gates": None if found.gates is None else sorted(found.gates),
            "calibrated": calibrated,
        }
        write_cached(_facts_file(definition, environ), document, at=time.time())
    return _Target(capabilities=found, calibrated=calibrated)


def _seconds(date: str | None) -> float | None:
    try:
        found = None if date is None else datetime.fromisoformat(date)
    except ValueError:
        return None
    if found is None:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _capacities(
    site: SitePolicy | None, environ: Mapping[str, str]
) -> tuple[dict[str, Capacity], float]:
    """Return what the scheduler has free, if it can be asked, and when it was."""
    now = time.time()
    if site is None:
        return {}, now
    digest = hashlib.sha256(str(site.path).encode()).hexdigest()[:16]
    path = cache_file(f"scheduler-{digest}.json", environ)
    document = read_cached(path, _SILENT_SECONDS)
    if document is not None and (
        document.get("is_silent") or abs(now - float(document["at"])) < FRESH_SECONDS
    ):
        try:
            known = {name: Capacity(**each) for name, each in document["qpus"].items()}
        except (AttributeError, KeyError, TypeError):  # of another release
            known = {}
        return known, float(document["at"])
    found, is_silent = _ask_capacities(site, environ)
    shown = {name: asdict(each) for name, each in found.items()}
    write_cached(path, {"qpus": shown, "is_silent": is_silent}, at=now)
    return found, now


def _ask_capacities(
    site: SitePolicy, environ: Mapping[str, str]
) -> tuple[dict[str, Capacity], bool]:
    try:
        admission = scheduler_of(site, environ).admission()
        if admission is None:
            return {}, False
        return dict(admission.capacities(site, timeout=_SCHEDULER_SECONDS)), False
    except QPUError:  # as in a container, without the scheduler's commands
        return {}, True

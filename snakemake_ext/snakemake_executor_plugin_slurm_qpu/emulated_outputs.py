"""Refuse outputs that an emulated QPU has left, where a rule now asks for a real one.

Snakemake compares neither resources nor results: after a rehearsal on `emulated:fez`, it would take
the outputs for those of the real QPU, and say that there is nothing to be done.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qrmi_workflows.config.emulated import is_emulated
from qrmi_workflows.results import FORMAT
from snakemake_executor_plugin_slurm_qpu.errors import QPURequestError
from snakemake_executor_plugin_slurm_qpu.fallbacks import fallback_of
from snakemake_executor_plugin_slurm_qpu.job_names import step_name
from snakemake_executor_plugin_slurm_qpu.telemetry import WORKFLOW_RECORDS

__all__ = ["refuse_emulated_outputs"]

_HEAD_BYTES = 1024
_QPU = re.compile(rf'\A\s*{{\s*"format": "{FORMAT}",.*?"qpu": "(?P<qpu>[^"]*)"', re.DOTALL)


def refuse_emulated_outputs(dag: Any, logger: Any) -> None:
    """Refuse a workflow of which a finished job asks for a real QPU and has run on an emulated one.

    A job that may run on this emulated QPU, too, is only reported.

    Args:
        dag: Snakemake's `DAG`, as in 9.27.1.
        logger: Snakemake's logger.

    Raises:
        QPURequestError: There is such a job.
    """
    asked = {job: name for job in dag.jobs if not dag.needrun(job) and (name := _real_qpu(job))}
    leased = _last_leases() if asked else {}
    for job in sorted(asked, key=str):
        if (found := _find_emulated(job, leased)) is not None:
            output, qpu = found
            if qpu in _allowed(job):
                logger.warning(
                    f"Rule {job.rule.name!r}: its output {output} is of an earlier run on "
                    f"{qpu!r}, as its resources allow. For a result of a real QPU, run it again: "
                    f"`--forcerun {job.rule.name}`."
                )
                continue
            raise QPURequestError(
                f"rule {job.rule.name!r}: it asks for {asked[job]}, but its output {output} is of "
                f"an earlier run on the emulated QPU {qpu!r}. Run the rule again with "
                f"`--forcerun {job.rule.name}`, or remove the output."
            )


def _real_qpu(job: Any) -> str | None:
    """Return the request of a job for a real QPU; `None` if it has none, or it is not known."""
    with suppress(Exception):  # a function in the Snakefile may raise anything
        if job.is_norun or not job.resources.get("qpu"):
            return None
        name = job.resources.get("qpu_name") or "the site's QPU"
        return None if all(map(is_emulated, _parts(name))) else "|".join(_texts(name))
    return None


def _allowed(job: Any) -> set[str]:
    """Return the emulated QPUs that a job names as alternatives, or may fall back to."""
    with suppress(Exception):
        named = _parts(job.resources.get("qpu_name") or "")
        return {name for name in (*named, *fallback_of(job)) if is_emulated(name)}
    return set()


def _texts(name: str | list[str]) -> list[str]:
    return [name] if isinstance(name, str) else list(name)


def _parts(name: str | list[str]) -> list[str]:
    return [part.strip() for each in _texts(name) for part in re.split(r"[+,|]", each)]


def _find_emulated(job: Any, leased: Mapping[str, Collection[str]]) -> tuple[str, str] | None:
    """Return an output of an emulated QPU, and that QPU's name."""
    outputs = [str(output) for output in job.output]
    for output in outputs:
        if is_emulated(qpu := _qpu_of(Path(output))):
            return output, str(qpu)
    emulated = filter(is_emulated, leased.get(step_name(job), ()))
    return next(((outputs[0], qpu) for qpu in emulated if outputs), None)


def _qpu_of(file: Path) -> str | None:
    """Return the QPU of a result file; `None` if it is another file."""
    with suppress(OSError, EOFError, zlib.error):
        with file.open("rb") as opened:
            head = opened.read(_HEAD_BYTES)
        if head.startswith(b"\x1f\x8b"):
            with gzip.open(file) as unpacked:
                head = unpacked.read(_HEAD_BYTES)
        found = _QPU.match(head.decode(errors="replace"))
        return None if found is None else found["qpu"]
    return None


def _last_leases() -> dict[str, list[str]]:
    """Return the QPUs of each step's last job that have run tasks: a step may move between them."""
    jobs: dict[str, object] = {}
    leased: dict[str, list[str]] = defaultdict(list)
    with suppress(OSError):
        for line in WORKFLOW_RECORDS.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                record = json.loads(line)
                step, owner = record["step"], record.get("owner", {})
                job = [owner.get(key) for key in ("cluster", "job", "restart")]
                if jobs.get(step) != job or owner.get("job") is None:
                    leased[step] = []
                jobs[step] = job
                if record.get("tasks", 1):
                    leased[step].append(record["qpu"])
    return leased

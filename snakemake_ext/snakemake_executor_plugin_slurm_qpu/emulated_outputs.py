"""Refuse outputs that an emulated QPU has left, where a rule now asks for a real one.

Snakemake compares neither resources nor results: after a rehearsal on `emulated:fez`, it would take
the outputs for those of the real QPU, and say that there is nothing to be done.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qrmi_workflows.config.emulated import is_emulated
from qrmi_workflows.results import FORMAT
from snakemake_executor_plugin_slurm_qpu.errors import QPURequestError
from snakemake_executor_plugin_slurm_qpu.job_names import step_name
from snakemake_executor_plugin_slurm_qpu.telemetry import WORKFLOW_RECORDS

__all__ = ["refuse_emulated_outputs"]

_HEAD_BYTES = 1024
_QPU = re.compile(rf'\A\s*{{\s*"format": "{FORMAT}",.*?"qpu": "(?P<qpu>[^"]*)"', re.DOTALL)


def refuse_emulated_outputs(dag: Any) -> None:
    """Refuse a workflow of which a finished job asks for a real QPU and has run on an emulated one.

    Args:
        dag: Snakemake's `DAG`, as in 9.27.1.

    Raises:
        QPURequestError: There is such a job.
    """
    asked = {job: name for job in dag.jobs if not dag.needrun(job) and (name := _real_qpu(job))}
    leased = _last_leases() if asked else {}
    for job in sorted(asked, key=str):
        if (found := _find_emulated(job, leased)) is not None:
            output, qpu = found
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
        names = [name] if isinstance(name, str) else list(name)
        parts = [part.strip() for each in names for part in re.split(r"[+,|]", each)]
        return None if all(map(is_emulated, parts)) else "|".join(names)
    return None


def _find_emulated(job: Any, leased: Mapping[str, str]) -> tuple[str, str] | None:
    """Return an output of an emulated QPU, and that QPU's name."""
    outputs = [str(output) for output in job.output]
    for output in outputs:
        if is_emulated(qpu := _qpu_of(Path(output))):
            return output, str(qpu)
    qpu = leased.get(step_name(job))
    return (outputs[0], str(qpu)) if outputs and is_emulated(qpu) else None


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


def _last_leases() -> dict[str, str]:
    """Return the QPU of the last lease of each step of the workflow."""
    leased: dict[str, str] = {}
    with suppress(OSError):
        for line in WORKFLOW_RECORDS.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, KeyError, TypeError):
                record = json.loads(line)
                leased[record["step"]] = record["qpu"]
    return leased

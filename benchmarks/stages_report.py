"""The goals, the tables and the picture of `benchmarks/stages.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

WAITING = "stage, jobs wait in Slurm"
PER_JOB = "session per job"
FAN = "batch stage, coalesced"
_WHERE = {"compute_core_seconds": "of compute nodes", "core_seconds": "with the gateway's"}
_CORE_SECONDS = {
    "core_seconds": "core-seconds",
    "compute_core_seconds": "of compute nodes",
    "gateway_core_seconds": "of the gateway",
}


def check_goals(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each goal with what was measured, and whether it was met."""
    checks = {
        "arms": _check_arms,
        "jobs": _check_jobs,
        "gang": _check_gangs,
        "fan_out": _check_fan_out,
        "split": _check_split,
    }
    return [goal for name, check in checks.items() if name in document for goal in check(document)]


def _goal(text: str, measured: float, met: bool) -> dict[str, Any]:
    return {"goal": text, "measured": round(measured, 2), "met": bool(met)}


def _check_arms(document: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    rows = [row for row in document["arms"] if row["arm"] == WAITING]
    for key, where in _WHERE.items():
        for cores in sorted({row["cores"] for row in rows}):
            by_queue = {row["queue"]: row[key] for row in rows if row["cores"] == cores}
            worst = max(by_queue.values()) / by_queue[0]
            text = (
                f"{cores} core{'s' if cores > 1 else ''}: core-seconds {where} at most 1.15 times "
                "those without a queue"
            )
            yield _goal(text, worst, worst <= 1.15)
    most = max(row["sessions"] for row in rows)
    yield _goal("one session for each stage", most, most == 1)


def _check_jobs(document: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    by_arm = {row["arm"]: row for row in document["jobs"]}
    for key, where in _WHERE.items():
        ratio = by_arm[PER_JOB][key] / by_arm[WAITING][key]
        count = by_arm[PER_JOB]["jobs"]
        text = f"{count} jobs of one task: core-seconds {where} at least 5 times fewer"
        yield _goal(text, ratio, ratio >= 5)


def _check_gangs(document: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    ours = [row["idle_seconds"] for row in document["gang"] if row["kind"] != "together"]
    yield _goal("gang: idle seconds of a worker at most 1", max(ours), max(ours) <= 1)
    spread = max(ours) - min(ours)
    yield _goal("gang: flat, whatever the queue (largest difference, s)", spread, spread <= 0.5)


def _check_fan_out(document: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    found = document["fan_out"]
    for mode in ("batch", "dedicated"):
        ratio = found[f"{mode} session per job"]["billed_seconds"] / found[FAN]["billed_seconds"]
        text = f"fan-out: billed seconds at least 10 times fewer than with a {mode} session per job"
        yield _goal(text, ratio, ratio >= 10)
    ratio = found["fan_out_seconds"] / found["one_task_seconds"]
    text = "fan-out: wall time at most 1.2 times that of one task with the same PUBs"
    yield _goal(text, ratio, ratio <= 1.2)


def _check_split(document: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    by_where = {where: savings(document, key) for key, where in _WHERE.items()}
    for queue in sorted({row["queue"] for row in document["split"]}):
        for kind, least in (("split", 0.64), ("split, in a stage", 0.80)):
            for where, saved_by_queue in by_where.items():
                if kind == "split" and where != "of compute nodes":
                    continue  # it uses no gateway
                saved = saved_by_queue[queue][kind]
                text = f"{kind}, queue of {queue} s: at least {least:.0%} of the core-seconds "
                yield _goal(f"{text}{where} saved", saved, saved >= least)


def savings(document: Mapping[str, Any], key: str) -> dict[int, dict[str, float]]:
    """Return, for each queue, the part of the monolith's core-seconds that each split saves."""
    found: dict[int, dict[str, float]] = {}
    rows = document["split"]
    whole = {row["queue"]: row[key] for row in rows if row["kind"] == "monolith"}
    for row in rows:
        found.setdefault(row["queue"], {})[row["kind"]] = 1 - row[key] / whole[row["queue"]]
    return found


def render_tables(document: Mapping[str, Any]) -> dict[str, str]:
    """Render all that was measured as tables in Markdown, by measurement."""
    tables = {}
    if rows := document.get("arms"):
        tables["arms"] = _arms_table(rows)
    if rows := document.get("jobs"):
        tables["jobs"] = _rows_table(rows, _JOBS)
    if rows := document.get("gang"):
        tables["gang"] = _gang_table(rows)
    if found := document.get("fan_out"):
        fan_rows = [{"arm": arm, **use} for arm, use in found.items() if isinstance(use, dict)]
        tables["fan_out"] = _rows_table(fan_rows, _FAN)
    if document.get("split"):
        tables["split"] = _split_table(document)
    goals = [
        [goal["goal"], f"{goal['measured']:g}", "yes" if goal["met"] else "**no**"]
        for goal in document["goals"]
    ]
    return tables | {"goals": _table(["goal", "measured", "met"], goals)}


_JOBS = {
    "arm": "arm",
    **_CORE_SECONDS,
    "job_seconds": "a job, on average",
    "held_seconds": "lease held",
    "qpu_seconds": "QPU busy",
    "sessions": "sessions",
    "billed_seconds": "billed",
    "wall": "wall time",
}
_FAN = {
    "arm": "arm",
    "tasks": "tasks at the vendor",
    "sessions": "sessions",
    "held_seconds": "lease held",
    "qpu_seconds": "QPU busy",
    "billed_seconds": "billed",
}


def _table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def _rows_table(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    values = [[_number(row.get(key, "")) for key in columns] for row in rows]
    return _table(list(columns.values()), values)


def _number(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _by_queue(rows: Iterable[Mapping[str, Any]], key: str) -> str:
    """Return a value at each queue, from the shortest on."""
    ordered = sorted(rows, key=lambda row: int(row["queue"]))
    return " / ".join(_number(row[key]) for row in ordered)


def _arms_table(rows: Sequence[Mapping[str, Any]]) -> str:
    keys = {
        **_CORE_SECONDS,
        "held_seconds": "lease held",
        "qpu_seconds": "QPU busy",
        "first_result": "first result after",
        "sessions": "sessions",
        "billed_seconds": "billed",
    }
    lines = []
    for cores in sorted({row["cores"] for row in rows}):
        for arm in dict.fromkeys(row["arm"] for row in rows):
            own = [row for row in rows if row["arm"] == arm and row["cores"] == cores]
            lines.append([cores, arm, *(_by_queue(own, key) for key in keys)])
    return _table(["cores", "arm", *keys.values()], lines)


def _gang_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        for workers in sorted({row["workers"] for row in rows}):
            own = [row for row in rows if row["kind"] == kind and row["workers"] == workers]
            lines.append([workers, kind, *(_by_queue([row], "idle_seconds") for row in own)])
    queues = sorted({row["queue"] for row in rows})
    return _table(["workers", "started", *(f"queue {queue} s" for queue in queues)], lines)


def _split_table(document: Mapping[str, Any]) -> str:
    rows, lines = document["split"], []
    saved = [savings(document, key) for key in _WHERE]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        parts = [" / ".join(f"{each[queue][kind]:.0%}" for queue in sorted(each)) for each in saved]
        keys = (*_CORE_SECONDS, "classical_core_seconds")
        values = [_by_queue(own, key) for key in keys]
        others = [_by_queue(own, key) for key in ("wall", "sessions", "billed_seconds")]
        lines.append([kind, *values, *parts, *others])
    headings = [
        "program", *_CORE_SECONDS.values(), "of classical jobs", "saved on compute nodes",
        "saved in sum", "wall time", "sessions", "billed",
    ]  # fmt: skip
    return _table(headings, lines)


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Plot the core-seconds of all arms over the vendor's queue."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["svg.hashsalt"] = "stages"  # the same figures give the same file
    from matplotlib import pyplot as plt

    rows = document["arms"]
    cores = sorted({row["cores"] for row in rows})
    figure, axes = plt.subplots(1, len(cores), figsize=(10, 4), layout="constrained")
    for axis, count in zip(axes, cores, strict=True):
        for arm in dict.fromkeys(row["arm"] for row in rows):
            own = [row for row in rows if row["arm"] == arm and row["cores"] == count]
            own.sort(key=lambda row: row["queue"])
            axis.plot(
                [row["queue"] for row in own],
                [row["compute_core_seconds"] for row in own],
                marker="o",
                label=arm,
                linewidth=2 if arm == WAITING else 1,
            )
            if any(row["gateway_core_seconds"] for row in own):
                axis.plot(
                    [row["queue"] for row in own],
                    [row["core_seconds"] for row in own],
                    color=axis.lines[-1].get_color(),
                    linestyle=":",
                    label=f"{arm}, with the gateway's",
                )
        axis.set(
            title=f"{count} core{'s' if count > 1 else ''} for each job",
        )
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("core-seconds of compute nodes")
    figure.supxlabel(
        f"vendor's queue [s], scaled down {document['factor']:g} times", fontsize="medium"
    )
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, metadata={"Date": None})

"""The page that `benchmarks/stages.py --docs` writes, from made-up figures."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
QUEUES = (0, 30)
USE = {
    "sessions": 1, "tasks": 2, "billed_seconds": 3.0, "qpu_seconds": 1.0, "held_seconds": 2.0,
}  # fmt: skip


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def used(compute: float, gateway: float) -> dict[str, float]:
    return {
        "core_seconds": compute + gateway,
        "compute_core_seconds": compute,
        "gateway_core_seconds": gateway,
    }


def document(report: ModuleType) -> dict[str, Any]:
    """Return what a run might have measured: the keeper waits in the queue, and no job does."""
    arms = {report.PER_JOB: (10, 0), report.WAITING: (20, 1)}
    found: dict[str, Any] = {
        "machine": "2 cores", "date": "2026-01-01", "load_before": 0.5, "factor": 10.0,
        "size": 1.0, "true_factor": 1.0,
        "arms": [
            {"arm": arm, "cores": 1, "queue": queue, "first_result": 1.0, "wall": 5.0,
             **used(compute, keeper * (5 + queue)), **USE}
            for arm, (compute, keeper) in arms.items() for queue in QUEUES
        ],
        "jobs": [
            {"arm": arm, "jobs": 20, "job_seconds": seconds, "wall": 1.0,
             **used(20 * seconds, gateway), **USE}
            for arm, seconds, gateway in ((report.PER_JOB, 30, 0), (report.WAITING, 3, 90))
        ],
        "gang": [
            {"kind": kind, "workers": 2, "queue": queue, "idle_seconds": 0.1}
            for kind in ("together", "stage, after the task") for queue in QUEUES
        ],
        "fan_out": {
            "tasks": 100, "fan_out_seconds": 1.0, "one_task_seconds": 1.0, report.FAN: USE,
            "batch session per job": USE, "dedicated session per job": USE,
        },
        "split": [
            {"kind": kind, "queue": queue, "classical_core_seconds": 4.0, "wall": 1.0,
             **used(seconds, 0), **USE}
            for kind, seconds in (("monolith", 100), ("split", 30), ("split, in a stage", 10))
            for queue in QUEUES
        ],
    }  # fmt: skip
    return found | {"goals": report.check_goals(found)}


def test_the_page_has_all_tables_and_links_to_pages_that_exist(load, tmp_path):
    page, made_up = load("stages_page"), document(load("stages_report"))
    picture = tmp_path / "picture.svg"
    picture.write_text("<svg/>")

    page.write_page(made_up, picture, tmp_path)

    text = (tmp_path / "stages-measured.md").read_text(encoding="utf-8")
    assert "<!--" not in text
    assert len(re.findall(r"^\|---", text, re.MULTILINE)) == 6
    words = " ".join(text.split())
    assert "(machine: 2 cores; load average before: 0.5)" in words
    assert "scaled down 10 times" in words
    assert (tmp_path / "stages-measured.svg").exists()
    for name, anchor in re.findall(r"\]\(([\w-]+\.md)#?([\w-]*)\)", text):
        linked = (ROOT / "docs" / name).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.+)$", linked, re.MULTILINE)
        assert not anchor or anchor in [heading.lower().replace(" ", "-") for heading in headings]


def test_compute_nodes_and_the_gateway_are_counted_apart_and_together(load):
    goals = {goal["goal"]: goal["measured"] for goal in document(load("stages_report"))["goals"]}

    growth = "1 core: core-seconds {} at most 1.15 times those without a queue"
    assert goals[growth.format("of compute nodes")] == 1
    assert goals[growth.format("with the gateway's")] == pytest.approx(55 / 25)
    fewer = "20 jobs of one task: core-seconds {} at least 5 times fewer"
    assert goals[fewer.format("of compute nodes")] == 10
    assert goals[fewer.format("with the gateway's")] == 4


def test_the_gateway_is_a_node_that_jobs_do_not_get_by_default(load):
    site = load("stages_site")

    conf = site.with_gateway("GresTypes=qpu\nPartitionName=main Nodes=ALL Default=YES\n")

    assert conf.splitlines()[1:] == [
        "PartitionName=main Nodes=n[1-15] Default=YES",
        "PartitionName=gateway Nodes=n16 OverSubscribe=FORCE:8",
    ]

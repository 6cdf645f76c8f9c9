"""Fixtures of the tests on a real Slurm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from site_under_test import Site
from waiting import wait_until

from qrmi_workflows.sandbox import Sandbox


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Start sandboxes, and stop them at the end of the test."""
    sites: list[Site] = []

    def make(name: str = "site", **options: object) -> Site:
        site = Site(Sandbox(tmp_path / name), tmp_path / f"{name}-work")
        sites.append(site)
        site.box.up(**options)  # type: ignore[arg-type]
        return site

    yield make
    for site in sites:
        site.box.down(grace=0)


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """A running sandbox for this test alone."""
    return make_site()


@pytest.fixture
def shared_site(sandbox: Sandbox, tmp_path: Path) -> Iterator[Site]:
    """The sandbox that tests share; jobs that are left at the end of the test are cancelled."""
    site = Site(sandbox, tmp_path / "work")
    yield site
    site.slurm("scancel", "--me")
    wait_until(lambda: site.slurm("squeue", "--noheader") == "", "jobs to end")

"""Plugins are found by entry point, as `importlib.metadata` finds them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from qrmi_workflows.plugins import find_plugins

GROUP = "qrmi_workflows.vendors"
SHOW = """
import json
from qrmi_workflows.plugins import find_plugins
found = find_plugins("qrmi_workflows.vendors").values()
print(json.dumps({plugin.name: plugin.value for plugin in found if plugin.name.startswith("acme")}))
"""


def write_package(folder: Path, entries: str, *, name: str = "acme-1.0.dist-info") -> None:
    """Write the metadata of an installed package."""
    (folder / name).mkdir(parents=True)
    (folder / name / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (folder / name / "entry_points.txt").write_text(entries)


def found_with(*path: Path, program: str = SHOW) -> dict[str, str]:
    """Return the plugins that a process finds with these folders on its path."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "group", [GROUP, "qrmi_workflows.schedulers", "qrmi_workflows.dialects", "qrmi_workflows.other"]
)
def test_the_installed_plugins_are_those_of_importlib(group):
    found = {(plugin.name, plugin.value) for plugin in find_plugins(group).values()}

    assert found == {(each.name, each.value) for each in entry_points(group=group)}


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        (f"[{GROUP}]\nacme = acme:ACME\n", {"acme": "acme:ACME"}),
        (f"[other]\nx = y:z\n\n[{GROUP}]\n# no\nacme=acme:A.B [extra]\n", {"acme": "acme:A.B"}),
        (f"[ {GROUP} ]\nacme = acme\n[other]\nacme2 = acme:X\n", {"acme": "acme"}),
        ("[qrmi_workflows.dialects]\nacme = acme:ACME\n", {}),
        ("qrmi_workflows.vendors\nacme = acme:ACME\n", {}),
        ("", {}),
    ],
)
def test_a_package_adds_what_its_entry_points_say(tmp_path: Path, entries, found):
    write_package(tmp_path, entries)

    assert found_with(tmp_path) == found


@pytest.mark.parametrize("other", ["acme-2.0.dist-info", "Acme-2.0.dist-info", "acme.egg-info"])
def test_a_package_that_is_installed_twice_counts_once(tmp_path: Path, other):
    """Python would import the first one on its path."""
    write_package(tmp_path / "a", f"[{GROUP}]\nacme = first:A\n")
    write_package(tmp_path / "b", f"[{GROUP}]\nacme = second:A\nacme2 = second:A\n", name=other)

    assert found_with(tmp_path / "a", tmp_path / "b") == {"acme": "first:A"}


def test_a_package_in_an_archive_counts(tmp_path: Path):
    archive = tmp_path / "acme.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("acme-1.0.dist-info/METADATA", "Name: acme\nVersion: 1.0\n")
        file.writestr("acme-1.0.dist-info/entry_points.txt", f"[{GROUP}]\nacme = acme:ACME\n")

    assert found_with(archive) == {"acme": "acme:ACME"}


def test_a_package_that_only_a_finder_knows_counts(tmp_path: Path):
    """Such finders belong to some editable installations."""
    write_package(tmp_path, f"[{GROUP}]\nacme = acme:ACME\n")
    finder = f"""
import importlib.metadata, pathlib, sys
class Finder(importlib.metadata.DistributionFinder):
    def find_spec(self, *args):
        return None
    def find_distributions(self, context=None):
        yield importlib.metadata.PathDistribution(pathlib.Path({str(tmp_path)!r}) / "acme-1.0.dist-info")
sys.meta_path.append(Finder())
"""  # noqa: E501

    assert found_with(program=finder + SHOW) == {"acme": "acme:ACME"}


def test_folders_that_are_missing_or_unreadable_are_passed_over(tmp_path: Path):
    write_package(tmp_path / "a", f"[{GROUP}]\nacme = acme:ACME\n")

    assert found_with(tmp_path / "none", tmp_path / "a") == {"acme": "acme:ACME"}

"""The pages on adding a vendor, a scheduler or an engine show code that the tests run."""

from __future__ import annotations

import re
import textwrap
import tomllib
from pathlib import Path

import pytest
from pages import blocks

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "tests" / "plugins"
PAGES = {
    "add-a-vendor.md": PLUGINS / "toy_vendor",
    "add-a-scheduler.md": PLUGINS / "toy_scheduler",
    "add-an-engine.md": PLUGINS / "toy_engine",
}


def is_part(block: str, text: str) -> bool:
    """Return whether a text has these lines; a page may show indented code without its indent."""
    return any(textwrap.indent(block, " " * depth) in text for depth in (0, 4, 8))


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_are_parts_of_the_toy(page: str) -> None:
    """Each is in one of its files, verbatim."""
    texts = [path.read_text(encoding="utf-8") for path in PAGES[page].glob("*.py")]
    shown = blocks(ROOT / "docs" / page, "python")

    assert shown
    for block in shown:
        assert any(is_part(block, text) for text in texts), block


@pytest.mark.parametrize("page", ["add-a-vendor.md", "add-a-scheduler.md"])
def test_entry_points_are_those_of_the_toy(page: str) -> None:
    """The lines for `pyproject.toml` on a page are those in the toy's metadata."""
    (metadata,) = PAGES[page].glob("*.dist-info/entry_points.txt")
    shown: dict[str, dict[str, str]] = {}
    for block in blocks(ROOT / "docs" / page, "toml"):
        shown |= tomllib.loads(block).get("project", {}).get("entry-points", {})
    written = "\n".join(
        f"[{group}]\n" + "\n".join(f"{name} = {value}" for name, value in entries.items()) + "\n"
        for group, entries in shown.items()
    )

    assert metadata.read_text(encoding="utf-8") == written


def methods(protocol: str) -> list[str]:
    """Return the names of a protocol's members, in the order of its file."""
    module, _, name = protocol.partition(":")
    text = (ROOT / module).read_text(encoding="utf-8")
    body = text.split(f"class {name}(")[1].split("\nclass ")[0]
    return re.findall(r"^    def ([a-z]\w*)\(", body, re.MULTILINE)


@pytest.mark.parametrize(
    ("page", "protocol"),
    [
        ("add-a-vendor.md", "qrmi_workflows/vendors/base.py:Vendor"),
        ("add-a-scheduler.md", "qrmi_workflows/schedulers/base.py:Scheduler"),
    ],
)
def test_every_member_of_the_interface_is_explained(page: str, protocol: str) -> None:
    """The page names each between backticks."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    members = methods(protocol)

    assert len(members) > 12
    assert [name for name in members if f"`{name}`" not in text] == []

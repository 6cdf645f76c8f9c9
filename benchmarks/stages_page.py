"""The page of `benchmarks/stages.py --docs`: its text, with the tables of one run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages_report import render_tables

PAGE = "stages-measured"
TEMPLATE = Path(__file__).with_name(f"{PAGE}.md")
_PLACE = re.compile(r"<!-- (\w+) -->")


def render_page(document: Mapping[str, Any]) -> str:
    """Render the page: each place in the template gets the table, or the value, of its name."""
    values = {name: str(value) for name, value in document.items() if not isinstance(value, list)}
    values |= {name: f"{value:g}" for name, value in document.items() if isinstance(value, float)}
    values |= render_tables(document)
    return _PLACE.sub(lambda place: values[place[1]], TEMPLATE.read_text(encoding="utf-8"))


def write_page(document: Mapping[str, Any], picture: Path, folder: Path) -> None:
    """Write the page and its picture into a folder."""
    (folder / f"{PAGE}.md").write_text(render_page(document), encoding="utf-8")
    shutil.copyfile(picture, folder / f"{PAGE}.svg")

"""The page of features: each cell of its table names a test that exists and is run."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "features.md"
COLUMNS = ["feature", "Snakemake", "Parsl", "qpu", "sbatch"]
# Tests with these marks run in targets of their own, where their environment is.
APART = {"parsl_suite", "tutorial", "accounting", "skip", "skipif", "xfail"}
# Cells that name something which does not exist for their tool, and so cannot be tested.
MISSING = {"no job to reserve for"}

TEXT = PAGE.read_text(encoding="utf-8")
LINKS = {
    name: (path, test)
    for name, path, test in re.findall(r'^\[([a-z-]+)\]: (\S+) "(\w+)"$', TEXT, re.MULTILINE)
}


def rows() -> list[list[str]]:
    """Return the cells of the table, by row."""
    lines = [line for line in TEXT.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


HEAD, *ROWS = rows()
CELLS = {
    f"{row[0]}, {column}": cell
    for row in ROWS
    for column, cell in zip(COLUMNS[1:], row[1:], strict=True)
}


@cache
def marks_of(path: Path) -> dict[str, set[str]]:
    """Return the tests of a file, with the names of their marks."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    common = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            common = set(re.findall(r"pytest\.mark\.(\w+)", ast.unparse(node.value)))
    return {
        node.name: common.union(
            *(re.findall(r"pytest\.mark\.(\w+)", ast.unparse(each)) for each in node.decorator_list)
        )
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }


def test_the_table_has_a_column_for_each_tool() -> None:
    assert HEAD == COLUMNS
    assert len(ROWS) >= 10


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_each_cell_links_to_a_test_unless_the_tool_has_no_such_thing(cell: str) -> None:
    found = re.fullmatch(r"\[.+\]\[([a-z-]+)\]", cell)

    assert found or cell in MISSING, cell
    assert found is None or found[1] in LINKS


def test_no_other_cells_are_without_a_test() -> None:
    assert {cell for cell in CELLS.values() if "][" not in cell} == MISSING


@pytest.mark.parametrize("link", LINKS)
def test_each_test_exists_and_is_run(link: str) -> None:
    path, test = LINKS[link]
    file = (PAGE.parent / path).resolve()
    tier = file.relative_to(ROOT / "tests").parts[0]
    tiers = re.search(r"addprefix tests/,([a-z ]+)\)", (ROOT / "Makefile").read_text())

    assert tiers is not None
    assert tier in tiers[1].split()
    assert test in marks_of(file), f"{path}: {test}"
    assert not marks_of(file)[test] & APART


def test_no_link_is_left_over() -> None:
    used = {name for cell in CELLS.values() for name in re.findall(r"\]\[([a-z-]+)\]", cell)}

    assert used == set(LINKS)

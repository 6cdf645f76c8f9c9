"""The public names: every module's `__all__` exists and is sorted, every package's is complete."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = (
    (ROOT, "qrmi_workflows"),
    (ROOT, "parsl_ext"),
    (ROOT / "snakemake_ext", "snakemake_executor_plugin_slurm_qpu"),
)
PROGRAMS = {"__main__", "rules"}  # run, never imported


def modules() -> dict[str, Path]:
    """Return the files of both distributions, by dotted name."""
    found = {}
    for top, package in PACKAGES:
        for path in sorted((top / package).rglob("*.py")):
            parts = path.relative_to(top).with_suffix("").parts
            if PROGRAMS.isdisjoint(parts):
                found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = modules()
PACKAGE_NAMES = [name for name, path in MODULES.items() if path.name == "__init__.py"]


def tree_of(name: str) -> ast.Module:
    """Parse a module."""
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def order(name: str) -> tuple[int, str]:
    """Return a sort key as ruff has it: constants, then classes, then functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def exported(tree: ast.Module) -> list[str] | None:
    """Return what `__all__` lists; `None` if the module has no `__all__`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return None


def defined(tree: ast.Module) -> set[str]:
    """Return the public functions and classes that a module defines, except click commands."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {
        node.name
        for node in tree.body
        if isinstance(node, kinds)
        and not node.name.startswith("_")
        and not any("click." in ast.unparse(decorator) for decorator in node.decorator_list)
    }


def imported_from_within(name: str, tree: ast.Module) -> set[str]:
    """Return the public names that a package imports from its own modules."""
    return {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{name}.")
        for alias in node.names
        if not (alias.asname or alias.name).startswith("_")
    }


def used(tree: ast.Module) -> set[str]:
    """Return the names that a module's own code reads, annotations included."""
    return {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }


@pytest.mark.parametrize("name", MODULES)
def test_all_is_sorted(name: str) -> None:
    """Each name is listed once; a module without the list defines nothing for others."""
    tree = tree_of(name)
    names = exported(tree)
    if names is None:
        assert defined(tree) == set(), f"{name} defines public names and has no __all__"
    else:
        assert names == sorted(set(names), key=order)


@pytest.mark.parametrize("name", PACKAGE_NAMES)
def test_all_of_a_package_is_complete(name: str) -> None:
    """Every public name that a package defines is listed."""
    tree = tree_of(name)
    assert defined(tree) <= set(exported(tree) or ())


@pytest.mark.parametrize("name", PACKAGE_NAMES)
def test_all_of_a_package_can_be_imported(name: str) -> None:
    """Every listed name exists."""
    module = importlib.import_module(name)
    for item in getattr(module, "__all__", ()):
        assert hasattr(module, item), f"{name}.{item}"


@pytest.mark.parametrize("name", PACKAGE_NAMES)
def test_what_a_package_imports_for_others_is_listed(name: str) -> None:
    """A package imports from its own modules what its own code uses, or what it re-exports."""
    tree = tree_of(name)
    assert imported_from_within(name, tree) - used(tree) <= set(exported(tree) or ())

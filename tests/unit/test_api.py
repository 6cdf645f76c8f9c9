"""The public names: every module's `__all__` is there and sorted, every package's complete."""

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
NO_API = {"__main__", "rules"}  # what Snakemake's rules run is a program, as __main__ is


def modules() -> dict[str, Path]:
    """Return the files of both distributions, by dotted name."""
    found = {}
    for top, package in PACKAGES:
        for path in sorted((top / package).rglob("*.py")):
            parts = path.relative_to(top).with_suffix("").parts
            if NO_API.isdisjoint(parts):
                found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = modules()
PACKAGE_NAMES = [name for name, path in MODULES.items() if path.name == "__init__.py"]


def order(name: str) -> tuple[int, str]:
    """Sort as ruff does: constants, then classes, then functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def exported(tree: ast.Module) -> list[str] | None:
    """Return what `__all__` lists, where there is one."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return None


def defined(tree: ast.Module) -> set[str]:
    """Return the public functions and classes that a module defines, and no click commands."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {
        node.name
        for node in tree.body
        if isinstance(node, kinds)
        and not node.name.startswith("_")
        and not any("click." in ast.unparse(decorator) for decorator in node.decorator_list)
    }


@pytest.mark.parametrize("name", MODULES)
def test_all_is_sorted(name: str) -> None:
    """Each name once; a module without the list has nothing for others."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    names = exported(tree)
    if names is None:
        assert defined(tree) == set(), f"{name} defines public names and has no __all__"
    else:
        assert names == sorted(set(names), key=order)


@pytest.mark.parametrize("name", PACKAGE_NAMES)
def test_all_of_a_package_is_complete(name: str) -> None:
    """What a package defines is listed."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    assert defined(tree) <= set(exported(tree) or ())


@pytest.mark.parametrize("name", PACKAGE_NAMES)
def test_all_of_a_package_can_be_imported(name: str) -> None:
    """Every name that it lists is there."""
    module = importlib.import_module(name)
    for item in getattr(module, "__all__", ()):
        assert hasattr(module, item), f"{name}.{item}"


@pytest.mark.parametrize("name", PACKAGE_NAMES)
def test_what_a_package_imports_for_others_is_listed(name: str) -> None:
    """A name imported from a module of its own is public: that is why it is imported there."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    own = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{name}.")
        for alias in node.names
    }
    assert {item for item in own if not item.startswith("_")} <= set(exported(tree) or ())

#!/usr/bin/env python3
"""Print the structure of a checkout in numbers, for comparison before and after a change.

The three packages are parsed, not imported. A layer is one of their top-level modules or
sub-packages. All imports count, whether at the top, in functions or under TYPE_CHECKING, except
relative ones (a test forbids them), modules named in strings, and `a` where `a.b` is imported.
Blank lines, comments and docstrings do not count as code.
"""

import argparse
import ast
import io
import json
import re
import statistics
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

CORE = "qrmi_workflows"
PACKAGES = (CORE, "parsl_ext", "snakemake_ext/snakemake_executor_plugin_slurm_qpu")
ORDER: tuple[str, ...] = ("errors", "plugins", "retry", "state", "config", "schedulers", "vendors")
ORDER += ("payloads", "results", "client", "journal", "budgets", "tasks", "choice", "lease")
ORDER += ("stages", "frontends", "site", "emulator", "sandbox", "cli")
PLACES = {f"{CORE}.{layer}": place for place, layer in enumerate(ORDER)}
FOR_LINTERS = re.compile(r"(#\s*(noqa(:[A-Z0-9, ]+)?|type:\s*ignore(\[[\w, -]+\])?)\s*)+")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Module(NamedTuple):
    """A file of one of the packages."""

    name: str
    source: str
    tree: ast.Module


def read_modules(folder: Path) -> Iterator[Module]:
    """Read the packages of a checkout."""
    for package in PACKAGES:
        for path in sorted((folder / package).rglob("*.py")):
            parts = path.relative_to((folder / package).parent).with_suffix("").parts
            name = ".".join(parts).removesuffix(".__init__")
            source = path.read_text(encoding="utf-8")
            yield Module(name, source, ast.parse(source, filename=str(path)))


def layer_of(module: str) -> str:
    """Return a module's layer: `PACKAGE.LAYER`, or `PACKAGE` for its `__init__` and `__main__`."""
    package, name = f"{module}.__main__".split(".")[:2]
    return package if name == "__main__" else f"{package}.{name}"


def find_imports(module: Module, known: set[str]) -> Iterator[tuple[str, int, str, str]]:
    """Find a module's imports of known modules: importer, line, imported module, place."""
    waiting: list[tuple[ast.AST, str]] = [(module.tree, "top")]
    while waiting:
        node, where = waiting.pop()
        names, typed = list[str](), list[ast.stmt]()
        match node:
            case ast.Import(aliases):
                names = [alias.name for alias in aliases]
            case ast.ImportFrom(base, aliases):
                names = [f"{base}.{alias.name}" for alias in aliases]
            case ast.If(ast.Name("TYPE_CHECKING") | ast.Attribute(_, "TYPE_CHECKING"), body):
                typed = body
            case ast.FunctionDef() | ast.AsyncFunctionDef() if where == "top":
                where = "function"
        for name in names:
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name:
                yield module.name, getattr(node, "lineno", 0), name, where
        children = ast.iter_child_nodes(node)
        waiting += [(child, "typing" if child in typed else where) for child in children]


def find_cycles(edges: set[tuple[str, str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one module (Warshall's algorithm)."""
    reached = {name: {b for a, b in edges if a == name} for edge in edges for name in edge}
    for middle in reached:
        for ends in reached.values():
            if middle in ends:
                ends |= reached[middle]
    found = {tuple(sorted(end for end in reached[n] if n in reached[end])) for n in reached}
    return sorted([list(cycle) for cycle in found if len(cycle) > 1], key=lambda c: (-len(c), c))


def measure_functions(module: Module) -> list[tuple[str, int]]:
    """Return the number of lines of every function and method, nested ones too."""
    found = [node for node in ast.walk(module.tree) if isinstance(node, FUNCTIONS)]
    return [(f"{module.name}.{f.name}", (f.end_lineno or 0) - f.lineno + 1) for f in found]


def public_names(module: Module) -> set[str]:
    """Return `__all__`, or without one the top-level definitions that do not start with `_`."""
    names: set[str] = set()
    for node in module.tree.body:
        match node:
            case ast.Assign([ast.Name("__all__")], value):
                return set(ast.literal_eval(value))
            case ast.Assign([ast.Name(name)]) | ast.AnnAssign(ast.Name(name)):
                names.add(name)
            case ast.FunctionDef(name) | ast.AsyncFunctionDef(name) | ast.ClassDef(name):
                names.add(name)
    return {name for name in names if not name.startswith("_")}


def count_code(module: Module) -> tuple[int, int]:
    """Return how many lines have code, and how many a comment that is not only for linters."""
    code, comments = set[int](), 0
    for token in tokenize.generate_tokens(io.StringIO(module.source).readline):
        if token.type == tokenize.COMMENT:
            comments += not FOR_LINTERS.fullmatch(token.string)
        elif token.string.strip():
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(module.tree):
        match node:
            case ast.Expr(ast.Constant(str()), lineno=int(first), end_lineno=int(last)):
                code.difference_update(range(first, last + 1))
    return len(code), comments


def add_up(modules: list[Module]) -> dict[str, float]:
    """Return the size of a layer and its comments per 100 lines of code."""
    lines = sum(module.source.count("\n") for module in modules)
    code, comments = map(sum, zip(*map(count_code, modules), strict=True))
    density = round(100 * comments / max(code, 1), 1)
    return {"modules": len(modules), "lines": lines, "code": code, "comments per 100": density}


def spread(sizes: list[tuple[str, int]]) -> dict[str, Any]:
    """Return the median, the 90th percentile (nearest rank) and the largest, with its name."""
    ordered = sorted(size for _, size in sizes)
    name, largest = max(sizes, key=lambda item: item[1])
    ninetieth = ordered[-(-9 * len(ordered) // 10) - 1]
    return {"median": statistics.median(ordered), "90th": ninetieth, "max": largest, "of": name}


def measure(modules: list[Module]) -> dict[str, Any]:
    """Measure the modules of a checkout."""
    known = {module.name: layer_of(module.name) for module in modules}
    layers = sorted(set(known.values()), key=lambda layer: (PLACES.get(layer, 99), layer))
    groups = {layer: [m for m in modules if known[m.name] == layer] for layer in layers}
    links = sorted({link for module in modules for link in find_imports(module, set(known))})
    upward = [k for k in links if PLACES.get(known[k[0]], 99) < PLACES.get(known[k[2]], -1)]
    return {
        "layers": {layer: add_up(group) for layer, group in (groups | {"total": modules}).items()},
        "cycles": find_cycles({(a, b) for a, _, b, _ in links}),
        "cycles at run time": find_cycles({(a, b) for a, _, b, at in links if at != "typing"}),
        "upward imports": ["{}:{} imports {} ({})".format(*link) for link in upward],
        "not placed": [r for r in layers if r.startswith(f"{CORE}.") and r not in PLACES],
        "lines per module": spread([(m.name, m.source.count("\n")) for m in modules]),
        "lines per function": spread([f for m in modules for f in measure_functions(m)]),
        "public names per module": spread([(m.name, len(public_names(m))) for m in modules]),
    }


def as_text(found: dict[str, Any]) -> Iterator[str]:
    """Write the measurements for people, line by line."""
    row = "{:<52}{:>8}{:>8}{:>8}{:>18}"
    numbers = "{}: median {median:g}, 90th percentile {90th}, max {max} ({of})"
    for title, value in found.items():
        if title == "layers":
            yield row.format("layer", *value["total"])
            yield from (row.format(layer, *sizes.values()) for layer, sizes in value.items())
        elif isinstance(value, dict):
            yield numbers.format(title, **value)
        else:
            items = [[i] if isinstance(i, str) else [f"{len(i)} modules:", *i] for i in value]
            yield "\n  ".join([f"{title}: {len(items)}", *("\n    ".join(i) for i in items)])


def main() -> None:
    """Measure the checkout named on the command line."""
    parser = argparse.ArgumentParser(description="Print the structure of a checkout in numbers.")
    here = Path(__file__).resolve().parents[1]
    parser.add_argument("folder", nargs="?", type=Path, default=here, help="default: this checkout")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    modules = list(read_modules(arguments.folder))
    if not modules:
        parser.error(f"{arguments.folder} holds none of {', '.join(PACKAGES)}: give a checkout.")
    found = measure(modules)
    print(json.dumps(found, indent=2) if arguments.json else "\n".join(as_text(found)))


if __name__ == "__main__":
    main()

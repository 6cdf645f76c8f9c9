"""The layout's import rules: who may import whom (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = "qrmi_workflows"
ENGINES = ("parsl_ext", "snakemake_executor_plugin_slurm_qpu", "parsl", "snakemake")
SDKS = ("qiskit", "qiskit_aer", "qiskit_ibm_runtime", "qiskit_qasm3_import")
SDKS += ("pulser", "pulser_simulation", "qutip")
PROGRAMS = "rules"  # what Snakemake's rules run in jobs: nothing imports it


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One import: which module imports what, and whether importing that module suffices."""

    module: str
    imported: str
    line: int
    at_import: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.imported}"


def module_name(path: Path, top: Path) -> str:
    """Return a file's dotted name."""
    parts = path.relative_to(top).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(module: str, tree: ast.Module) -> Iterator[Import]:
    """Find the imports of a module; those for type checkers alone do not count."""
    waiting: list[tuple[ast.AST, bool]] = [(tree, True)]
    while waiting:
        node, at_import = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            at_import = False
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            yield Import(module=module, imported=name, line=node.lineno, at_import=at_import)
        waiting += [(child, at_import) for child in ast.iter_child_nodes(node)]


def all_imports() -> list[Import]:
    """Read every module of both distributions."""
    found: list[Import] = []
    for top, package in (
        (ROOT, CORE),
        (ROOT, "parsl_ext"),
        (ROOT / "snakemake_ext", "snakemake_executor_plugin_slurm_qpu"),
    ):
        for path in sorted((top / package).rglob("*.py")):
            if path.parent.name == PROGRAMS:
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += imports_of(module_name(path, top), tree)
    return found


IMPORTS = all_imports()


def is_in(name: str, *packages: str) -> bool:
    """Say whether a dotted name is one of these packages or in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def of(*packages: str) -> list[Import]:
    """Return the imports of these packages' modules."""
    return [item for item in IMPORTS if is_in(item.module, *packages)]


def shown(imports: list[Import]) -> list[str]:
    """Return them as text, for a test's message."""
    return [str(item) for item in imports]


def test_the_rules_are_applied_to_something() -> None:
    """Each package that a rule speaks of is there, and imports."""
    for package in ("schedulers", "vendors", "emulator", "sandbox", "cli"):
        assert of(f"{CORE}.{package}"), package
    assert of("parsl_ext")
    assert of("snakemake_executor_plugin_slurm_qpu")


def test_the_core_knows_no_engine() -> None:
    """Engines import the core, never back."""
    assert shown([item for item in of(CORE) if is_in(item.imported, *ENGINES)]) == []


def test_engines_do_not_know_each_other() -> None:
    """Each may be installed alone."""
    assert shown([i for i in of("parsl_ext") if is_in(i.imported, ENGINES[1], "snakemake")]) == []
    assert shown([i for i in of(ENGINES[1]) if is_in(i.imported, "parsl_ext", "parsl")]) == []


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("schedulers", ("qrmi", f"{CORE}.vendors")),
        ("vendors", (f"{CORE}.schedulers",)),
    ],
)
def test_schedulers_and_vendors_do_not_meet(package: str, forbidden: tuple[str, ...]) -> None:
    """Either grows without the other."""
    assert shown([i for i in of(f"{CORE}.{package}") if is_in(i.imported, *forbidden)]) == []


def test_only_vendors_and_simulators_import_an_sdk_and_only_when_called() -> None:
    """Importing this project imports no vendor's SDK."""
    allowed = (f"{CORE}.vendors", f"{CORE}.emulator.simulators")
    sdk = [item for item in IMPORTS if is_in(item.imported, *SDKS)]
    assert sdk, "the rule is about something"
    wrong = [item for item in sdk if item.at_import or not is_in(item.module, *allowed)]
    assert shown(wrong) == []


def test_only_the_resource_imports_qrmi() -> None:
    """One place knows QRMI's client."""
    users = {item.module for item in IMPORTS if is_in(item.imported, "qrmi")}
    assert users == {f"{CORE}.resource"}


def test_the_emulator_is_for_the_sandbox_and_the_command_line() -> None:
    """What runs on a real site does not depend on it."""
    allowed = (f"{CORE}.emulator", f"{CORE}.sandbox", f"{CORE}.cli")
    users = [item for item in IMPORTS if is_in(item.imported, f"{CORE}.emulator")]
    assert shown([item for item in users if not is_in(item.module, *allowed)]) == []


def test_an_import_is_seen_wherever_it_stands() -> None:
    """The reader of imports itself: at the top, in a class, in a function, for types alone."""
    source = """
import a.b
from c import d
if TYPE_CHECKING:
    import e
class K:
    import f
    def m(self):
        from g import h
"""
    found = {(item.imported, item.at_import) for item in imports_of("x", ast.parse(source))}
    assert found == {("a.b", True), ("c.d", True), ("f", True), ("g.h", False)}

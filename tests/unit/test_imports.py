"""The import rules of the layout (docs/architecture.md): who may import whom.

All imports count: at the top, in functions, and for type checkers only.
"""

from __future__ import annotations

import ast
import graphlib
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = "qrmi_workflows"
PLUGIN = "snakemake_executor_plugin_slurm_qpu"
ENGINES = ("parsl_ext", PLUGIN, "parsl", "snakemake")
SDKS = ("qiskit", "qiskit_aer", "qiskit_ibm_runtime", "qiskit_qasm3_import")
SDKS += ("pulser", "pulser_simulation", "qutip")
PROGRAMS = "rules"  # scripts that Snakemake's rules run in jobs: nothing imports them

LAYERS = (
    "errors",
    "plugins",
    "retry",
    "state",
    "config",
    "schedulers",
    "vendors",
    "payloads",
    "results",
    "client",
    "journal",
    "budgets",
    "tasks",
    "choice",
    "lease",
    "stages",
    "frontends",
    "site",
    "emulator",
    "sandbox",
    "cli",
)
"""The core's layers; each imports only from those before it."""

TOP = ("__init__", "__main__")  # the package's own doors to its layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One import: which module imports what, and when."""

    module: str
    imported: str
    line: int
    at_import: bool
    for_types: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.imported}"


def module_name(path: Path, top: Path) -> str:
    """Return a file's dotted name."""
    parts = path.relative_to(top).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(module: str, tree: ast.Module) -> Iterator[Import]:
    """Find all imports of a module."""
    waiting: list[tuple[ast.AST, bool, bool]] = [(tree, True, False)]
    while waiting:
        node, at_import, for_types = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for_types = True
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            at_import = False
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            yield Import(
                module=module,
                imported=name,
                line=node.lineno,
                at_import=at_import,
                for_types=for_types,
            )
        waiting += [(child, at_import, for_types) for child in ast.iter_child_nodes(node)]


def modules() -> dict[str, Path]:
    """Return the modules of both distributions, by name."""
    packages = ((ROOT, CORE), (ROOT, "parsl_ext"), (ROOT / "snakemake_ext", PLUGIN))
    return {
        module_name(path, top): path
        for top, package in packages
        for path in sorted((top / package).rglob("*.py"))
        if path.parent.name != PROGRAMS
    }


MODULES = modules()
IMPORTS = [
    each
    for name, path in MODULES.items()
    for each in imports_of(name, ast.parse(path.read_text(encoding="utf-8")))
]


def is_in(name: str, *packages: str) -> bool:
    """Return whether a dotted name is one of these packages, or in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def of(*packages: str) -> list[Import]:
    """Return the imports of these packages' modules."""
    return [each for each in IMPORTS if is_in(each.module, *packages)]


def shown(imports: list[Import]) -> list[str]:
    """Render imports for a test's message."""
    return [str(each) for each in imports]


def layer_of(name: str) -> str | None:
    """Return the core's layer that a dotted name is in."""
    parts = name.split(".")
    return parts[1] if parts[0] == CORE and len(parts) > 1 else None


def edges() -> dict[str, set[str]]:
    """Return which of our modules import which others."""
    graph: dict[str, set[str]] = defaultdict(set)
    for each in IMPORTS:
        target = each.imported
        while target and target not in MODULES:
            target = target.rpartition(".")[0]
        if target and target != each.module:
            graph[each.module].add(target)
    return graph


def test_every_module_of_the_core_is_in_a_layer() -> None:
    """A new top-level module or package gets a place in the order."""
    found = {path.stem for path in (ROOT / CORE).iterdir() if path.suffix == ".py"}
    found |= {path.parent.name for path in (ROOT / CORE).glob("*/__init__.py")}
    assert found == {*LAYERS, *TOP}


def test_no_layer_imports_back() -> None:
    """Each layer imports only from those before it in the order."""
    wrong = []
    for each in IMPORTS:
        layer, other = layer_of(each.module), layer_of(each.imported)
        if layer in LAYERS and other in LAYERS and LAYERS.index(other) > LAYERS.index(layer):
            wrong.append(each)
    assert shown(wrong) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Not even through imports in functions or for types."""
    try:
        graphlib.TopologicalSorter(edges()).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_the_rules_are_applied_to_something() -> None:
    """Each package that a rule is about exists and has imports."""
    for package in ("schedulers", "vendors", "emulator", "sandbox", "cli"):
        assert of(f"{CORE}.{package}"), package
    assert of("parsl_ext")
    assert of(PLUGIN)


def test_the_core_knows_no_engine() -> None:
    """Engines import the core, never the other way round."""
    assert shown([each for each in of(CORE) if is_in(each.imported, *ENGINES)]) == []


def test_engines_do_not_know_each_other() -> None:
    """Each may be installed alone."""
    assert shown([i for i in of("parsl_ext") if is_in(i.imported, PLUGIN, "snakemake")]) == []
    assert shown([i for i in of(PLUGIN) if is_in(i.imported, "parsl_ext", "parsl")]) == []


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("schedulers", ("qrmi", f"{CORE}.vendors")),
        ("vendors", (f"{CORE}.schedulers",)),
    ],
)
def test_schedulers_and_vendors_are_independent(package: str, forbidden: tuple[str, ...]) -> None:
    """Each can change without the other."""
    assert shown([i for i in of(f"{CORE}.{package}") if is_in(i.imported, *forbidden)]) == []


def test_an_sdk_is_imported_by_vendors_front_ends_and_simulators_when_called() -> None:
    """Importing this project imports no vendor's SDK; types may be named anywhere."""
    allowed = (f"{CORE}.vendors", f"{CORE}.frontends", f"{CORE}.emulator.simulators")
    sdk = [each for each in IMPORTS if is_in(each.imported, *SDKS) and not each.for_types]
    assert sdk, "the rule is about something"
    wrong = [each for each in sdk if each.at_import or not is_in(each.module, *allowed)]
    assert shown(wrong) == []


def test_only_the_client_imports_qrmi() -> None:
    """One module knows QRMI's client."""
    users = {each.module for each in IMPORTS if is_in(each.imported, "qrmi")}
    assert users == {f"{CORE}.client.package"}


def test_the_emulator_is_for_the_sandbox_and_the_command_line() -> None:
    """Code that runs on a real site does not depend on it."""
    allowed = (f"{CORE}.emulator", f"{CORE}.sandbox", f"{CORE}.cli")
    users = [each for each in IMPORTS if is_in(each.imported, f"{CORE}.emulator")]
    assert shown([each for each in users if not is_in(each.module, *allowed)]) == []


SCHEDULER_LAYERS = (f"{CORE}.schedulers", f"{CORE}.sandbox")
LEGACY = {"SLURM_JOB_QPU_RESOURCES", "SLURM_JOB_QPU_TYPES"}  # QRMI's own contract, read anywhere
A_SCHEDULERS_OWN = re.compile(
    r"\b(SLURM_[A-Z_]+|squeue|sbatch|scancel|scontrol|sinfo|sacct|srun)\b"
)


def test_the_core_outside_schedulers_knows_no_scheduler() -> None:
    """It reads no scheduler's variable and runs none of its commands; `sandbox/` is a Slurm."""
    found = []
    for name, path in MODULES.items():
        if not is_in(name, CORE) or is_in(name, *SCHEDULER_LAYERS):
            continue
        for line, text in strings_of(path):
            words = set(A_SCHEDULERS_OWN.findall(text))
            if words - LEGACY:
                found.append(f"{name}:{line} {sorted(words - LEGACY)}")
    assert found == []


@cache
def strings_of(path: Path) -> list[tuple[int, str]]:
    """Return the strings of a module that are no docstrings or help texts, with their lines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    prose |= {
        id(kw.value) for kw in ast.walk(tree) if isinstance(kw, ast.keyword) and kw.arg == "help"
    }
    return [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    ]


def test_vendors_are_named_in_their_layer_alone() -> None:
    """The lease, results, tasks and the client look front ends and converters up."""
    vendor = re.compile(r"\b(ibm|pasqal|iqm|felis)\b", re.IGNORECASE)
    layers = tuple(
        f"{CORE}.{layer}" for layer in ("client", "journal", "tasks", "lease", "results")
    )
    found = [
        f"{name}:{line} {text!r}"
        for name, path in MODULES.items()
        if is_in(name, *layers)
        for line, text in strings_of(path)
        if vendor.search(text)
    ]
    assert found == []


def test_an_import_is_seen_wherever_it_stands() -> None:
    """This tests the finder of imports itself: at the top, in classes and functions, for types."""
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
    found = {
        (each.imported, each.at_import, each.for_types)
        for each in imports_of("x", ast.parse(source))
    }
    assert found == {
        ("a.b", True, False),
        ("c.d", True, False),
        ("e", True, True),
        ("f", True, False),
        ("g.h", False, False),
    }

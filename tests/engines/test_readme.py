"""The README is true: its commands print what it shows, and its snippets are in the examples."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
from pages import blocks

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

INSTALL = "pip install snakemake '.[parsl,ibm,pasqal,emulator]' ./snakemake_ext"
RUN_ELSEWHERE = {
    "make demo": "tests/unit/test_setup.py::test_make_demo_with_slurm",
    "make test": "tests/unit/test_setup.py::test_ci_runs_every_target",
    INSTALL: "tests/engines/test_readme.py::test_the_install_command_names_what_exists",
}
"""Commands that would run these tests again, or download for minutes."""


def console() -> list[tuple[str, str]]:
    """Return each command of the README, with the output shown for it."""
    text = "".join(blocks(ROOT / "README.md", "console"))
    starts = [match.start() for match in re.finditer(r"^\$ ", text, re.MULTILINE)]
    steps = [text[start:end] for start, end in pairwise([*starts, len(text)])]
    return [step.removeprefix("$ ").partition("\n")[::2] for step in steps]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str]]:
    """Run the README's commands in one shell; return the exit status and output of each."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "examples" / "bell", folder / "examples" / "bell")
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"QPU_SANDBOX": str(folder / "sandbox"), "QPU_STATE": str(folder / "state")}
    environ = {**os.environ, "PATH": tools, **own}
    commands = [command for command, _ in console() if command not in RUN_ELSEWHERE]
    script = "\n".join(f'{{ {command}\n}} 2>&1; echo "\x1e$?"' for command in commands)
    try:
        done = subprocess.run(
            ["bash", "-c", script], cwd=folder, env=environ, stdout=subprocess.PIPE, text=True
        )
    finally:
        down = [sys.executable, "-m", "qrmi_workflows", "sandbox", "down"]
        subprocess.run(down, env=environ, check=True, stdout=subprocess.DEVNULL)
    ended = re.findall(r"(.*?)\x1e(\d+)\n", done.stdout, re.DOTALL)
    return [(int(status), output) for output, status in ended]


@pytest.mark.slurm
@pytest.mark.engines
@pytest.mark.timeout(400)  # its fixture runs the commands
def test_its_commands_print_what_it_shows(session: list[tuple[int, str]]) -> None:
    """`…` stands for any text, a count for any count; a refused request exits with 2."""
    steps = [step for step in console() if step[0] not in RUN_ELSEWHERE]
    assert len(session) == len(steps) > 5
    for (command, shown), (status, output) in zip(steps, session, strict=True):
        assert status == (2 if shown.startswith("qpu: ") else 0), f"{command}\n{output}"
        if shown:
            lines = [re.sub(r"\s*$", "", line) for line in output.splitlines()]
            assert re.fullmatch(as_pattern(shown), "\n".join(lines), re.DOTALL), output


def as_pattern(shown: str) -> str:
    pattern = re.escape(shown.rstrip("\n")).replace("…", ".*")
    return re.sub(r"(?<=':\\ )\d+", r"\\d+", pattern)


@pytest.mark.parametrize("test", RUN_ELSEWHERE.values())
def test_commands_that_are_not_run_here_have_tests_of_their_own(test: str) -> None:
    path, _, name = test.partition("::")
    module = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in module.body if isinstance(node, ast.FunctionDef)}
    assert set(RUN_ELSEWHERE) <= {command for command, _ in console()}


def test_the_install_command_names_what_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (extras,) = re.findall(r"\[(.*)\]", INSTALL)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert (ROOT / INSTALL.split()[-1] / "pyproject.toml").is_file()


def test_the_extras_that_the_examples_need_exist() -> None:
    page = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(re.findall(r"pip install '\.\[(\w+)\]' \./snakemake_ext", page))
    assert extras == {"demo", "sqd"} <= set(project["optional-dependencies"])


def test_its_snippets_are_in_the_examples() -> None:
    folder = ROOT / "examples" / "bell"
    sources = "\n".join((folder / name).read_text() for name in ("Snakefile", "bell.py"))
    snippets = blocks(ROOT / "README.md", "python")
    assert len(snippets) == 2
    assert all(snippet in sources for snippet in snippets)


@pytest.mark.parametrize("readme", [ROOT / "README.md", ROOT / "examples" / "README.md"])
def test_its_links_lead_to_files_that_exist(readme: Path) -> None:
    links = re.findall(r"\]\((?!https://)([^)#]+)\)", readme.read_text(encoding="utf-8"))
    assert len(links) > 3
    assert [link for link in links if not (readme.parent / link).exists()] == []

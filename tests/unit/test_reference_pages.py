"""The reference pages agree with the code on the variables, layers and places that they name."""

import re
from pathlib import Path

from test_imports import LAYERS, MODULES, strings_of

from qrmi_workflows.config.variables import INTERNAL_VARIABLES, USER_VARIABLES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
OUR_VARIABLE = re.compile(r"(?<!SLURM_JOB_)(?<!QRMI_JOB_)\bQPU_[A-Z][A-Z_]*[A-Z]\b")


def rows(page: Path, heading: str) -> list[str]:
    """Return the first cells of the table below a heading."""
    section = page.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([A-Z_]+)` \|", section, re.MULTILINE)


def test_the_page_of_variables_lists_all_of_ours():
    page = DOCS / "environment.md"

    assert rows(page, "Variables for users and sites") == list(USER_VARIABLES)
    internal = rows(page, "Internal variables")
    assert internal == list(INTERNAL_VARIABLES)


def test_every_variable_of_ours_is_named_in_one_file():
    """Elsewhere its constant is imported."""
    found = [
        f"{name}:{line} {text!r}"
        for name, path in MODULES.items()
        if name != "qrmi_workflows.config.variables"
        for line, text in strings_of(path)
        if text in {*USER_VARIABLES, *INTERNAL_VARIABLES}
    ]
    unknown = [
        f"{name}:{line} {word}"
        for name, path in MODULES.items()
        for line, text in strings_of(path)
        for word in OUR_VARIABLE.findall(text)
        if word not in {*USER_VARIABLES, *INTERNAL_VARIABLES}
    ]
    assert found == []
    assert unknown == []


def test_the_picture_of_the_layers_has_them_in_their_order():
    picture = (DOCS / "architecture.md").read_text(encoding="utf-8").split("```")[1]
    drawn = re.findall(
        r"^ +(?:(?:for tests|and demos) +)?(\w+)/?  (?! *snake)", picture, re.MULTILINE
    )

    assert drawn == list(LAYERS)


def test_the_places_that_the_architecture_names_exist():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|benchmarks|state|config|client|tasks|lease)/[\w/.]*)`", text)
    assert len(named) > 15
    for path in named:
        assert (ROOT / path).exists() or (ROOT / "qrmi_workflows" / path).exists(), path


def test_no_word_is_explained_twice():
    text = (DOCS / "glossary.md").read_text(encoding="utf-8")
    words = re.findall(r"^\| \*\*([\w -]+)\*\*", text, re.MULTILINE)

    assert len(words) > 40
    assert len(set(words)) == len(words)

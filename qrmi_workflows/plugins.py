"""Find what the installed packages add by entry point: vendors, schedulers, dialects.

`importlib.metadata` does the same, but takes 35 ms to import and to read all metadata, and every
command of a job would pay for it while it holds a QPU. This reads only the files that list entry
points (https://packaging.python.org/en/latest/specifications/entry-points/). Nothing is cached on
disk, so a package counts as soon as it is installed.
"""

from __future__ import annotations

import os
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

__all__ = ["Plugin", "find_plugins"]

_METADATA = (".dist-info", ".egg-info")
_OURS = "qrmi_workflows."


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """One entry point.

    Attributes:
        name: Its name, such as a resource type.
        value: The object that it adds, as `module:name`.
    """

    name: str
    value: str

    def load(self) -> Any:
        """Import and return the object.

        Raises:
            ImportError, AttributeError: There is none.
        """
        return pkgutil.resolve_name(self.value)


def find_plugins(group: str) -> Mapping[str, Plugin]:
    """Return the plugins of a group by name; of several of the same name, the first on `sys.path`.

    Args:
        group: The group of entry points (`qrmi_workflows.vendors`).
    """
    return _all_plugins().get(group, {})


@cache
def _all_plugins() -> Mapping[str, Mapping[str, Plugin]]:
    texts = _read_folders(sys.path) if _are_all_in_folders() else _read_by_importlib()
    plugins: dict[str, dict[str, Plugin]] = {}
    for text in texts:
        if _OURS in text:  # hardly any package has one of ours
            for group, plugin in _parse(text):
                plugins.setdefault(group, {}).setdefault(plugin.name, plugin)
    return plugins


def _are_all_in_folders() -> bool:
    """Return whether all packages are in folders: not in archives, or where only a finder looks."""
    finders = (each for each in sys.meta_path if hasattr(each, "find_distributions"))
    return all(each is PathFinder for each in finders) and not any(
        os.path.isfile(entry)  # noqa: PTH113 - `Path.is_file` raises PermissionError
        for entry in sys.path
    )


def _read_folders(folders: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for folder in folders:
        try:
            names = sorted(os.listdir(folder or "."))  # noqa: PTH208 - half the time of `iterdir`
        except OSError:
            continue
        for name in names:
            if not name.endswith(_METADATA):
                continue
            # A package that is installed twice counts once, where Python would import it from.
            package = re.sub(r"[-_.]+", "_", Path(name).stem.partition("-")[0].lower())
            if package not in seen:
                seen.add(package)
                with suppress(OSError):
                    file = Path(folder, name, "entry_points.txt")
                    yield file.read_text(encoding="utf-8", errors="replace")


def _read_by_importlib() -> Iterator[str]:
    from importlib.metadata import distributions

    seen: set[str] = set()
    for distribution in distributions():
        if distribution.name not in seen:
            seen.add(distribution.name)
            yield distribution.read_text("entry_points.txt") or ""


def _parse(text: str) -> Iterator[tuple[str, Plugin]]:
    group = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            group = line.strip("[]").strip()
        elif "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            value = value.partition("[")[0].strip()  # without extras
            yield group, Plugin(name=name.strip(), value=value)

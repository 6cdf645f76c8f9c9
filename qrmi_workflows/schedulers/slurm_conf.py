"""Slurm: add a site's lines to slurm.conf and gres.conf, and take them back exactly.

Lines that the site has are not deleted, but commented out with a mark; the new ones stand in a
marked block at the end. So taking them back restores the file byte for byte. Everything is pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from qrmi_workflows.config.site import QPUPolicy
from qrmi_workflows.errors import ConfigError
from qrmi_workflows.schedulers.slurm_site import EPILOG_SECONDS, PROLOG_SECONDS

__all__ = ["ConfLines", "add_to_gres_conf", "add_to_slurm_conf", "take_back"]

_MARK = "#qpu# "
_BEGIN = "# BEGIN qpu site install; `qpu site uninstall` removes these lines"
_NO_NEWLINE = " (the file did not end in a line break)"
_END = "# END qpu site install"
_BLOCK = re.compile(
    rf"^{re.escape(_BEGIN)}({re.escape(_NO_NEWLINE)})?\n.*?^{re.escape(_END)}\n",
    re.MULTILINE | re.DOTALL,
)
_BATCH_START = "10"  # Slurm's default, in seconds
_SCRIPT = re.compile(r"[\w./*?\[\]%+-]+")
_WITH_ALLOC = {"alloc", "contain", "x11", "serial"}  # flags that make Slurm run a Prolog early


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfLines:
    """A changed file.

    Attributes:
        text: Its new content.
        added: The lines that were added.
        earlier: The site's own scripts, by the names of ours that run them.
        by_hand: What is left to do.
    """

    text: str
    added: tuple[str, ...]
    earlier: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    by_hand: tuple[str, ...] = ()


def take_back(text: str) -> str:
    """Return a file as it was before lines were added to it."""
    without = _BLOCK.sub(lambda match: "\0" if match[1] else "", text)
    without = re.sub(rf"^{re.escape(_MARK)}", "", without, flags=re.MULTILINE)
    return without.replace("\n\0", "").replace("\0", "")


def add_to_slurm_conf(
    text: str, qpus: Iterable[QPUPolicy], scripts: Mapping[str, str]
) -> ConfLines:
    """Add the scripts, the licences and the GRES to slurm.conf; what was added before is replaced.

    Args:
        text: The file.
        qpus: The QPUs of the site policy.
        scripts: The paths of `prolog`, `task_prolog` and `epilog`.

    Raises:
        ConfigError: One of the lines to be replaced is not understood.
    """
    policies = list(qpus)
    editor = _Editor(take_back(text))
    earlier = {}
    for key, name in (("Prolog", "prolog"), ("TaskProlog", "task_prolog"), ("Epilog", "epilog")):
        earlier[name] = tuple(editor.take(key))
        for script in earlier[name]:
            if not _SCRIPT.fullmatch(script):
                raise ConfigError(
                    f"slurm.conf: {key}={script}: must be a path without spaces and quotes, for "
                    "the new script to run it first. Correct it."
                )
        editor.add(f"{key}={scripts[name]}")
    flags = [flag for value in editor.take("PrologFlags") for flag in value.split(",")]
    if "nohold" in {flag.lower() for flag in flags}:
        raise ConfigError(
            "slurm.conf: PrologFlags=NoHold: `salloc` would not wait until the Prolog has acquired "
            "a QPU. Remove NoHold."
        )
    has_alloc = _WITH_ALLOC & {flag.lower() for flag in flags}
    editor.add(f"PrologFlags={','.join([*flags, *([] if has_alloc else ['Alloc'])])}")
    _add_list(editor, "GresTypes", [_gres_name(each) for each in policies if each.gres])
    local = [each for each in policies if each.licence and "@" not in each.licence]
    _add_list(editor, "Licenses", [f"{each.licence}:{_units(each)}" for each in local])
    for nodes, gres in _by_nodes(policies).items():
        editor.add_gres(nodes, gres)
    editor.by_hand += [*_partitions(policies), *_unfit(editor)]
    return editor.finish(earlier)


def add_to_gres_conf(text: str, qpus: Iterable[QPUPolicy]) -> ConfLines:
    """Add the QPUs to gres.conf; what was added before is replaced."""
    editor = _Editor(take_back(text))
    for each in qpus:
        if each.gres:
            nodes = f"NodeName={each.gres_nodes} " if each.gres_nodes else ""
            name, _, kind = each.gres.partition(":")
            typed = f" Type={kind}" if kind else ""
            line = f"{nodes}Name={name}{typed} Count={_units(each)} Flags=CountOnly"
            if line not in editor.added:
                editor.add(line)
    return editor.finish({})


class _Editor:
    def __init__(self, text: str) -> None:
        self._has_newline = text.endswith("\n") or not text
        self._lines = text.split("\n")
        self.added: list[str] = []
        self.by_hand: list[str] = []

    def add(self, line: str) -> None:
        self.added.append(line)

    def take(self, key: str) -> list[str]:
        """Comment out the lines that set a key, and return their values."""
        values = []
        line_of_key = re.compile(rf"\s*{key}\s*=\s*([^#]*?)\s*(#.*)?", re.IGNORECASE)
        for number, line in enumerate(self._lines):
            if match := line_of_key.fullmatch(line):
                self._refuse_continued(line)
                values += [match[1]] if match[1] not in ("", "(null)") else []
                self._lines[number] = f"{_MARK}{line}"
        return values

    def value(self, key: str) -> str:
        """Return what a key is set to; the last line counts."""
        line_of_key = re.compile(rf"\s*{key}\s*=\s*([^#]*?)\s*(#.*)?", re.IGNORECASE)
        found = [match[1] for line in self._lines if (match := line_of_key.fullmatch(line))]
        return found[-1] if found else ""

    def included(self) -> list[str]:
        """Return the files that are included, which are not read."""
        lines = (re.fullmatch(r"\s*Include\s+(\S+).*", line, re.IGNORECASE) for line in self._lines)
        return [match[1] for match in lines if match]

    def add_gres(self, nodes: str | None, gres: str) -> None:
        """Add a GRES to the line of these nodes, if there is one line for exactly these."""
        for number, line in enumerate(self._lines):
            name = re.match(r"\s*NodeName\s*=\s*(\S+)", line, re.IGNORECASE)
            if nodes is None or name is None or name[1] != nodes:
                continue
            self._refuse_continued(line)
            bare, hash_sign, comment = line.partition("#")
            bare = bare.rstrip()
            has_gres = re.search(r"\bGres=(\S+)", bare, re.IGNORECASE)
            new = (
                f"{bare[: has_gres.end()]},{gres}{bare[has_gres.end() :]}"
                if has_gres
                else f"{bare} Gres={gres}"
            )
            self._lines[number] = f"{_MARK}{line}"
            self.added.append(f"{new} #{comment}" if hash_sign else new)
            return
        which = f"the nodes {nodes}" if nodes else "the nodes from which it may be used"
        self.by_hand.append(f"slurm.conf: add `Gres={gres}` to the NodeName line of {which}.")

    def finish(self, earlier: Mapping[str, tuple[str, ...]]) -> ConfLines:
        text = "\n".join(self._lines)
        if self.added:
            begin = _BEGIN if self._has_newline else f"{_BEGIN}{_NO_NEWLINE}"
            gap = "" if self._has_newline else "\n"
            text = "\n".join([f"{text}{gap}{begin}", *self.added, _END, ""])
        return ConfLines(
            text=text, added=tuple(self.added), earlier=earlier, by_hand=tuple(self.by_hand)
        )

    @staticmethod
    def _refuse_continued(line: str) -> None:
        if line.rstrip().endswith("\\"):
            raise ConfigError(
                f"slurm.conf: {line.strip()!r} continues on the next line; must be on one line to "
                "be replaced. Join the lines."
            )


def _add_list(editor: _Editor, key: str, wanted: Iterable[str]) -> None:
    """Add entries to a list, after those that the site has."""
    new = list(dict.fromkeys(wanted))
    if not new:
        return
    entries = [entry for value in editor.take(key) for entry in value.split(",") if entry]
    names = {entry.partition(":")[0].lower() for entry in entries}
    entries += [entry for entry in new if entry.partition(":")[0].lower() not in names]
    editor.add(f"{key}={','.join(entries)}")


def _gres_name(policy: QPUPolicy) -> str:
    return (policy.gres or "").partition(":")[0]


def _units(policy: QPUPolicy) -> int:
    """Return how many jobs may hold a QPU at once: each unit of a shared one is a lane."""
    return policy.lanes if policy.exclusive is False else 1


def _by_nodes(policies: Iterable[QPUPolicy]) -> dict[str | None, str]:
    found: dict[str | None, list[str]] = {}
    for each in policies:
        if each.gres:
            found.setdefault(each.gres_nodes, []).append(f"{each.gres}:{_units(each)}")
    return {nodes: ",".join(dict.fromkeys(gres)) for nodes, gres in found.items()}


def _unfit(editor: _Editor) -> list[str]:
    """Say which settings do not suit a Prolog that acquires QPUs."""
    found = []
    level = editor.value("SlurmdDebug")
    if re.fullmatch(r"debug[2-5]?|[5-9]", level, re.IGNORECASE):
        found.append(
            f"slurm.conf: SlurmdDebug={level} logs each variable that a TaskProlog exports, with "
            "credentials: use `info` or `verbose`."
        )
    # The last two: from Slurm 24.11 on.
    for key, needed in (
        ("PrologEpilogTimeout", PROLOG_SECONDS),
        ("PrologTimeout", PROLOG_SECONDS),
        ("EpilogTimeout", EPILOG_SECONDS),
    ):
        if (timeout := editor.value(key)).isdecimal() and int(timeout) <= needed:
            found.append(
                f"slurm.conf: {key}={timeout} may end a script early, and then Slurm drains the "
                f"node. Set it to more than {needed}."
            )
    start = editor.value("BatchStartTimeout") or _BATCH_START
    if start.isdecimal() and int(start) <= PROLOG_SECONDS:
        found.append(
            f"slurm.conf: BatchStartTimeout={start}: Slurm may requeue a batch job whose Prolog "
            f"takes longer. Set it to more than {PROLOG_SECONDS}."
        )
    for file in editor.included():
        found.append(
            f"slurm.conf: includes {file}: if that sets Prolog, TaskProlog, Epilog, PrologFlags, "
            "GresTypes or Licenses, move these lines to slurm.conf, and repeat this command."
        )
    return found


def _partitions(policies: Iterable[QPUPolicy]) -> list[str]:
    """Say which partitions to limit; a Prolog refuses too, but only once the job has started."""
    found = []
    for each in policies:
        limits = [f"AllowGroups={','.join(each.groups)}"] if each.groups and not each.users else []
        limits += [f"AllowAccounts={','.join(each.accounts)}"] if each.accounts else []
        for partition in each.all_partitions if limits else ():
            line = f"PartitionName={partition} … {' '.join(limits)}"
            found.append(f"slurm.conf: refuse others' jobs early, by `{line}`.")
    return list(dict.fromkeys(found))

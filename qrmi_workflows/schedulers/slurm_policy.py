"""Slurm: propose a site policy from what it is configured with; for `qpu doctor --write`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from qrmi_workflows.errors import ConfigError
from qrmi_workflows.schedulers.slurm_config import seconds_of
from qrmi_workflows.schedulers.slurm_facts import SlurmFacts, compress_nodes

__all__ = ["propose_settings"]

_QPU_GRES = "qpu"


def propose_settings(facts: SlurmFacts, qpus: Iterable[str]) -> dict[str, dict[str, object]]:
    """Return the settings of `site.toml` for each QPU that Slurm grants.

    Args:
        facts: What Slurm is configured with.
        qpus: The names of the QPUs that are defined; if there are none, those of the GRES `qpu`.

    Raises:
        ConfigError: Slurm grants none of them.
    """
    names = list(qpus) or _types_of(facts, _QPU_GRES)
    found = {name: settings for name in names if (settings := _settings(facts, name))}
    if not found:
        gres = ", ".join(sorted({each for node in facts.nodes.values() for each in node.gres}))
        raise ConfigError(
            f"Slurm has neither a GRES nor a licence for any of the QPUs {', '.join(names)}; its "
            f"GRES are {gres or 'none'}, its licences {', '.join(sorted(facts.licences)) or 'none'}"
            ". Add for example `Licenses=qpu_NAME:1` to slurm.conf, and run this again."
        )
    return found


def _types_of(facts: SlurmFacts, gres: str) -> list[str]:
    typed = {each for node in facts.nodes.values() for each in node.gres if ":" in each}
    return sorted(each.partition(":")[2] for each in typed if each.partition(":")[0] == gres)


def _settings(facts: SlurmFacts, qpu: str) -> dict[str, object]:
    gres, licence = _gres_of(facts, qpu), _licence_of(facts, qpu)
    if gres is None and licence is None and not facts.has_qpu_option:
        return {}
    nodes = facts.nodes_with(gres) if gres else {}
    settings: dict[str, object] = {}
    if gres is not None:
        settings["gres"] = _pattern(gres, qpu)
        settings["gres_nodes"] = compress_nodes([*nodes])
    if licence is not None:
        settings["licence"] = _pattern(licence, qpu)
    if facts.has_qpu_option:
        settings["qpu_option"] = True
    units = facts.licences[licence] if licence else max(nodes.values(), default=1)
    if gres is not None and not gres.lower().endswith(f":{qpu.lower()}"):
        units = facts.licences[licence] if licence else 1  # the GRES counts other QPUs, too
    if units > 1:
        settings |= {"lanes": units, "exclusive": False}
    return settings | _partition_settings(facts, {*nodes}) | _kill_wait(facts)


def _gres_of(facts: SlurmFacts, qpu: str) -> str | None:
    """Return the GRES whose type is the QPU's name; else the GRES `qpu` without types."""
    offered = sorted({each for node in facts.nodes.values() for each in node.gres})
    for name in offered:
        if name.partition(":")[2].lower() == qpu.lower():
            return name
    if _QPU_GRES in offered and not _types_of(facts, _QPU_GRES):
        return _QPU_GRES
    return None


def _licence_of(facts: SlurmFacts, qpu: str) -> str | None:
    """Return the licence that is named after the QPU; the shortest, if there are several."""
    named = re.compile(rf"(?:.*[^A-Za-z0-9])?{re.escape(qpu)}(?:[^A-Za-z0-9].*)?", re.IGNORECASE)
    return min(
        filter(named.fullmatch, facts.licences), key=lambda each: (len(each), each), default=None
    )


def _pattern(written: str, qpu: str) -> str:
    """Replace the QPU's name by `{qpu}`, if that is how the name is spelled."""
    return written.replace(qpu, "{qpu}", 1) if qpu in written else written


def _partition_settings(facts: SlurmFacts, nodes: set[str]) -> dict[str, object]:
    """Return the partitions that reach the QPU, if a job needs to name one, and their limits."""
    reaching = {
        name: each for name, each in facts.partitions.items() if not nodes or each.nodes & nodes
    }
    if not reaching or any(each.is_default for each in reaching.values()):
        return {}
    settings: dict[str, object] = {"partition": next(iter(reaching))}
    if len(reaching) > 1:
        settings = {"partitions": sorted(reaching)}
    for key in ("groups", "accounts"):
        limits: Mapping[str, frozenset[str] | None]
        limits = {name: getattr(each, key) for name, each in reaching.items()}
        if all(limit is not None for limit in limits.values()):
            settings[key] = sorted({name for limit in limits.values() for name in limit or ()})
    return settings


def _kill_wait(facts: SlurmFacts) -> dict[str, object]:
    seconds = seconds_of(facts.config.get("KillWait", ""))
    return {"kill_wait": seconds} if seconds else {}

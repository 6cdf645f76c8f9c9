"""Propose a site policy from what the scheduler grants; for `qpu doctor --write`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path

from qrmi_workflows.config.policy_keys import find_mistakes
from qrmi_workflows.config.qpus import find_config, load_qpus
from qrmi_workflows.errors import ConfigError
from qrmi_workflows.schedulers import this_scheduler

__all__ = ["propose_policy", "render_policy"]


def propose_policy(config: Path | None = None) -> str:
    """Return a proposal for `site.toml`.

    Args:
        config: The path of `qrmi_config.json`; `find_config` finds it if `None`.

    Raises:
        ConfigError: The scheduler grants none of the QPUs.
        SchedulerError: The scheduler did not answer.
    """
    scheduler = this_scheduler()
    names: list[str] = []
    try:
        path = config or find_config()
        names = sorted(load_qpus(path))
    except ConfigError:
        if config is not None:
            raise
    return render_policy(names, scheduler.propose_policy(names), scheduler.name)


def render_policy(
    defined: list[str], settings: Mapping[str, Mapping[str, object]], scheduler: str
) -> str:
    """Render `site.toml`; what all QPUs have in common goes into `[defaults]`.

    Raises:
        ConfigError: The result would not be valid; the scheduler has names that are not allowed.
    """
    common: dict[str, object] = {}
    if len(settings) > 1:
        first, *others = settings.values()
        common = {
            key: value
            for key, value in first.items()
            if all(each.get(key) == value for each in others)
        }
    lines = [
        "# Proposed by `qpu doctor --write`. Read it before you use it.",
        f"scheduler = {json.dumps(scheduler)}",
    ]
    if common:
        lines += ["", "[defaults]", *_render(common)]
    for name, own in settings.items():
        rest = {key: value for key, value in own.items() if key not in common}
        lines += ["", f"[qpus.{json.dumps(name)}]", *_render(rest)]
    for name in defined:
        if name not in settings:
            lines += ["", f"# The scheduler does not grant {name}: it has nothing of that name."]
    text = "\n".join([*lines, ""])
    if mistake := next(find_mistakes(tomllib.loads(text)), None):
        raise ConfigError(f"cannot propose a policy: {mistake.text}")
    return text


def _render(settings: Mapping[str, object]) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in settings.items()]


def _value(value: object) -> str:
    # JSON's strings, numbers, booleans and lists of these are TOML's, too.
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)

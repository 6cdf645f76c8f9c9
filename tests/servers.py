"""The servers that a client must get along with: the emulator's `ServerSettings`, varied."""

from __future__ import annotations

import tomllib

from qrmi_workflows.emulator.dialects import load_dialect
from qrmi_workflows.emulator.settings import ServerSettings

__all__ = ["RESULT_SETTINGS", "qpus_of_servers", "servers", "to_toml", "vary"]

RESULT_SETTINGS = {"encodes_if_asked", "nests_samples", "quoted_programs", "sorts_parameters"}
"""Settings that change only results, or which of others' payloads are taken, not the API."""


def servers(
    *types: str,
    results: bool = False,
    billing: bool = False,
    offline: bool = False,
    queue: bool = False,
) -> list[dict[str, bool]]:
    """Return settings for the servers of resource types: the defaults, and each one inverted.

    Args:
        *types: The resource types.
        results: Whether to invert the settings that change only results, too.
        billing: Whether to invert those that only say what is billed, instead of all others.
        offline: Whether to invert those, too, that say what becomes of a QPU's tasks when it goes
            offline.
        queue: Whether to invert only those that say how the queue is counted.
    """
    defaults = ServerSettings()
    dialects = [load_dialect(type_) for type_ in types]
    chosen = [each.billing_settings if billing else each.server_settings for each in dialects]
    if queue:
        chosen = [each.queue_settings for each in dialects]
    if offline:
        chosen += [each.offline_settings for each in dialects]
    names = sorted({name for settings in chosen for name in settings})
    if not results:
        names = [name for name in names if name not in RESULT_SETTINGS]
    values = {name: getattr(defaults, name) for name in names}
    return [{}, *({name: not on} for name, on in values.items() if isinstance(on, bool))]


def qpus_of_servers(type_: str, prefix: str) -> dict[str, dict[str, bool]]:
    """Return a QPU for each server of a resource type: its name, and its server's settings."""
    return {f"{prefix}_{'_'.join(server) or 'default'}": server for server in servers(type_)}


def to_toml(server: dict[str, bool]) -> str:
    """Render settings as a value of `server` in the emulator's TOML file."""
    return "{" + ", ".join(f"{name} = {str(on).lower()}" for name, on in server.items()) + "}"


def vary(config: str, server: dict[str, bool]) -> str:
    """Add settings to all QPUs of a TOML file whose dialects have them."""
    for name, table in tomllib.loads(config)["qpus"].items():
        if "server" in table:  # it differs already
            continue
        known = load_dialect(table["type"]).server_settings
        chosen = {key: on for key, on in server.items() if key in known}
        config = config.replace(f"[qpus.{name}]\n", f"[qpus.{name}]\nserver = {to_toml(chosen)}\n")
    return config

"""The servers that a client must get along with: the emulator's `ServerSettings`, varied."""

from __future__ import annotations

from qrmi_workflows.emulator.dialects import load_dialect
from qrmi_workflows.emulator.settings import ServerSettings

__all__ = ["qpus_of_servers", "servers", "to_toml"]


def servers(type_: str) -> list[dict[str, bool]]:
    """Return settings for the servers of a resource type: the defaults, and each one inverted."""
    defaults = ServerSettings()
    switches = [
        name
        for name in load_dialect(type_).server_settings
        if type(getattr(defaults, name)) is bool
    ]
    return [{}, *({name: not getattr(defaults, name)} for name in switches)]


def qpus_of_servers(type_: str, prefix: str) -> dict[str, dict[str, bool]]:
    """Return a QPU for each server of a resource type: its name, and its server's settings."""
    return {f"{prefix}_{'_'.join(server) or 'default'}": server for server in servers(type_)}


def to_toml(server: dict[str, bool]) -> str:
    """Render settings as a value of `server` in the emulator's TOML file."""
    return "{" + ", ".join(f"{name} = {str(on).lower()}" for name, on in server.items()) + "}"

"""The emulator's accounts with each vendor, and the `qrmi_config.json` that uses them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qrmi_workflows.emulator.dialects import Dialect
from qrmi_workflows.emulator.settings import EmulatorSettings

__all__ = ["Accounts", "complete_accounts", "qrmi_config"]

Accounts = Mapping[str, Mapping[str, str]]
"""The credentials of each vendor's account, by resource type."""


def complete_accounts(accounts: Accounts, dialects: Mapping[str, Dialect]) -> Accounts:
    """Return the accounts with one for every dialect; existing credentials are kept."""
    new = {
        name: {**dialect.new_secrets(), **accounts.get(name, {})}
        for name, dialect in dialects.items()
    }
    return {**accounts, **new}


def qrmi_config(
    settings: EmulatorSettings, url: str, accounts: Accounts, dialects: Mapping[str, Dialect]
) -> dict[str, Any]:
    """Return the content of upstream's `qrmi_config.json` for the emulator's QPUs.

    Args:
        settings: The QPUs.
        url: The emulator's base URL.
        accounts: The credentials of each vendor's account.
        dialects: The dialect of each resource type in use.
    """
    resources = []
    for qpu in settings.qpus.values():
        base = f"{url}/{qpu.type}"
        environment = dialects[qpu.type].environment(qpu.name, base, accounts[qpu.type])
        resources.append({"name": qpu.name, "type": qpu.type, "environment": environment})
    return {"resources": resources}

"""The QPUs behind the dynamic entries of `qrmi_config.json`, which stand for an account's QPUs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from qrmi_workflows.client.failures import TRY_LATER
from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.config.qpus import QPUDefinition
from qrmi_workflows.errors import ConfigError, ResourceError

__all__ = ["find_discovered", "list_discovered"]

_SECONDS = 10.0
_UNKNOWN = {400, 404}  # 400: QRMI's own, for a device that Pasqal Cloud does not have


def find_discovered(name: str, dynamic: Iterable[QPUDefinition]) -> QPUDefinition | None:
    """Return the definition of a QPU of one of these accounts; `None` if none has it.

    The vendor is asked for the QPU's status. QRMI's `ResourceProvider` would write the account's
    credentials into this process's environment (0.26.4), from where jobs would inherit them.

    Args:
        name: The QPU's name at the vendor.
        dynamic: The entries that stand for accounts.

    Raises:
        ResourceError: None has it, and a vendor did not answer.
    """
    failure: ResourceError | None = None
    for account in dynamic:
        resource = QRMIResource(
            name, account.type, account.environment, deadlines={"status": _SECONDS}
        )
        try:
            resource.status()
        except ResourceError as error:
            failure = failure if error.status_code in _UNKNOWN else error
        else:
            return QPUDefinition(name=name, type=account.type, environment=account.environment)
        finally:
            resource.close()
    if failure is not None:
        raise failure
    return None


def list_discovered(account: QPUDefinition) -> list[QPUDefinition]:
    """Ask QRMI for the QPUs of an account.

    Raises:
        ConfigError: QRMI cannot list the QPUs of this type.
        ResourceError: The vendor did not answer.
    """
    try:
        # In a process of its own, because QRMI writes the account's credentials into its
        # environment (0.26.4), from where all processes that this one starts would inherit them.
        done = subprocess.run(
            [sys.executable, "-P", "-m", "qrmi_workflows.client.account"],
            input=json.dumps({"type": account.type, "environment": dict(account.environment)}),
            capture_output=True,
            text=True,
            check=True,
            timeout=_SECONDS,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise ResourceError(
            f"{account.name!r}: the vendor did not list its QPUs within {_SECONDS:g} s. {TRY_LATER}"
        ) from error
    except (subprocess.CalledProcessError, OSError, ValueError) as error:
        raise ResourceError(
            f"{account.name!r}: QRMI did not list its QPUs: its process failed. {TRY_LATER}"
        ) from error
    if answer.get("cannot_list"):
        raise ConfigError(
            f"{account.name!r}: QRMI cannot list the QPUs of type {account.type!r}. Define each of "
            "them, without `is_dynamic`."
        )
    if "failure" in answer:
        raise ResourceError(
            f"{account.name!r}: the vendor did not list its QPUs: {answer['failure']}"
        )
    return [
        QPUDefinition(name=name, type=account.type, environment=account.environment)
        for name in answer["qpus"]
    ]

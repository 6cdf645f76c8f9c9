"""The QPUs behind the dynamic entries of `qrmi_config.json`, which stand for an account's QPUs."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import Future
from importlib import import_module
from typing import Any

from qrmi_workflows.client.failures import TRY_LATER
from qrmi_workflows.client.redaction import redact, secrets_of
from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.config.qpus import QPUDefinition
from qrmi_workflows.errors import ConfigError, ResourceError
from qrmi_workflows.vendors.registry import registered_type

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

    Call this only in a process that starts no others: QRMI writes the account's credentials into
    its environment.

    Raises:
        ConfigError: QRMI cannot list the QPUs of this type.
        ResourceError: The vendor did not answer.
    """
    answer: Future[list[str]] = Future()
    threading.Thread(target=_ask, args=(account, answer), name="discovery", daemon=True).start()
    try:
        names = answer.result(_SECONDS)
    except TimeoutError as error:
        raise ResourceError(
            f"{account.name!r}: the vendor did not list its QPUs within {_SECONDS:g} s. {TRY_LATER}"
        ) from error
    return [
        QPUDefinition(name=name, type=account.type, environment=account.environment)
        for name in names
    ]


def _ask(account: QPUDefinition, answer: Future[list[str]]) -> None:
    qrmi: Any = import_module("qrmi")  # its type stubs do not have the classes used here (0.26.4)
    known = registered_type(account.type)
    member = getattr(qrmi.ResourceType, known.qrmi if known else "", None)
    try:
        provider = qrmi.ResourceProvider(member, dict(account.environment))
        answer.set_result(sorted(each.resource_id() for each in provider.resources()))
    except (TypeError, qrmi.UnsupportedResourceTypeError):
        answer.set_exception(
            ConfigError(
                f"{account.name!r}: QRMI cannot list the QPUs of type {account.type!r}. Define "
                "each of them, without `is_dynamic`."
            )
        )
    except Exception as error:
        reason = redact(str(error), secrets_of(account.environment))
        answer.set_exception(
            ResourceError(f"{account.name!r}: the vendor did not list its QPUs: {reason}")
        )

"""List the QPUs of an account, in a process of its own: see `discovery.list_discovered`.

The account is read from stdin, as JSON with `type` and `environment`. What is printed is JSON with
`qpus`, the names; or with `cannot_list`; or with `failure`, the reason.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from qrmi_workflows.client.redaction import redact, secrets_of
from qrmi_workflows.vendors.registry import registered_type

__all__ = ["main"]


def main() -> None:
    """Answer the request on stdin."""
    account = json.load(sys.stdin)
    print(json.dumps(_ask(account["type"], account["environment"])))


def _ask(type_: str, environment: Mapping[str, str]) -> dict[str, Any]:
    qrmi: Any = import_module("qrmi")  # its type stubs do not have the classes used here (0.26.4)
    known = registered_type(type_)
    member = getattr(qrmi.ResourceType, known.qrmi if known else "", None)
    try:
        provider = qrmi.ResourceProvider(member, dict(environment))
        return {"qpus": sorted(each.resource_id() for each in provider.resources())}
    except (TypeError, qrmi.UnsupportedResourceTypeError):
        return {"cannot_list": True}
    except Exception as error:
        return {"failure": redact(str(error), secrets_of(environment))}


if __name__ == "__main__":
    main()

"""Payloads for QPUs whose type no installed vendor has, but QRMI's client knows.

A newer QRMI may have types that this release has not. A payload for them is passed on as it is, and
the vendor's text is the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qrmi_workflows.errors import PayloadError, ResultError
from qrmi_workflows.vendors.base import ProgramSettings, ResourceType, VendorPayload, WithoutSDK

if TYPE_CHECKING:
    import numpy as np

__all__ = ["VERBATIM"]


@dataclass(frozen=True, slots=True)
class _Verbatim(WithoutSDK):
    """The interface is documented in `qrmi_workflows.vendors.base.Vendor`."""

    name: str = "verbatim"
    reads: tuple[str, ...] = ()

    @property
    def schema(self) -> Mapping[str, Any]:
        return {"type": "object", "required": []}

    @property
    def types(self) -> Mapping[str, ResourceType]:
        return {}

    def read(
        self,
        source: bytes | Mapping[str, Any],  # noqa: ARG002 - part of the protocol, as below
        settings: ProgramSettings,  # noqa: ARG002
        *,
        where: str,  # noqa: ARG002
    ) -> Mapping[str, Any] | None:
        return None

    def program(self, content: Mapping[str, Any]) -> str:
        return str(content.get("program_id", "unknown"))

    def check(self, content: Mapping[str, Any], *, qpu: str, target: str | None) -> None:
        del content, qpu, target  # the vendor checks it

    def encode(self, content: Mapping[str, Any]) -> VendorPayload:
        # QRMI's task_runner gives this key another name than QRMI's client.
        fields = {"input" if key == "parameters" else key: each for key, each in content.items()}
        return VendorPayload(kind=None, fields=fields)

    def with_shots(self, content: Mapping[str, Any], shots: int) -> Mapping[str, Any]:
        del content
        raise PayloadError(
            f"shots={shots}: qrmi-workflows does not know where a payload of this QPU's type has "
            "its shots. Change them in the payload."
        )

    def decode(self, program: str, text: str) -> list[dict[str, Any]] | None:
        del program, text
        return None

    def arrays(self, program: str, text: str) -> list[dict[str, np.ndarray[Any, Any]]]:
        del text
        raise ResultError(
            f"qrmi-workflows has no decoder for results of the program {program!r}. Read "
            "`vendor_result`."
        )

    def calibrated(self, target: str) -> str | None:
        del target
        return None


VERBATIM = _Verbatim()

"""Pasqal: Pulser sequences, through Pasqal Cloud and Pasqal Local."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qrmi_workflows.errors import ResultError
from qrmi_workflows.vendors import VendorPayload

__all__ = ["PASQAL"]

_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["sequence", "job_runs"],
    "properties": {
        "sequence": {"type": "object", "required": ["register"]},
        "job_runs": {"type": "integer", "minimum": 1},
    },
}


@dataclass(frozen=True, slots=True)
class _Pasqal:
    name: str = "pasqal"
    types: tuple[str, ...] = ("pasqal-cloud", "pasqal-local")

    @property
    def schema(self) -> Mapping[str, Any]:
        return _SCHEMA

    def program(self, content: Mapping[str, Any]) -> str:  # noqa: ARG002 - the protocol's
        return "pulser"

    def encode(self, content: Mapping[str, Any]) -> VendorPayload:
        return VendorPayload(
            kind="PasqalCloud",
            fields={"sequence": json.dumps(content["sequence"]), "job_runs": content["job_runs"]},
        )

    def with_shots(self, content: Mapping[str, Any], shots: int) -> Mapping[str, Any]:
        return {**content, "job_runs": shots}

    def decode(self, program: str, raw: str) -> list[dict[str, Any]]:
        try:
            counter = {str(bits): int(n) for bits, n in json.loads(raw)["counter"].items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ResultError(
                f"Pasqal's result of this {program} sequence has no counter of bit strings "
                f"({error!r}). Its text is kept in `vendor_result`."
            ) from error
        num_bits = len(next(iter(counter), ""))
        counts = dict(sorted(counter.items()))
        return [{"registers": {"atoms": {"num_bits": num_bits, "counts": counts}}}]


PASQAL = _Pasqal()

"""How many times IBM executes circuits for an estimator, which has a precision instead of shots.

IBM takes 1 / precision² shots (https://quantum.cloud.ibm.com/docs/guides/estimator-input-output)
for each set of parameter values and each basis in which the observables are measured. Resilience
options may multiply that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from qrmi_workflows.vendors.ibm.coalescing import parameter_sets

__all__ = ["count_estimator_executions"]

_DEFAULT_PRECISION = 1 / 64


def count_estimator_executions(parameters: Mapping[str, Any]) -> int:
    """Return about how many times the circuits of an estimator's PUBs are executed in total."""
    options = parameters.get("options") or {}
    default = parameters.get("precision") or options.get("default_precision") or _DEFAULT_PRECISION
    return sum(_of_pub(pub, default) for pub in parameters["pubs"])


def _of_pub(pub: list[Any], default: float) -> int:
    precision = (pub[3] if len(pub) > 3 else None) or default
    sets = parameter_sets([pub[0], pub[2] if len(pub) > 2 else None])
    return math.ceil(round(1 / precision**2, 6)) * sets * _count_bases(pub[1])


def _count_bases(observables: Any) -> int:
    """Return how many bases measure all labels, if each is added to the first that it fits."""
    bases: list[dict[int, str]] = []
    for label in _labels(observables):
        terms = {place: pauli for place, pauli in enumerate(label) if pauli != "I"}
        for basis in bases:
            if all(basis.get(place, pauli) == pauli for place, pauli in terms.items()):
                basis |= terms
                break
        else:
            bases.append(terms)
    return max(1, len(bases))


def _labels(observables: Any) -> Iterator[str]:
    """Find the Pauli labels in labels, in mappings from label to coefficient, and in lists."""
    if isinstance(observables, str):
        yield observables
    elif isinstance(observables, Mapping):
        yield from (label for label in observables if set(label) <= set("IXYZ"))
    elif isinstance(observables, list):
        for each in observables:
            yield from _labels(each)

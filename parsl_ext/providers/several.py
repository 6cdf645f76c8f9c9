"""A block that holds several QPUs: one request to the scheduler for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qrmi_workflows.errors import RequestError

__all__ = ["join_options", "qpu_names"]

_LISTS = ("--gres", "--licenses", "--qpu")  # schedulers take a list here, and use the last of two


def qpu_names(qpu: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of the QPUs that an argument `qpu` asks for.

    Raises
    ------
    RequestError
        It asks for none, or for one twice.
    """
    names = tuple(name.strip() for name in (qpu.split(",") if isinstance(qpu, str) else qpu))
    if not names or "" in names or len(set(names)) < len(names):
        raise RequestError(f"qpu={qpu!r}: must name one or more QPUs, each once. Correct it.")
    return names


def join_options(requests: Iterable[Sequence[str]]) -> list[str]:
    """Join the scheduler's options for each QPU into those of one job.

    Raises
    ------
    RequestError
        The QPUs need different values of an option, for example of the partition.
    """
    joined: dict[str, list[str]] = {}
    for option in (each for options in requests for each in options):
        name, _, value = option.partition("=")
        values = joined.setdefault(name, [])
        if value not in values:
            values.append(value)
    for name, values in joined.items():
        if len(values) > 1 and name not in _LISTS:
            raise RequestError(
                f"the QPUs need different values of {name} ({', '.join(values)}): one job cannot "
                "hold them all. Give each an executor of its own."
            )
    return [f"{name}={','.join(values)}" for name, values in joined.items()]

"""Conditions on stored tasks, as SQL."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["where"]


def where(
    *,
    states: tuple[str, ...] = (),
    qpus: tuple[str, ...] = (),
    tags: Iterable[str] = (),
    since: float | None = None,
    until: float | None = None,
    **equal: str,
) -> tuple[str, list[object]]:
    """Render conditions on tasks that are not deleted, and the values for their placeholders.

    Args:
        states: The states to include; empty: all.
        qpus: The QPUs to include; empty: all.
        tags: Tags that the details must all have.
        since: The earliest time of acceptance.
        until: The latest time of acceptance.
        equal: Further conditions, as a column and its value.
    """
    conditions, values = ["NOT deleted"], list[object]()
    for column, value in equal.items():
        conditions.append(f"{column}=?")
        values.append(value)
    for column, allowed in (("state", states), ("qpu", qpus)):
        if allowed:
            conditions.append(f"{column} IN ({','.join('?' * len(allowed))})")
            values += allowed
    for comparison, moment in ((">=", since), ("<=", until)):
        if moment is not None:
            conditions.append(f"accepted{comparison}?")
            values.append(moment)
    for tag in tags:
        conditions.append("EXISTS (SELECT 1 FROM json_each(details, '$.tags') WHERE value=?)")
        values.append(tag)
    return " AND ".join(conditions), values

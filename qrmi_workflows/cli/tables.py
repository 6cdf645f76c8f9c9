"""Tables on stdout, and how their cells are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["format_duration", "print_table"]

_UNLIMITED = 100_000
_MINUTE, _DAY = 60, 86400


def format_duration(seconds: float) -> str:
    """Format a duration as Slurm does, `[DAYS-]HH:MM:SS`; tenths of a second below a minute."""
    if round(seconds, 1) < _MINUTE:
        return f"00:00:{seconds:04.1f}"
    days, rest = divmod(round(seconds), _DAY)
    clock = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days}-{clock}" if days else clock


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table: wrapped to fit a terminal, else with one line per row.

    Args:
        headings: The headings of the columns. The first column is never wrapped, so that its cells
            can be copied.
        rows: The cells of each row; `None` is printed as `-`.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, overflow="fold", no_wrap=index == 0)
    for row in rows:
        table.add_row(*("-" if cell is None else str(cell) for cell in row))
    console = Console(markup=False)  # names may contain brackets
    if not console.is_terminal:
        console.width = _UNLIMITED
    console.print(table)

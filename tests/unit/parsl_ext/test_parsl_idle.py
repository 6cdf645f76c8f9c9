"""How long an executor may be idle."""

from __future__ import annotations

import pytest

from parsl_ext import idle
from parsl_ext.idle import IdleTimer


def test_the_time_counts_from_the_last_call(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(idle.time, "monotonic", lambda: now[0])
    timer, endless = IdleTimer(30), IdleTimer(None)
    answers = []
    for seconds, is_busy in [
        (0, False),
        (29, False),
        (1, True),
        (5, False),
        (29, False),
        (2, False),
    ]:
        now[0] += seconds
        answers.append(timer.is_over(is_busy=is_busy))
        assert not endless.is_over(is_busy=is_busy)

    assert answers == [False, False, False, False, False, True]

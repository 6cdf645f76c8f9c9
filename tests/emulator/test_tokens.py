"""The emulator's access tokens, by the emulator's own clock."""

from __future__ import annotations

import time

import jwt
import pytest

from qrmi_workflows.emulator.clock import Clock
from qrmi_workflows.emulator.tokens import LIFETIME_SECONDS, TokenIssuer

KEY = b"k" * 64


def claims(**changed: object) -> dict[str, object]:
    """Return the claims of a valid token for the audience `api`, with some of them changed."""
    now = int(time.time())
    return {"aud": "api", "iat": now, "exp": now + 60, "gen": 0, **changed}


def test_a_token_is_a_standard_jwt():
    """Any JWT library verifies it, and clients find its lifetime in it."""
    token = TokenIssuer(KEY, Clock()).issue("api")

    assert jwt.get_unverified_header(token)["alg"] == "HS256"
    decoded = jwt.decode(token, KEY, algorithms=["HS256"], audience="api")
    assert decoded["exp"] - decoded["iat"] == LIFETIME_SECONDS


@pytest.mark.parametrize("skew", [-7200.0, 7200.0])
def test_a_token_is_valid_on_a_clock_that_is_wrong(skew):
    """It counts neither as expired nor as not yet valid, whichever way the clock is wrong."""
    clock = Clock()
    clock.skew_seconds = skew
    issuer = TokenIssuer(KEY, clock)

    assert issuer.is_valid(issuer.issue("api"), "api")


def test_a_token_expires_when_the_clock_jumps_ahead():
    """It is valid again once the clock is right."""
    clock = Clock()
    issuer = TokenIssuer(KEY, clock)
    token = issuer.issue("api")

    clock.skew_seconds = LIFETIME_SECONDS + 1
    assert not issuer.is_valid(token, "api")
    clock.skew_seconds = 0
    assert issuer.is_valid(token, "api")


def test_expiring_all_tokens_spares_later_ones_and_outlasts_a_restart():
    """The generation survives in the state folder; a token of an earlier one is invalid."""
    issuer = TokenIssuer(KEY, Clock())
    old = issuer.issue("api")
    issuer.expire_all()
    restarted = TokenIssuer(KEY, Clock(), issuer.generation)

    assert not issuer.is_valid(old, "api")
    assert not restarted.is_valid(old, "api")
    assert restarted.is_valid(issuer.issue("api"), "api")


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "é",
        "a.b.c",
        "." * 1000,
        jwt.encode(claims(), b"x" * 64, algorithm="HS256"),
        jwt.encode(claims(), None, algorithm="none"),
        jwt.encode(claims(), KEY, algorithm="HS512"),
        jwt.encode(claims(aud="other"), KEY, algorithm="HS256"),
        jwt.encode(claims(gen=1), KEY, algorithm="HS256"),
        jwt.encode(claims(gen=None), KEY, algorithm="HS256"),
        jwt.encode(claims(exp=None), KEY, algorithm="HS256"),
        jwt.encode(claims(exp=1), KEY, algorithm="HS256"),
    ],
    ids=[
        *("empty", "text", "not ASCII", "three parts", "dots", "another key", "unsigned"),
        *("another algorithm", "another audience", "another generation", "no generation"),
        *("no expiry", "expired"),
    ],
)
def test_any_other_token_is_invalid(token):
    """Only this issuer's key, algorithm, audience and generation will do."""
    issuer = TokenIssuer(KEY, Clock())

    assert issuer.is_valid(jwt.encode(claims(), KEY, algorithm="HS256"), "api")
    assert not issuer.is_valid(token, "api")

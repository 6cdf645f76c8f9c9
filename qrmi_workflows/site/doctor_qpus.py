"""Checks of the QPUs: whether their vendors answer, and whether the clocks agree."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TypeVar
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from qrmi_workflows.client.failures import TRY_LATER
from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.config.findings import Finding
from qrmi_workflows.config.qpus import QPUDefinition
from qrmi_workflows.errors import QPUError
from qrmi_workflows.site.reading import SiteReading

__all__ = ["check_clocks", "check_reachability"]

_ANSWER_SECONDS = 10.0
_DATE_SECONDS = 5.0
_SKEW_SECONDS = 30.0  # of a presigned request's validity, and of an access token's

Answer = TypeVar("Answer")


def check_reachability(reading: SiteReading) -> Iterator[Finding]:
    """Ask each vendor for the state of its QPU, all at the same time."""
    states = {name: partial(_ask_state, each) for name, each in reading.definitions.items()}
    lists = {name: partial(_list_account, each) for name, each in reading.accounts.items()}
    asked = {name: _start(ask) for name, ask in (states | lists).items()}
    for name, answer in _collect(asked, _ANSWER_SECONDS + 1).items():
        definition = reading.definitions.get(name) or reading.accounts[name]
        if isinstance(answer, str):
            yield Finding.ok("reachability", f"QPU {name!r}: {answer}")
            continue
        text = str(answer).removesuffix(TRY_LATER).strip() if answer else ""
        yield Finding.error(
            "reachability",
            f"QPU {name!r}: {text or f'no answer within {_ANSWER_SECONDS:g} s.'}",
            f"Check the address and the credentials of {definition.name!r} in "
            f"{reading.config_path}, and the way to the vendor from this host.",
        )


def _ask_state(definition: QPUDefinition) -> str:
    resource = QRMIResource(
        definition.name,
        definition.type,
        definition.environment,
        deadlines={"status": _ANSWER_SECONDS},
    )
    return str(resource.status().status).rpartition(".")[2].lower()


def _list_account(account: QPUDefinition) -> str:
    from qrmi_workflows.client.discovery import list_discovered

    return f"an account with {', '.join(each.name for each in list_discovered(account))}"


def check_clocks(reading: SiteReading) -> Iterator[Finding]:
    """Compare this host's clock with the vendors': tokens and signed requests depend on it."""
    urls: dict[str, str] = {}
    for each in (*reading.definitions.values(), *reading.accounts.values()):
        urls |= _hosts_of(each.environment)
    asked = {host: _start(partial(_clock_ahead, url)) for host, url in urls.items()}
    for host, ahead in _collect(asked, _DATE_SECONDS + 1).items():
        if not isinstance(ahead, float):
            continue  # whether it can be reached at all is reported elsewhere
        if abs(ahead) <= _SKEW_SECONDS:
            yield Finding.ok("clock", f"this host and {host} agree")
            continue
        side = "ahead of" if ahead > 0 else "behind"
        yield Finding.error(
            "clock",
            f"the clock of {host} is {abs(ahead):.0f} s {side} this host's.",
            "Synchronise this host's clock by NTP: the vendor refuses tokens and signed requests "
            "that are too old or not valid yet.",
        )


def _hosts_of(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an address at each host that a QPU's settings name."""
    hosts = {}
    for value in environment.values():
        parts = urlsplit(value) if value.startswith(("http://", "https://")) else None
        if parts is not None and parts.hostname:
            # Not the whole address: it may have more in it than the host.
            netloc = parts.netloc.rpartition("@")[2]
            hosts[netloc] = f"{parts.scheme}://{netloc}/"
    return hosts


def _clock_ahead(url: str) -> float | None:
    """Return by how many seconds a server's clock is ahead, by the Date header of any answer."""
    before = time.time()
    request = Request(url, method="HEAD")  # noqa: S310 - only http and https come here
    try:
        with urlopen(request, timeout=_DATE_SECONDS) as response:  # noqa: S310
            date = response.headers.get("Date")
    except HTTPError as error:
        date = error.headers.get("Date")
    after = time.time()
    if date is None:
        return None
    told = parsedate_to_datetime(date).timestamp()  # in whole seconds
    if told + 1 < before:
        return told + 1 - before
    return max(0.0, told - after)


def _start(ask: Callable[[], Answer]) -> Future[Answer]:
    """Ask in a thread that nothing waits for at the end of the process."""
    answer: Future[Answer] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # a vendor's client may raise anything
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer


def _collect(
    asked: Mapping[str, Future[Answer]], seconds: float
) -> dict[str, Answer | QPUError | None]:
    """Return the answers; an error, or `None` if there was none in time."""
    end = time.monotonic() + seconds
    answers: dict[str, Answer | QPUError | None] = {}
    for name, future in asked.items():
        answers[name] = None
        try:
            with suppress(TimeoutError):
                answers[name] = future.result(max(0.0, end - time.monotonic()))
        except QPUError as error:
            answers[name] = error
        except Exception as error:
            answers[name] = QPUError(f"{type(error).__name__}: {error}")
    return answers

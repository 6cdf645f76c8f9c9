"""Several users of one ledger, and those who would like to spend more than they may."""

from __future__ import annotations

import multiprocessing
import os
import pwd
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from other_users import User, temporary_user

from qrmi_workflows.budgets.allowance import Allowance, find_usage, today
from qrmi_workflows.budgets.book import Book, Spent
from qrmi_workflows.budgets.ledger import Ledger, UserLedger
from qrmi_workflows.budgets.limits import Limit, applicable, read_limits, write_limits
from qrmi_workflows.budgets.settling import settle_task
from qrmi_workflows.errors import BudgetError, ConfigError
from qrmi_workflows.journal.cost import Amount
from qrmi_workflows.journal.journal import Journal

pytestmark = pytest.mark.root

CHEM = Limit(scope="account", name="chem", unit="shots", amount=1000, per="month")
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def everybodys() -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="budgets-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def users(everybodys) -> Iterator[tuple[User, User]]:
    # What is imported on first use must be there: the users may not read this interpreter's files.
    warm = everybodys / "warm"
    Ledger(warm).prepare(for_all=True)
    write_limits(warm, [CHEM])
    run_task(warm, Journal(warm / "journal"), 1, settle=True, name="s")
    with ExitStack() as stack:
        names = ("qpu-ada", "qpu-eve")
        ada, eve = (stack.enter_context(temporary_user(name, everybodys)) for name in names)
        yield ada, eve


@pytest.fixture
def ada(users) -> User:
    return users[0]


@pytest.fixture
def eve(users) -> User:
    return users[1]


@pytest.fixture
def site(everybodys, request) -> Path:
    """A site whose account chem may take 1000 shots a month."""
    folder = everybodys / f"site-{request.node.name.replace('/', '_')[:80]}"
    folder.mkdir()
    Ledger(folder).prepare(for_all=True)
    write_limits(folder, [CHEM])
    return folder


def as_user(user: User, function: Callable[[], object]) -> object:
    """Run a function in a process of a user; return its result, or raise its error."""
    pipe, end = FORK.Pipe()

    def child() -> None:
        entry = pwd.getpwnam(user.name)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
        os.environ["HOME"] = str(user.home)
        try:
            end.send((True, function()))
        except BaseException as error:
            end.send((False, error))

    process = FORK.Process(target=child)
    process.start()
    end.close()
    is_result, value = pipe.recv()
    process.join(60)
    if not is_result:
        raise value
    return value


def spend(
    site: Path,
    user: User,
    shots: int,
    *,
    settle: bool = True,
    name: str = "s",
    members: frozenset[str] | None = None,
) -> None:
    """Run a task of a user under the account chem."""

    journal = Journal(user.home / "journal" / site.name)
    as_user(user, lambda: run_task(site, journal, shots, settle=settle, name=name, members=members))


MEMBERS = frozenset({"qpu-ada", "root"})


def run_task(
    site: Path,
    journal: Journal,
    shots: int,
    *,
    settle: bool,
    name: str,
    members: frozenset[str] | None = None,
) -> None:
    """Run a task as this process's user."""
    entry, _ = journal.step(name).claim("d" * 64, qpu="q", program="sampler")
    allowance = Allowance(folder=site, qpu="q", account="chem", members_of=lambda _account: members)
    allowance.reserve(entry, Amount(shots=shots))
    entry.intend()
    entry.submitted("task")
    if settle:
        entry.failed("no", retryable=True, spent=Amount(shots=shots))
        settle_task(entry.record)


def used(site: Path, members: frozenset[str] | None = None) -> tuple[int, int]:
    found = find_usage(Ledger(site), CHEM, "root", today(), members)
    return found.spent, found.reserved


def book_of(site: Path, user: User, account: str = "chem") -> Path:
    return UserLedger(Ledger(site), user.name).path(account)


def test_users_spend_the_budget_of_their_account_together(site, ada, eve):
    os.umask(0o077)  # what they have spent must be known to each other all the same
    try:
        spend(site, ada, 600)
        spend(site, eve, 300, settle=False)
        with pytest.raises(BudgetError, match="100 shots are left") as refused:
            spend(site, ada, 200, name="t")
    finally:
        os.umask(0o022)
    assert refused.value.budget == "account chem"
    assert used(site) == (600, 300)


def test_nobody_writes_what_others_have_spent(site, ada, eve):
    spend(site, ada, 600)
    before = book_of(site, ada).read_bytes()
    folder = book_of(site, ada).parent
    for command in (
        f"echo > {book_of(site, ada)}",
        f"rm -f {book_of(site, ada)}",
        f"touch {folder}/other.json",
        f"mv {folder} {folder}.old",
        f"ln -sf /tmp {folder}/x",
        f"echo > {site}/limits.toml",
        f"rm -rf {site}/limits.toml {folder}",
        f"mv {site}/limits.toml {site}/x",
        f"rm -f {site}/lock",
        f"flock --nonblock {folder}/lock true",
    ):
        assert eve.run("sh", "-c", command).returncode != 0, command
    assert book_of(site, ada).read_bytes() == before
    assert used(site) == (600, 0)


def test_a_book_of_a_user_who_is_not_in_the_account_does_not_count(site, ada, eve):
    """Any user can write one; the scheduler knows who may charge jobs to the account."""
    spend(site, ada, 600, members=MEMBERS)
    forged = Book(days={today(): {"q": Spent(shots=900)}}).to_json()
    folder = book_of(site, eve).parent
    done = eve.run("sh", "-c", f"mkdir {folder} && printf '%s' '{forged}' > {folder}/chem.json")
    assert done.returncode == 0, done.stderr

    assert used(site) == (1500, 0), "where nobody knows, all count"
    assert used(site, MEMBERS) == (600, 0)
    spend(site, ada, 400, name="t", members=MEMBERS)
    assert used(site, MEMBERS) == (1000, 0)


def test_a_user_who_is_not_in_the_account_cannot_spend_without_being_counted(site, eve):
    """As with a forged $SLURM_JOB_ACCOUNT."""
    with pytest.raises(BudgetError, match=r"'qpu-eve' may not charge jobs to account 'chem'"):
        spend(site, eve, 100, members=MEMBERS)
    assert used(site) == (0, 0)


def test_a_folder_that_another_user_has_made_does_not_count(site, ada, eve):
    """It would keep its victim from spending; it must not count as the victim's either."""
    forged = Book(days={today(): {"q": Spent(shots=900)}}).to_json()
    folder = book_of(site, ada).parent
    done = eve.run("sh", "-c", f"mkdir {folder} && printf '%s' '{forged}' > {folder}/chem.json")
    assert done.returncode == 0, done.stderr

    assert used(site) == (0, 0)
    with pytest.raises(BudgetError, match=r"not a folder of user 'qpu-ada'.*administrators"):
        spend(site, ada, 100)


@pytest.mark.parametrize("how", ["link", "hard link", "folder's link", "fifo", "chmod", "giant"])
def test_a_book_that_is_not_the_users_own_file_does_not_count(site, ada, eve, how):
    spend(site, ada, 600)
    spend(site, eve, 100)
    own, other = book_of(site, eve), book_of(site, ada)
    if how == "link":
        own.unlink()
        own.symlink_to(other)
    elif how == "hard link":  # as root: Linux may forbid it to users (protected_hardlinks)
        own.unlink()
        own.hardlink_to(other)
    elif how == "folder's link":
        for file in own.parent.iterdir():
            file.unlink()
        own.parent.rmdir()
        own.parent.symlink_to(other.parent)
    elif how == "fifo":
        own.unlink()
        os.mkfifo(own)
    elif how == "chmod":
        own.write_text("garbage")
    else:
        os.truncate(own, 20_000_000)

    assert used(site) == (600, 0)
    spend(site, ada, 400, name="t")
    assert used(site) == (1000, 0)


@pytest.mark.parametrize("shots", [-900, 10**30])
def test_no_user_gives_budget_back_to_an_account(site, ada, eve, shots):
    spend(site, ada, 600)
    spend(site, eve, 100)
    own = book_of(site, eve)
    own.write_text(own.read_text().replace('"shots":100', f'"shots":{shots}'))
    assert used(site) == (600, 0)


def test_limits_that_a_user_has_written_do_not_count_for_others(site, ada, eve):
    os.chown(site / "limits.toml", pwd.getpwnam(eve.name).pw_uid, -1)
    with pytest.raises(ConfigError, match="only root can write"):
        spend(site, ada, 100)


@pytest.mark.parametrize("name", ["../qpu-eve", "/etc/x", "..", "a/b", "x\0y", "*", ""])
def test_a_trick_in_a_name_never_becomes_a_path(site, ada, name):
    before = sorted(site.rglob("*"))
    own = Allowance(folder=site, qpu="q", account=name)
    entry, _ = Journal(site / "own").step("s").claim("d" * 64, qpu="q", program="sampler")
    limits = [replace(CHEM, name=name)] if name else [CHEM]
    own.own = tuple(limits)
    with pytest.raises(ConfigError, match="Correct the name"):
        own.reserve(entry, Amount(shots=1))
    with pytest.raises(ConfigError, match="Correct the name"):
        Ledger(site).user(name)
    grown = [path for path in sorted(site.rglob("*")) if path not in before]
    assert all(path.is_relative_to(site / "own") or path.name in ("root", "lock") for path in grown)
    assert applicable(read_limits(site), user=name, account=name, qpu=name) == ()

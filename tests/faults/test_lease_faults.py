"""A lease ends exactly once, on every path."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fault_payloads import bell
from waiting import wait_until

from qrmi_workflows import QuantumResult, open_lease
from qrmi_workflows.errors import ConfigError, LeaseError, SessionEndedError, UnknownQPUError
from qrmi_workflows.lease.killwait import release_budget
from qrmi_workflows.lease.reap import reap
from qrmi_workflows.lease.records import open_leases

HOLD = """
import sys, time
from qrmi_workflows import open_lease
{setup}
with open_lease("ibm_quick"):
    print("ready", flush=True)
    {body}
"""


@pytest.fixture
def holder(emulator):
    """Start programs that hold a lease, and wait until they do."""
    started = []

    def start(body: str = "time.sleep(60)", setup: str = "") -> subprocess.Popen:
        program = HOLD.format(body=body, setup=setup)
        # Coverage's tracer may swallow the SystemExit of a signal that arrives within it.
        environ = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def records(folder) -> list[dict]:
    lines = [f.read_text().splitlines() for f in (folder / "state" / "leases").glob("*.jsonl")]
    return [json.loads(line) for file in lines for line in file]


def test_leaving_the_block_releases_it_and_writes_one_record(counted, tmp_path):
    with open_lease("ibm_quick") as lease:
        assert counted()["sessions open"] == 1
        lease.run(bell())

    assert (counted()["sessions opened"], counted()["sessions open"]) == (1, 0)
    (record,) = records(tmp_path)
    assert record["qpu"] == "ibm_quick"
    assert record["tasks"] == 1
    assert 0.05 <= record["busy"] <= record["held"]
    assert record["idle"] == pytest.approx(record["held"] - record["busy"], abs=0.01)
    assert list(open_leases()) == []


def test_an_exception_releases_it(counted):
    with pytest.raises(ZeroDivisionError), open_lease("ibm_quick"):
        _ = 1 / 0

    assert counted()["sessions open"] == 0


def test_releasing_it_twice_releases_it_once(counted):
    lease = open_lease("ibm_quick")
    lease.release()
    lease.release()

    assert counted()["sessions closed"] == 1
    with pytest.raises(LeaseError, match="has been released"):
        lease.run(bell())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_releases_it(holder, counted, number):
    process = holder()

    process.send_signal(number)

    assert process.wait(timeout=60) == (143 if number == signal.SIGTERM else -signal.SIGINT)
    assert counted()["sessions open"] == 0


@pytest.mark.parametrize("gap", [0.0, 0.001, 0.004])
def test_a_burst_of_sigterms_releases_it_once(holder, counted, gap):
    """Slurm signals all processes of a job, and a supervisor passes its own signal on."""
    processes = [holder() for _ in range(4)]
    for process in processes:
        for _ in range(12):
            process.terminate()
            time.sleep(gap)

    assert {process.wait(timeout=60) for process in processes} == {143}
    assert (counted()["sessions closed"], counted()["sessions open"]) == (4, 0)
    assert list(open_leases()) == []


def test_exiting_releases_it(holder, counted):
    process = holder(body="sys.exit(4)")

    assert process.wait(timeout=60) == 4
    assert counted()["sessions open"] == 0


def test_a_programs_own_handler_of_sigterm_is_kept(holder, counted):
    process = holder(
        setup="import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))",
    )

    process.terminate()

    assert process.wait(timeout=60) == 9
    assert counted()["sessions open"] == 0


def test_after_sigkill_it_is_reaped_once(holder, counted):
    process = holder()
    process.kill()
    process.wait()
    assert counted()["sessions open"] == 1

    first, second = reap(), reap()

    assert [one.released for one in first] == [True]
    assert second == []
    assert counted()["sessions open"] == 0


def test_opening_another_lease_reaps_it_after_sigkill(holder, counted):
    process = holder()
    process.kill()
    process.wait()

    with open_lease("ibm_other"):
        assert counted()["sessions open"] == 1

    assert counted()["sessions open"] == 0


def test_the_lease_of_a_living_process_is_not_reaped(holder, counted):
    holder()

    assert reap() == []
    assert counted()["sessions open"] == 1


def test_the_token_is_only_in_a_file_of_mode_0600(quick, tmp_path):
    token = quick.environment()["ibm_quick_QRMI_JOB_ACQUISITION_TOKEN"]
    files = [f for f in tmp_path.rglob("*") if f.is_file() and token in f.read_text()]

    assert [oct(file.stat().st_mode & 0o777) for file in files] == ["0o600"]
    quick.run(bell())
    quick.release()
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and token in f.read_text()]
    assert token not in repr(quick)


def test_a_lease_in_the_environment_is_adopted_and_left_open(counted, quick, monkeypatch):
    for name, value in quick.environment().items():
        monkeypatch.setenv(name, value)

    with open_lease() as adopted:
        assert adopted.adopted
        adopted.run(bell())

    assert counted()["sessions opened"] == counted()["sessions open"] == 1
    quick.release()


def test_several_qpus_are_acquired_and_released_together(counted):
    with open_lease(["ibm_quick", "ibm_other"]) as leases:
        assert counted()["sessions open"] == 2
        assert leases["ibm_other"].run(bell()).qpu == "ibm_other"
        assert leases.environment()["QRMI_JOB_QPU_RESOURCES"] == "ibm_quick,ibm_other"

    assert counted()["sessions open"] == 0


@pytest.mark.any_server
def test_releases_to_silent_vendors_run_at_the_same_time(fault, emulator, matched, monkeypatch):
    """All share KillWait, so their releases must run at the same time."""
    monkeypatch.setenv("QPU_KILL_WAIT", "20")
    deadline = release_budget().release_call
    leases = open_lease(["ibm_quick", "ibm_other"])
    fault("hang", route="PATCH */sessions/*")

    with ThreadPoolExecutor() as pool:
        released = pool.submit(leases.release)
        wait_until(lambda: matched() == 2, "the call to each vendor", 0.8 * deadline)
        with pytest.raises(LeaseError, match="did not answer release within"):
            released.result()
    emulator.control.ask("DELETE", "/faults")

    for opened in open_leases():
        leases[opened.qpu].resource.release(opened.token)
        opened.close()


def test_several_qpus_are_acquired_or_none(fault, counted):
    fault("status", route="POST */sessions", status=403, after=1)

    with pytest.raises(LeaseError, match="could not be acquired"):
        open_lease(["ibm_quick", "ibm_other"])

    assert (counted()["sessions opened"], counted()["sessions open"]) == (1, 0)


def test_an_unknown_qpu_is_refused_before_anything_is_acquired(emulator, counted):
    with pytest.raises(UnknownQPUError, match="Did you mean 'ibm_quick'"):
        open_lease("ibm_quik")
    with pytest.raises(ConfigError, match="Name one: "):
        open_lease()
    with pytest.raises(UnknownQPUError):
        open_lease(["ibm_quick", "ibm_nowhere"])

    assert counted()["sessions opened"] == 0


def test_a_failed_release_names_qpu_reap(counted, fault, emulator):
    fault("status", route="PATCH */sessions/*", status=403, count=1)
    lease = open_lease("ibm_quick")

    with pytest.raises(LeaseError, match="qpu reap"):
        lease.release()

    assert counted()["sessions open"] == 1
    opened = next(iter(open_leases()))
    assert opened.owner.pid == os.getpid()  # not an orphan while this process lives
    lease.resource.release(opened.token)
    opened.close()


def test_a_failed_release_does_not_hide_the_programs_error(fault, counted, caplog):
    fault("status", route="PATCH */sessions/*", status=403, count=1)

    with pytest.raises(ZeroDivisionError), open_lease("ibm_quick"):
        _ = 1 / 0

    assert "could not be released" in caplog.text


def test_a_failed_release_does_not_lose_the_result_of_qpu_run(
    fault, counted, payload_file, tmp_path
):
    fault("status", route="PATCH */sessions/*", status=403, count=1)
    argv = ["run", str(payload_file), "-o", str(tmp_path / "r.json"), "--qpu", "ibm_quick"]
    argv = [sys.executable, "-m", "qrmi_workflows", *argv]

    done = subprocess.run(argv, stderr=subprocess.PIPE, text=True, timeout=60)

    assert done.returncode == 1
    assert "could not be released" in done.stderr
    result = QuantumResult.load(tmp_path / "r.json")
    assert subprocess.run(argv, stderr=subprocess.PIPE, timeout=60).returncode == 0
    assert QuantumResult.load(tmp_path / "r.json") == result
    assert counted()["tasks accepted"] == 1


def test_a_grant_after_the_deadline_is_released(emulator, fault, counted, monkeypatch):
    monkeypatch.setattr("qrmi_workflows.client.resource.DEADLINES", {"acquire": 0.3})
    monkeypatch.setattr("qrmi_workflows.lease.acquire.FAILING_SECONDS", 0.1)
    fault("hold", route="POST */sessions", count=1, when="after")

    with pytest.raises(LeaseError, match=r"did not answer acquire within 0\.3 s"):
        open_lease("ibm_quick")

    wait_until(lambda: counted()["sessions opened"], "the late grant")
    emulator.control.ask("DELETE", "/faults")
    wait_until(lambda: counted()["sessions closed"], "the release of the late grant")
    assert (counted()["sessions opened"], counted()["sessions open"]) == (1, 0)


def test_a_lease_that_cannot_be_recorded_is_released(counted, monkeypatch):
    """Any failure between the grant and its record releases the lease."""

    def fail(**_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("qrmi_workflows.lease.held.OpenLease.create", fail)

    with pytest.raises(ZeroDivisionError):
        open_lease("ibm_quick")

    assert (counted()["sessions opened"], counted()["sessions open"]) == (1, 0)


def test_pickling_it_fails_and_says_how_to_share_it(quick):
    with pytest.raises(TypeError, match="A child process adopts the lease"):
        pickle.dumps([quick])


def test_a_session_closed_by_the_vendor_is_renewed(counted, fault):
    with open_lease("ibm_quick") as lease:
        first = lease.run(bell(shots=1))
        fault("close-sessions")
        second = lease.run(bell(shots=2))
        assert next(iter(open_leases())).token in lease.environment().values()

    assert first.task_id != second.task_id
    assert counted()["sessions opened"] == 2
    assert counted()["sessions open"] <= 0  # sessions of other tests were closed too


def test_an_adopted_lease_with_a_closed_session_says_so(quick, fault, monkeypatch):
    for name, value in quick.environment().items():
        monkeypatch.setenv(name, value)
    with open_lease("ibm_quick", step="adopted") as adopted:
        adopted.run(bell(shots=1))
        fault("close-sessions")

        with pytest.raises(SessionEndedError, match="closed"):
            adopted.run(bell(shots=2))


def test_acquiring_waits_for_a_busy_qpu(counted, fault, caplog):
    fault("status", route="POST */sessions", status=429, count=1)

    with open_lease("ibm_quick"):
        assert counted()["sessions open"] == 1

    assert "waiting for the QPU" in caplog.text
    assert counted()["sessions open"] == 0


@pytest.mark.parametrize("kind", ["status", "drop"])
def test_acquiring_is_repeated_if_the_vendor_fails_for_a_moment(counted, fault, caplog, kind):
    fault(kind, route="POST */sessions", status=503, count=1)

    with open_lease("ibm_quick"):
        assert counted()["sessions open"] == 1

    assert re.search(r"waiting for the QPU: \d+ s so far, at most 30 s", caplog.text)


def test_acquiring_is_not_repeated_forever_if_the_vendor_fails(fault, monkeypatch, matched):
    fault("status", route="POST */sessions", status=503)

    with ThreadPoolExecutor() as pool:
        opening = pool.submit(open_lease, "ibm_quick")
        wait_until(lambda: matched() > 1, "the second attempt")
        monkeypatch.setattr("qrmi_workflows.lease.acquire.FAILING_SECONDS", 0.5)
        with pytest.raises(LeaseError, match="503") as caught:
            opening.result()

    assert caught.value.retryable


def test_acquiring_does_not_wait_forever(fault, monkeypatch):
    monkeypatch.setattr("qrmi_workflows.lease.acquire.ACQUIRE_SECONDS", 0.5)
    fault("status", route="POST */sessions", status=423)

    with pytest.raises(LeaseError, match="423") as caught:
        open_lease("ibm_quick")

    assert caught.value.retryable

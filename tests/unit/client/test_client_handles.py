"""Handles in threads of their own: reused, replaced, and dismissed."""

from __future__ import annotations

import os
import queue
import threading

import pytest

from qrmi_workflows.client.handles import HandlePool


class Recorder:
    """A handle that knows which thread created it."""

    def __init__(self) -> None:
        self.creator = threading.current_thread()

    def threads(self) -> tuple[threading.Thread, threading.Thread]:
        """Return the thread that created it and the one that calls it."""
        return self.creator, threading.current_thread()


def call(handles: HandlePool) -> threading.Thread:
    """Call a handle and put it back; return its thread."""
    handle = handles.take()
    creator, caller = handle.call("threads", ()).result(timeout=60)
    handles.put_back(handle)
    assert creator is caller
    return caller


def test_an_idle_handle_is_reused_in_the_thread_that_created_it() -> None:
    """Calls that do not overlap need one handle; calls that do need two."""
    handles = HandlePool(Recorder, "test")
    assert call(handles) is call(handles)
    busy = handles.take()
    assert call(handles) is not busy.call("threads", ()).result(timeout=60)[1]
    busy.dismiss()


def test_after_a_replacement_no_old_handle_is_called() -> None:
    """Neither one that was idle nor one that was in use."""
    handles = HandlePool(Recorder, "test")
    idle = call(handles)
    busy = handles.take()
    handles.replace()
    handles.put_back(busy)
    assert call(handles) is not idle
    idle.join(timeout=60)
    assert not idle.is_alive()


def test_a_pool_that_is_garbage_collected_leaves_no_thread() -> None:
    """The thread, and with it the connection, ends with the last reference."""
    handles = HandlePool(Recorder, "test")
    thread = call(handles)
    del handles
    thread.join(timeout=60)
    assert not thread.is_alive()


def test_a_callback_may_call_another_handle() -> None:
    """A handle is free only after the callbacks of its call, which run in its own thread."""
    handles = HandlePool(Recorder, "test")
    handle = handles.take()
    threads: queue.SimpleQueue[threading.Thread] = queue.SimpleQueue()
    future = handle.call("threads", (), lambda _: handles.put_back(handle))
    future.add_done_callback(lambda _: threads.put(call(handles)))

    assert threads.get(timeout=60) is not future.result()[0]


def test_a_forked_child_creates_its_own_handle() -> None:
    """The parent's idle handle has no thread in the child."""
    handles = HandlePool(Recorder, "test")
    call(handles)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            handles.take().call("threads", ()).result(timeout=60)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def test_a_fork_waits_for_a_call_in_progress_but_not_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A child that is forked during a call of QRMI's may crash at its own."""
    begun, may_end = threading.Event(), threading.Event()

    class Slow:
        def wait(self) -> None:
            begun.set()
            may_end.wait(60)

    monkeypatch.setattr("qrmi_workflows.client.handles._FORK_SECONDS", 60.0)
    call = HandlePool(Slow, "test").take().call("wait", ())
    assert begun.wait(60)
    threading.Timer(0.2, may_end.set).start()
    if (child := os.fork()) == 0:
        os._exit(0 if may_end.is_set() else 1)
    assert os.waitpid(child, 0)[1] == 0
    call.result(timeout=60)

    begun.clear()
    may_end.clear()
    monkeypatch.setattr("qrmi_workflows.client.handles._FORK_SECONDS", 0.05)
    call = HandlePool(Slow, "test").take().call("wait", ())
    assert begun.wait(60)
    if (child := os.fork()) == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    may_end.set()
    call.result(timeout=60)

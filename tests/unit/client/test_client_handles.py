"""Handles in threads of their own: used again, replaced, and let go."""

from __future__ import annotations

import os
import threading

from qrmi_workflows.client.handles import HandlePool


class Counted:
    """A handle that tells the thread which made it."""

    def __init__(self) -> None:
        self.made_in = threading.current_thread()

    def threads(self) -> tuple[threading.Thread, threading.Thread]:
        """Return where it was made, and where it is called."""
        return self.made_in, threading.current_thread()


def call(handles: HandlePool) -> threading.Thread:
    """Call an idle handle and put it back; return its thread."""
    handle = handles.take()
    made, called = handle.call("threads", ()).result(timeout=10)
    handles.put_back(handle)
    assert made is called
    return called


def test_an_idle_handle_is_used_again_in_the_thread_that_made_it() -> None:
    """Calls that do not overlap need one handle, and calls that do need two."""
    handles = HandlePool(Counted, "test")
    assert call(handles) is call(handles)
    busy = handles.take()
    assert call(handles) is not busy.call("threads", ()).result(timeout=10)[1]
    busy.dismiss()


def test_after_a_replacement_no_old_handle_is_called() -> None:
    """Neither an idle one nor one that was in use meanwhile."""
    handles = HandlePool(Counted, "test")
    idle = call(handles)
    busy = handles.take()
    handles.replace()
    handles.put_back(busy)
    assert call(handles) is not idle
    idle.join(timeout=10)
    assert not idle.is_alive()


def test_who_forgets_its_handles_leaves_no_thread() -> None:
    """The thread, and with it the connection, ends with the last reference."""
    handles = HandlePool(Counted, "test")
    thread = call(handles)
    del handles
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_a_forked_child_calls_a_handle_of_its_own() -> None:
    """The parent's idle handle has no thread in the child."""
    handles = HandlePool(Counted, "test")
    call(handles)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            handles.take().call("threads", ()).result(timeout=10)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0

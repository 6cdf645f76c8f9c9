"""Decode MUNGE credentials with the local munged, through libmunge."""

from __future__ import annotations

import ctypes
import functools

__all__ = ["MungeError", "decode_uid"]

_LIBRARY = "libmunge.so.2"


class MungeError(Exception):
    """munged rejected a credential or cannot be reached."""


def decode_uid(credential: str) -> int:
    """Return the user id of a credential's sender, as certified by munged.

    Raises:
        MungeError: The credential is invalid, expired or replayed, or munged is not running.
    """
    library = _library()
    data, length = ctypes.c_void_p(), ctypes.c_int()
    uid, gid = ctypes.c_uint32(), ctypes.c_uint32()
    status = library.munge_decode(
        credential.encode(),
        None,
        ctypes.byref(data),
        ctypes.byref(length),
        ctypes.byref(uid),
        ctypes.byref(gid),
    )
    if data.value:
        ctypes.CDLL(None).free(data)  # munge_decode(3) leaves this to the caller
    if status != 0:
        raise MungeError(library.munge_strerror(status).decode())
    return uid.value


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise MungeError(f"{_LIBRARY} is not installed") from error
    library.munge_strerror.restype = ctypes.c_char_p
    return library

"""Who sent a MUNGE credential, asked of the local munged through libmunge."""

from __future__ import annotations

import ctypes
import functools

__all__ = ["MungeError", "decode_uid"]

_LIBRARY = "libmunge.so.2"


class MungeError(Exception):
    """A credential that munged does not vouch for, or no munged to ask."""


def decode_uid(credential: str) -> int:
    """Return the user id that munged vouches for.

    Raises:
        MungeError: The credential is invalid, expired or replayed, or munged does not run.
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
        ctypes.CDLL(None).free(data)
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

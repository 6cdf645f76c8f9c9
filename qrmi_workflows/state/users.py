"""Users: their names, from the system's user database."""

from __future__ import annotations

import os
import pwd

__all__ = ["uid_of", "user_name"]


def user_name(uid: int | None = None) -> str:
    """Return a user's name; the number itself if the user database does not know it.

    Args:
        uid: The user's number; that of this process if `None`.
    """
    number = os.getuid() if uid is None else uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # as in some containers
        return str(number)


def uid_of(user: str) -> int | None:
    """Return a user's number; `None` if the user database does not know them."""
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return int(user) if user.isdecimal() else None

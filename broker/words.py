"""Words for people. What the system says of an error: one line, without number and path.

`os.strerror` knows the C library's numbers only. On Windows a socket's error has Winsock's (10061 is a refusal), of which it says "unknown error";
and that another program has a file open comes there as EACCES, which is no matter of permission.
"""

from __future__ import annotations

import os
import sys
from typing import Final

_WINSOCK: Final = 10_000
NAME_LENGTH_MAX: Final = 256
_IN_USE: Final = (32, 33)
"""ERROR_SHARING_VIOLATION, ERROR_LOCK_VIOLATION."""


def strerror(error: OSError) -> str:
    number = error.errno
    if sys.platform == "win32":
        own = error.winerror if error.winerror in _IN_USE else None
        if own is None and number is not None and number >= _WINSOCK:
            own = number
        if own is not None:
            import ctypes

            return ctypes.FormatError(own).strip().rstrip(".").lower()
    return os.strerror(number).lower() if number is not None and number > 0 else str(error)


def printable(text: str) -> str:
    """With escapes for what would end the line, or move a terminal's cursor: a peer's words can have anything in them."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def named(name: str | None) -> str | None:
    """A Client Identifier or user name as a log line has it, to be quoted there: 64 KiB of them, twice a connection, would fill the disk."""
    return name if name is None or len(name) <= NAME_LENGTH_MAX else f"{name[:NAME_LENGTH_MAX]}... ({len(name):,} letters)"

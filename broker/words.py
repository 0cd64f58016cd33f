"""What the system says of an error, for people: one line, without number and path.

`os.strerror` knows the C library's numbers only. On Windows a socket's error has Winsock's (10061 is a refusal), of which it says "unknown error",
and a file's has one of Windows' own beside it, which tells more: that another program has the file open comes as EACCES too.
"""

from __future__ import annotations

import os
import sys


def strerror(error: OSError) -> str:
    number = error.errno
    if sys.platform == "win32":
        number = error.winerror or number
        if number and (error.winerror or number >= 10_000):
            import ctypes

            return ctypes.FormatError(number).strip().rstrip(".").lower()
    return os.strerror(number).lower() if number is not None and number > 0 else str(error)

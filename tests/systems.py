"""What the systems that the tests run on do not have, as marks that say so. On Linux none of them leaves a test out."""

from __future__ import annotations

import sys
from typing import Final

import pytest

from broker.net.unix import HAS_UNIX


def is_wine() -> bool:
    """Not Windows itself, which `make test-windows` does without."""
    if sys.platform == "win32":
        import ctypes

        return hasattr(ctypes.WinDLL("ntdll"), "wine_get_version")
    else:
        return False


WINE: Final = is_wine()

PRIVATE_MODE: Final = 0o600 if sys.platform != "win32" else 0o666
"""What `os.stat` says of a file for its owner only. Windows has lists of rights instead, which a new file takes from its folder."""
KILLED: Final = -9 if sys.platform != "win32" else 1
"""The return code of a process that `kill` has ended."""

unix_only = pytest.mark.skipif(not HAS_UNIX, reason="no Unix sockets")
files_can_be_moved = pytest.mark.skipif(sys.platform == "win32", reason="Windows moves and removes no file that is open")
has_modes = pytest.mark.skipif(sys.platform == "win32", reason="Windows has lists of rights, and no modes and owners that Python could set")
has_symlinks = pytest.mark.skipif(WINE, reason="Wine makes no symbolic links")
resets_are_told = pytest.mark.skipif(WINE, reason="Wine tells whoever reads that a connection was reset as its orderly end")
zones_are_signed = pytest.mark.skipif(WINE, reason="Wine writes UTC as -0000")
quick_system_calls = pytest.mark.skipif(WINE, reason="Wine asks a process of its own at each wait for a socket: thousands of them take minutes")

"""The system's words for an error, on each system its own."""

from __future__ import annotations

import errno
import os
import socket
import sys
from pathlib import Path

import pytest
import trio

from broker.words import strerror


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


def test_of_a_socket() -> None:
    """Of Winsock's numbers the C library says "unknown error"."""
    with pytest.raises(ConnectionRefusedError) as caught:
        socket.create_connection(("127.0.0.1", closed_port()))
    assert "refused" in strerror(caught.value)


async def test_of_a_socket_of_trios() -> None:
    """Which has the number, and on Windows not as Windows' own."""
    with pytest.raises(ConnectionRefusedError) as caught, trio.socket.socket() as connecting:
        await connecting.connect(("127.0.0.1", closed_port()))
    assert "refused" in strerror(caught.value)


def test_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "none").read_bytes()
    assert strerror(caught.value) == "no such file or directory"


if sys.platform == "win32":  # elsewhere a file that is open is in nobody's way

    def test_of_a_file_that_is_open(tmp_path: Path) -> None:
        """For the C library that is a matter of permission."""
        with open(tmp_path / "open", "w"), pytest.raises(PermissionError) as caught:
            (tmp_path / "open").unlink()
        assert strerror(caught.value) not in ("", "permission denied")


def test_of_a_number() -> None:
    assert strerror(OSError(errno.ENOENT, "whatever")) == os.strerror(errno.ENOENT).lower()


def test_without_a_number() -> None:
    assert strerror(OSError("all attempts failed")) == "all attempts failed"

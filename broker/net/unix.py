"""The path of a Unix socket: bound, given its owner and mode, and only then listened on.

Nobody can connect before `listen`, so there is no moment at which the path stands open to more people than it should. It is made with
no permission at all, by the mode of the socket itself and not by the umask, which is the whole process's: an embedder's threads make
files too.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from broker.errors import ListenError

AF_UNIX: Final[int] = getattr(socket, "AF_UNIX", -1)
"""No family has that number: of Windows' sockets Python knows none with a path."""
HAS_UNIX: Final = AF_UNIX >= 0
PATH_BYTES_MAX: Final = 107 if sys.platform == "linux" else 103
"""BSD's, and so macOS's, socket addresses are four bytes shorter."""


def parse_mode(text: str) -> int:
    """ "0660" as a number. ValueError if it is not three or four octal digits."""
    digits = text.removeprefix("0o")
    if not (3 <= len(digits) <= 4 and all("0" <= digit <= "7" for digit in digits)):
        raise ValueError(f'expected octal digits as "0660", got {text!r}')
    return int(digits, 8)


def parse_owner(text: str) -> tuple[int, int]:
    """ "user", "user:group" or ":group", names or numbers, as (user id, group id); -1 leaves it. ValueError for what this machine has not."""
    if sys.platform == "win32":
        raise ValueError("Windows has no such owners")
    import grp
    import pwd

    user, colon, group = text.partition(":")
    if not (user or group) or (colon and not group) or ":" in group:
        raise ValueError(f'expected "user", "user:group" or ":group", got {text!r}')
    return (
        _number(user, "user", lambda name: pwd.getpwnam(name).pw_uid) if user else -1,
        _number(group, "group", lambda name: grp.getgrnam(name).gr_gid) if group else -1,
    )


def _number(name: str, what: str, look_up: Callable[[str], int]) -> int:
    if name.isascii() and name.isdigit():
        if int(name) >= 0xFFFF_FFFF:  # the system's "leave it"
            raise ValueError(f"there is no {what} {name}: the number is too large")
        return int(name)
    try:
        return look_up(name)
    except KeyError:
        raise ValueError(f"this machine has no {what} {name!r}; use one of its own, or a number") from None


def shown_name(name: str | bytes) -> str:
    """As `getsockname` gives it, for people: the path, or "@name" of Linux's abstract ones, which are no files."""
    text = os.fsdecode(name)
    return f"@{text[1:]}" if text[:1] == "\0" else text


def peer_process(connected: socket.socket) -> str:
    """Who has come over a Unix socket, where the kernel says so: "unix (process 1234 of user 1000)"."""
    if sys.platform == "linux":
        with suppress(OSError):
            process, user, _ = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
            return f"unix (process {process} of user {user})"
    return "unix"


def bind_unix(listening: socket.socket, path: str, mode: int, owner: str | None) -> tuple[int, int]:
    """Bind, and say whose it is; not listening yet. Returns device and inode of the path. OSError, and ListenError where more can be said."""
    remove_stale(path)
    if sys.platform != "win32":
        with suppress(OSError):  # where a socket has no mode of its own
            os.fchmod(listening.fileno(), 0)
    listening.bind(path)
    try:
        return _give(path, mode, owner)
    except BaseException:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
        raise


def _give(path: str, mode: int, owner: str | None) -> tuple[int, int]:
    """By a descriptor, where the system has such: in a directory where others may write, a name can lead elsewhere the next moment."""
    flags = getattr(os, "O_PATH", 0)
    if not flags or not os.path.isdir("/proc/self/fd"):
        return _give_at(path, path, mode, owner)
    descriptor = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0))
    try:
        return _give_at(f"/proc/self/fd/{descriptor}", path, mode, owner)
    finally:
        os.close(descriptor)


def _give_at(place: str, path: str, mode: int, owner: str | None) -> tuple[int, int]:
    found = os.stat(place)
    if not stat.S_ISSOCK(found.st_mode):
        raise ListenError(f"unix://{path}", "something else was put there meanwhile; choose a directory where nobody else may write")
    if sys.platform != "win32" and owner is not None:
        try:
            os.chown(place, *parse_owner(owner))
        except PermissionError:
            raise ListenError(
                f"unix://{path}",
                f"this user may not give it to {owner!r}: only root may change the user, and others the group to one of their own",
            ) from None
        except ValueError as error:  # gone since the configuration was read
            raise ListenError(f"unix://{path}", str(error)) from None
    os.chmod(place, mode)
    return found.st_dev, found.st_ino


def remove_stale(path: str) -> None:
    """A broker that was killed leaves its path behind. It is replaced if nobody answers there; anything but a socket stays."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ListenError(f"unix://{path}", "a file that is not a socket is there; remove it, or choose another path", errno.EEXIST)
    except FileNotFoundError:
        return
    with socket.socket(AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog answers EAGAIN: somebody is there
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, "in use")

"""What systemd says to a service, and wants to hear: the sockets that it hands over, and that the service is ready, reloads, stops and lives.

No library: an inherited socket is a number from 3 on, and a word to systemd is a datagram. Only `broker serve` does any of it; in
an embedder's process both are the embedder's.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from broker.errors import ConfigError
from broker.net.listen import at_descriptor
from broker.net.listener import Listener
from broker.net.unix import AF_UNIX
from broker.words import strerror

FIRST_DESCRIPTOR: Final = 3
NOTIFY_TIMEOUT_S: Final = 1.0
"""For a datagram that systemd does not take."""

logger: Final = logging.getLogger("broker")


# ---- sockets that were handed over -------------------------------------------------------------------------------------


def inherited(env: MutableMapping[str, str], pid: int) -> dict[str, list[int]]:
    """Descriptors by name (`FileDescriptorName=`, else the name of the socket unit); taken out of the environment. ConfigError."""
    count, names, wanted = (env.pop(name, "") for name in ("LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID"))
    if wanted != str(pid) or not count:
        return {}
    if not re.fullmatch(r"[0-9]{1,4}", count):
        raise ConfigError([("", "expected a number")], "LISTEN_FDS")
    found: dict[str, list[int]] = {}
    given = names.split(":") if names else []
    for place in range(int(count)):
        descriptor = FIRST_DESCRIPTOR + place
        os.set_inheritable(descriptor, False)
        found.setdefault(given[place] if place < len(given) else "unknown", []).append(descriptor)
    return found


def placed(listeners: Sequence[Listener], sockets: Mapping[str, Sequence[int]], *, default: bool) -> list[Listener]:
    """The listeners with those that name sockets in their place, one for each socket. ConfigError names every mistake.

    default: nothing says where to listen; then all sockets that were handed over are served, and nothing else.
    """
    if default:
        listeners = [Listener(systemd=name) for name in sockets] or listeners
    problems: list[tuple[str, str]] = []
    found: list[Listener] = []
    for index, listener in enumerate(listeners):
        name = listener.systemd
        if name is None:
            found.append(listener)
            continue
        if name not in sockets:
            others = f"it handed over {', '.join(map(repr, sockets))}" if sockets else "it handed over nothing: is the .socket unit started?"
            problems.append((f"listeners[{index}].systemd", f"systemd handed over no socket {name!r}; {others}"))
        for descriptor in sockets.get(name, ()):
            try:
                found.append(at_descriptor(listener, descriptor))
            except ValueError as error:
                problems.append((f"listeners[{index}].systemd", f"{name!r}: {error}"))
    named = {listener.systemd for listener in listeners}
    unserved = [name for name in sockets if name not in named]
    problems += [("listeners", f"systemd handed over {name!r}, which nobody serves; give a listener systemd = {name!r}") for name in unserved]
    if problems:
        raise ConfigError(problems)
    return found


# ---- words to systemd ---------------------------------------------------------------------------------------------------


class Notifier:
    """Tells systemd how the service is. Without NOTIFY_SOCKET, which is not under systemd, every method does nothing."""

    def __init__(self, env: MutableMapping[str, str], pid: int) -> None:
        """Takes its variables out of the environment."""
        address = env.pop("NOTIFY_SOCKET", "")
        self._address = address if sys.platform != "win32" else ""
        interval, wanted = env.pop("WATCHDOG_USEC", ""), env.pop("WATCHDOG_PID", str(pid))
        self.watchdog_s = int(interval) / 1e6 if interval.isdigit() and wanted == str(pid) and self._address else 0.0
        """How long systemd waits for a sign of life; 0: it does not."""
        if self._address and self._address[0] not in "/@":
            logger.warning("NOTIFY_SOCKET is neither a path nor an abstract address; systemd is told nothing")
            self._address = ""

    async def ready(self, status: str) -> None:
        await self._tell(f"READY=1\nSTATUS={_line(status)}")

    async def reloading(self) -> None:
        """Before a reload, whatever comes of it; `ready` ends it."""
        await self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    async def stopping(self, status: str) -> None:
        await self._tell(f"STOPPING=1\nSTATUS={_line(status)}")

    @asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """Signs of life, at half of the time that systemd waits for one, if it does. They come from a task like every other, so one
        shows that the event loop has turned."""
        if not self.watchdog_s:
            yield
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._live)
            yield
            nursery.cancel_scope.cancel()

    async def _live(self) -> None:
        while True:
            await self._tell("WATCHDOG=1")
            await trio.sleep(self.watchdog_s / 2)

    async def _tell(self, text: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with trio.socket.socket(AF_UNIX, socket.SOCK_DGRAM | getattr(socket, "SOCK_CLOEXEC", 0)) as sender:
            try:
                with trio.move_on_after(NOTIFY_TIMEOUT_S) as scope:
                    await sender.connect(address)  # only a connected one tells when there is room again
                    await sender.send(text.encode())
                if scope.cancelled_caught:
                    logger.warning("systemd does not take what it is told (%s)", text.partition("\n")[0])
            except OSError as error:
                logger.warning("systemd cannot be told %s: %s", text.partition("\n")[0], strerror(error))


def _line(text: str) -> str:
    return text.replace("\n", " ")

"""Puts what was read for the listeners into use as a whole, and reads it again when the files change.

Files are looked at every two seconds: whoever renews a certificate or sets a password need not know how to tell a broker. Nobody who is
connected notices, but for what they may do.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import msgspec
import trio

from broker.auth.bans import Ban, BanInfo, Bans, ban_fault
from broker.core.access import Access
from broker.errors import ConfigError
from broker.net.bound_socket import BoundSocket
from broker.net.doors import Doors, read_doors
from broker.net.listener import Listener
from broker.net.locks import Guard
from broker.net.signatures import signatures
from broker.net.tls import TlsFiles
from broker.reasons import ReasonCode

if TYPE_CHECKING:
    from broker.net.authentication import Authenticate
    from broker.net.server import Server
    from broker.net.settings import Settings

WATCH_INTERVAL_S: Final = 2.0
RETRY_INTERVAL_S: Final = 60.0
"""Files that could not be used are tried again though they look the same: what was missing may be a permission, or a free file descriptor."""
BANS_COUNT_MAX: Final = 100_000
"""Of a program, while it runs."""

LIVE: Final = (
    "allow_anonymous", "password_file", "acl_file", "jwt", "client_ids", "username_as_client_id",
    "origins", "proxy_protocol_from", "nodelay", "tcp_keepalive_s", "connections_count_max", "limits",
)  # fmt: skip
"""Of a Listener, what can change while it listens. The files of its TLS too, but not whether it has any."""

logger = logging.getLogger("broker.auth")
Place: TypeAlias = tuple[str, int, str | None, int | None]


class Plan(NamedTuple):
    """What `Doorkeeper.use` would put into use."""

    settings: Settings | None
    listeners: list[Listener]
    doors: Doors


class Doorkeeper:
    """Puts what was read into use, and watches the files. Made before anything listens, so that no listener stands open for a moment."""

    def __init__(
        self, settings: Settings | None, listeners: Sequence[Listener], hook: Authenticate | None, *, authorized_by_hook: bool, fixed: bool
    ) -> None:
        """ConfigError names every mistake in every file. authorized_by_hook: an embedder's `authorize` decides, and no file does.
        fixed: the listeners are not those of the settings, and new settings say nothing about them."""
        self._settings = settings
        self._listeners = list(listeners)
        self.hook = hook
        self._authorized_by_hook = authorized_by_hook
        self._fixed = fixed
        self._guard = Guard()
        self._server: Server | None = None
        self._bound: Sequence[BoundSocket] = ()
        self._paths_changed = trio.Event()
        self._seen = self._signatures()
        self._doors = self._read(settings, self._listeners)

    def begin(self, server: Server, bound: Sequence[BoundSocket]) -> None:
        self._server = server
        self._bound = bound
        self._use(self._doors)

    @property
    def adopted(self) -> list[Listener]:
        """Of sockets that somebody else had opened: no settings say anything of them alone."""
        return [one.listener for one in self._bound if one.listener not in self._listeners]

    def read(self, settings: Settings | None) -> Plan:
        """New settings, or the old ones with what is in their files now; nothing was changed. ConfigError."""
        listeners = list(self._listeners)
        if settings is not None and not self._fixed:
            listeners = _matched(listeners, settings.listeners)
        return Plan(settings, listeners, self._read(settings, listeners))

    def _read(self, settings: Settings | None, listeners: Sequence[Listener]) -> Doors:
        return read_doors(self._guard, settings, listeners, self.hook, authorized_by_hook=self._authorized_by_hook)

    def use(self, plan: Plan) -> None:
        """From the next handshake, CONNECT and message on."""
        # By which they are, not by what they say: two with port 0 may say the same, and not the same anew.
        changed = {id(before): after for before, after in zip(self._listeners, plan.listeners, strict=True)}
        for one in self._bound:
            one.use(changed.get(id(one.listener), one.listener))
        self._settings = plan.settings
        self._listeners = plan.listeners
        self._seen = self._signatures()
        self._use(plan.doors)
        self._paths_changed.set()
        self._paths_changed = trio.Event()

    def _use(self, doors: Doors) -> None:
        server = self._server
        assert server is not None
        self._doors = doors
        server.lock = doors.default.lock
        for one in self._bound:
            door = doors.of.get(one.listener, doors.default)
            one.lock = door.lock
            one.tls = door.tls
            one.origins = door.origins
            if not self._authorized_by_hook:
                rules = doors.default.rules if door.rules is None else door.rules
                if one.access is None:
                    one.access = Access(rules, refuses_wills=False)
                else:  # clients and sessions hold it
                    one.access.use(rules, refuses_wills=False)
        self._guard.bans = Bans(() if self._settings is None else self._settings.banned)
        self._heed_bans(server)
        if not self._authorized_by_hook:
            server.engine.set_authorize(doors.default.rules, refuses_wills=False)

    # ---- bans ----

    def ban(self, ban: Ban) -> int:
        """How many were thrown out. ValueError."""
        fault = ban_fault(ban)
        if fault is not None:
            raise ValueError(": ".join(filter(None, fault)))
        bans = self._guard.own_bans
        if len(bans) >= BANS_COUNT_MAX:
            bans.forget_ended(time.time())
        if len(bans) >= BANS_COUNT_MAX:
            raise ValueError(f"there are {BANS_COUNT_MAX:,} bans already: ban a network, or end some")
        bans.add(ban)
        assert self._server is not None
        return self._heed_bans(self._server)

    def unban(self, client_id: str | None, username: str | None, address: str | None) -> bool:
        found = self._guard.own_bans.remove(client_id, username, address)
        if self._server is not None:
            self._heed_bans(self._server)
        return found

    def bans(self) -> list[BanInfo]:
        """Of the program, then of the config."""
        now_s = time.time()
        return [
            BanInfo(client_id=ban.client_id, username=ban.username, address=ban.address, until=ban.until, in_config=bans is self._guard.bans)
            for bans in (self._guard.own_bans, self._guard.bans)
            for ban in bans.holding(now_s)
        ]

    def _heed_bans(self, server: Server) -> int:
        """Nobody comes in without being looked at, and who is in and banned goes: with 0x98, since 0x8A is for CONNACK only."""
        server.engine.set_authentication(self._doors.asks)
        if not self._guard.has_bans:
            return 0
        now = trio.current_time()
        count = 0
        for session in server.engine.clients():
            link = session.link
            if link is not None and self._guard.is_banned(session.client_id, session.username, link.peer):
                count += server.engine.disconnect(session.client_id, ReasonCode.ADMINISTRATIVE_ACTION, now)
        server.flush()
        return count

    async def watch(self, server: Server) -> None:
        """A chore of the server: read the files again when they have changed and hold still."""
        changed: dict[str, tuple[int, ...]] | None = None
        refused: dict[str, tuple[int, ...]] | None = None
        again_at = math.inf
        while True:
            if not self._seen:
                await self._paths_changed.wait()
                continue
            await trio.sleep(WATCH_INTERVAL_S)
            found = self._signatures()
            if found == self._seen or (found == refused and trio.current_time() < again_at):
                changed = None
            elif found != changed:
                changed = found  # somebody may still be writing, or has yet to bring the key that belongs to the certificate
            else:
                changed = None
                names = ", ".join(sorted(path for path in found if found[path] != self._seen.get(path)))
                try:
                    self.use(self.read(self._settings))
                    server.flush()
                    logger.info("read again: %s", names)
                except Exception as error:  # of ours, or a file that vanishes while it is read: no reason to throw out everybody who is served
                    again_at = trio.current_time() + RETRY_INTERVAL_S
                    if found != refused:  # told once
                        refused = found
                        if isinstance(error, ConfigError):
                            logger.error("%s changed and is not used: %s", names, error)
                        else:
                            logger.error("%s changed and is not used, by a fault of the broker: please report it", names, exc_info=error)

    def _signatures(self) -> dict[str, tuple[int, ...]]:
        """Of all files that are read again when they change."""
        settings = self._settings
        paths = set() if settings is None else {settings.password_file, settings.acl_file}
        if settings is not None and settings.jwt is not None:
            paths.update(settings.jwt.paths)
        for listener in self._listeners:
            paths |= {listener.password_file, listener.acl_file}
            if isinstance(listener.tls, TlsFiles):
                paths.update(listener.tls.paths)
            if listener.jwt is not None:
                paths.update(listener.jwt.paths)
        return signatures(paths)


def _matched(old: Sequence[Listener], new: Sequence[Listener]) -> list[Listener]:
    """Those that listen, each with what its successor at the same place says anew, as far as that can change while it listens.

    Several at one place, which have port 0, are told apart by their order, where nothing else about them has changed; else nobody knows which
    is which, and each stays as it is until the restart.
    """
    before, after = _by_place(old), _by_place(new)
    successors: dict[Place, Iterator[Listener]] = {}
    for place, those in before.items():
        these = after.get(place, [])
        if len(those) == len(these) == 1 or [without_live(one) for one in those] == [without_live(one) for one in these]:
            successors[place] = iter(these)
    found = []
    for listener in old:
        successor = next(successors.get(_place(listener), iter(())), None)
        if successor is None:
            found.append(listener)
            continue
        changes = {name: getattr(successor, name) for name in LIVE}
        if (successor.tls is None) == (listener.tls is None):
            changes["tls"] = successor.tls
        found.append(msgspec.structs.replace(listener, **changes))
    return found


def without_live(listener: Listener) -> Listener:
    """What needs a restart, to be compared."""
    defaults = Listener()
    changes = {name: getattr(defaults, name) for name in LIVE}
    return msgspec.structs.replace(listener, **changes, tls=None if listener.tls is None else TlsFiles(certificate=""))


def _by_place(listeners: Sequence[Listener]) -> dict[Place, list[Listener]]:
    found: dict[Place, list[Listener]] = {}
    for listener in listeners:
        found.setdefault(_place(listener), []).append(listener)
    return found


def _place(listener: Listener) -> Place:
    if listener.descriptor is not None:  # its address is the socket's to say
        return "", 0, None, listener.descriptor
    return listener.host, listener.port, listener.unix, None

"""What each listener needs of files (certificates, passwords, access rules), read as a whole and put into use as a whole.

Everything is read before anything is changed, so a file with a mistake leaves all as it was. Files are looked at every two seconds:
whoever renews a certificate or sets a password need not know how to tell a broker. Nobody who is connected notices, but for what
they may do.
"""

from __future__ import annotations

import logging
import math
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, TypeVar

import msgspec
import trio

from broker.auth.acl import AccessRules, Rule, load_rules, table_rules
from broker.auth.bans import Ban, BanInfo, Bans, ban_fault
from broker.auth.client_ids import ClientIds
from broker.auth.passwords import Passwords, load_passwords
from broker.auth.tokens import Jwt, Tokens, load_tokens
from broker.core.access import Access
from broker.errors import ConfigError
from broker.net.bound_socket import BoundSocket
from broker.net.listener import Listener
from broker.net.locks import Guard, Lock
from broker.net.origins import ANY
from broker.net.signatures import signatures
from broker.net.tls import TlsFiles, make_context
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
T = TypeVar("T")
Place: TypeAlias = tuple[str, int, str | None, int | None]


class Door:
    """What one listener needs. rules: None leaves it to those of all; tls: None is none; origins: None is pages of this machine."""

    __slots__ = ("lock", "origins", "rules", "tls")

    def __init__(self, lock: Lock, rules: AccessRules | None, tls: ssl.SSLContext | None, origins: tuple[str, ...] | None) -> None:
        self.lock = lock
        self.rules = rules
        self.tls = tls
        self.origins = origins


class Doors:
    """All that was read for one configuration: of each listener, and of those that have none (an adopted socket, a stream)."""

    __slots__ = ("default", "of")

    def __init__(self, default: Door, of: dict[Listener, Door]) -> None:
        self.default = default
        self.of = of

    @property
    def asks(self) -> bool:
        return self.default.lock.asks or any(door.lock.asks for door in self.of.values())


def read_doors(
    guard: Guard, settings: Settings | None, listeners: Sequence[Listener], hook: Authenticate | None, *, authorized_by_hook: bool = False
) -> Doors:
    """ConfigError names every mistake in every file; nothing was changed. authorized_by_hook: tokens bring no rules along."""
    problems: list[tuple[str, str]] = []
    passwords: dict[str, Passwords | None] = {}
    rules: dict[str, list[Rule]] = {}

    def passwords_of(path: str | None, place: str) -> Passwords | None:
        if path is not None and path not in passwords:
            passwords[path] = _read(load_passwords, path, place, problems)
        return None if path is None else passwords[path]

    def rules_of(path: str | None, place: str) -> list[Rule]:
        if path is not None and path not in rules:
            rules[path] = _read(load_rules, path, place, problems) or []
        return [] if path is None else rules[path]

    tokens: dict[Jwt, Tokens | None] = {}

    def tokens_of(jwt: Jwt | None, place: str) -> Tokens | None:
        if jwt is not None and authorized_by_hook:
            jwt = msgspec.structs.replace(jwt, access_claim=None)
        if jwt is not None and jwt not in tokens:
            try:
                tokens[jwt] = load_tokens(jwt)
            except ConfigError as error:
                tokens[jwt] = None
                problems.extend((f"{place}.{key}" if key else place, expected) for key, expected in error.problems)
        return None if jwt is None else tokens[jwt]

    top = known = signed = None
    if settings is not None:
        if settings.acl_file is not None or settings.access:
            tables = table_rules([(rule.user, rule.topic, rule.may) for rule in settings.access], "config")
            top = AccessRules([*rules_of(settings.acl_file, "acl_file"), *tables])
        known = passwords_of(settings.password_file, "password_file")
        signed = tokens_of(settings.jwt, "jwt")
    default = Door(Lock(guard, hook, known, anonymous_at(None, settings, hook), "none", signed, client_ids_at(None, settings)), top, None, None)
    of: dict[Listener, Door] = {}
    for index, listener in enumerate(listeners):
        place = f"listeners[{index}]"
        own, own_tokens = known, signed
        if asks_itself(listener):
            own, own_tokens = passwords_of(listener.password_file, f"{place}.password_file"), tokens_of(listener.jwt, f"{place}.jwt")
        identity = listener.tls.identity if isinstance(listener.tls, TlsFiles) else "none"
        own_rules = None if listener.acl_file is None else AccessRules(rules_of(listener.acl_file, f"{place}.acl_file"))
        context = _context_of(listener, f"{place}.tls", problems)
        lock = Lock(guard, hook, own, anonymous_at(listener, settings, hook), identity, own_tokens, client_ids_at(listener, settings))
        of[listener] = Door(lock, own_rules, context, origins_at(listener, settings, hook, context))
    if problems:
        raise ConfigError(problems)
    return Doors(default, of)


def _context_of(listener: Listener, place: str, problems: list[tuple[str, str]]) -> ssl.SSLContext | None:
    """None where there is no TLS, and where its files or the context are at fault."""
    if isinstance(listener.tls, TlsFiles):
        try:
            return make_context(listener.tls, listener.protocol)
        except ConfigError as error:
            problems.extend((f"{place}.{key}", text) for key, text in error.problems)
            return None
    if listener.tls is not None and getattr(listener.tls, "protocol", ssl.PROTOCOL_TLS_CLIENT) is ssl.PROTOCOL_TLS_CLIENT:
        # No context at all, or one for clients. Else the first who came would find out, and the accepting task with it.
        problems.append((place, "expected TlsFiles, or a context for servers, as ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)"))
        return None
    return listener.tls


def anonymous_at(listener: Listener | None, settings: Settings | None, hook: Authenticate | None) -> bool | None:
    """May a client without user name come in there? None: nothing says so, and nothing that could tell people apart is there either.

    A listener's word comes first. One with a password file or tokens of its own decides for itself; so does one that takes names from certificates.
    A page asks nobody for a name, so there its own word is the only one.
    """
    if listener is not None and not listener.speaks_mqtt:
        return listener.allow_anonymous
    if listener is not None and listener.allow_anonymous is not None:
        return listener.allow_anonymous
    if listener is not None and hook is None and (asks_itself(listener) or _takes_identity(listener)):
        return False
    if settings is not None and settings.allow_anonymous is not None:
        return settings.allow_anonymous
    return False if settings is not None and _asks(settings) and hook is None else None


def client_ids_at(listener: Listener | None, settings: Settings | None) -> ClientIds:
    """A listener's word comes first, key by key."""
    patterns = None if settings is None else settings.client_ids
    from_username = settings is not None and settings.username_as_client_id
    if listener is not None:
        patterns = patterns if listener.client_ids is None else listener.client_ids
        from_username = from_username if listener.username_as_client_id is None else listener.username_as_client_id
    return ClientIds(patterns, from_username)


def origins_at(listener: Listener, settings: Settings | None, hook: Authenticate | None, context: ssl.SSLContext | None) -> tuple[str, ...] | None:
    """Whose pages may use it? Its own word; else any, where a page would have to know a password, or where it is written that everybody
    may come in; else those of this machine, for which alone it is meant.

    A client certificate proves the browser, which shows it for any page, so it opens nothing to all pages.
    """
    if listener.origins is not None:
        return listener.origins
    if context is not None and context.verify_mode is not ssl.CERT_NONE:
        return None
    if hook is not None or is_locked(listener, settings) or anonymous_at(listener, settings, hook):
        return (ANY,)
    return None


def is_locked(listener: Listener | None, settings: Settings | None) -> bool:
    """Is there a file that says who a client is? Of a page: of whom everybody must show a certificate?"""
    if listener is not None and not listener.speaks_mqtt:
        return listener.asks_certificate
    if listener is not None and (asks_itself(listener) or _takes_identity(listener)):
        return True
    return settings is not None and _asks(settings)


def asks_itself(listener: Listener) -> bool:
    """Has it a file of its own that says who a client is? Then those of all mean nothing there."""
    return listener.password_file is not None or listener.jwt is not None


def _asks(settings: Settings) -> bool:
    return settings.password_file is not None or settings.jwt is not None


def _takes_identity(listener: Listener) -> bool:
    return isinstance(listener.tls, TlsFiles) and listener.tls.identity != "none"


def _read(load: Callable[[str], T], path: str, place: str, problems: list[tuple[str, str]]) -> T | None:
    try:
        return load(path)
    except ConfigError as error:
        problems.extend((place, f"{path}: {where}: {expected}" if where else f"{path} {expected}") for where, expected in error.problems)
        return None


# ---- in use ----------------------------------------------------------------------------------------------------------------


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

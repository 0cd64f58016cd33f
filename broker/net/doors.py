"""What each listener needs of files (certificates, passwords, access rules), read as a whole: a file with a mistake leaves all as it was.

And what follows where nothing is written: may strangers come in, under which Client Identifiers, from whose web pages.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec

from broker.auth.acl import AccessRules, Rule, load_rules, table_rules
from broker.auth.client_ids import ClientIds
from broker.auth.passwords import Passwords, load_passwords
from broker.auth.tokens import Jwt, Tokens, load_tokens
from broker.errors import ConfigError
from broker.net.listener import Listener
from broker.net.locks import Guard, Lock
from broker.net.origins import ANY
from broker.net.tls import TlsFiles, make_context

if TYPE_CHECKING:
    from broker.net.authentication import Authenticate
    from broker.net.settings import Settings

T = TypeVar("T")


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

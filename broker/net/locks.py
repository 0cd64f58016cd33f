"""Who comes in by a listener: the rule, and the slow work of verifying passwords, which may harm nobody else.

Hashing happens in threads, a few at a time. Whoever fails waits for the answer, longer each time; an address that goes on failing
has its attempts one after another, and one that has failed lets the others go first.
A user whose password was right once is recognised quickly from then on (by a keyed digest, in memory), so that ten thousand devices
which come back at once cost no minutes, and whoever guesses beside them at the same address cannot keep them out.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import trio

from broker.auth import scram, tokens
from broker.auth.bans import Bans
from broker.auth.client_ids import ClientIds
from broker.auth.passwords import Passwords
from broker.auth.throttle import Throttle, address_of
from broker.net.authentication import Verdict
from broker.net.tls import Identity, identity_of
from broker.reasons import ReasonCode
from broker.words import named

if TYPE_CHECKING:
    from broker.auth.tokens import Tokens
    from broker.core.auth import AuthRequest
    from broker.net.authentication import Authenticate, ConnectRequest

HASHES_COUNT_MAX: Final = max(1, (os.cpu_count() or 2) - 1)
"""At a time. One core is left to the clients that are in."""

logger = logging.getLogger("broker.auth")


BANNED: Final = Verdict(None, ReasonCode.BANNED)
_NOT_AUTHORIZED: Final = Verdict(None, ReasonCode.NOT_AUTHORIZED)


class Guard:
    """What all listeners share: the threads that hash, and the memory of who failed."""

    def __init__(self) -> None:
        self.throttle = Throttle()
        self.limiter = trio.CapacityLimiter(HASHES_COUNT_MAX)
        self.suspects = trio.CapacityLimiter(max(1, HASHES_COUNT_MAX // 2))
        """Addresses that have failed get in line for a thread so many at a time, or a hundred of them would stand before everybody else."""
        self.bans = Bans()
        """Of the config."""
        self.own_bans = Bans()
        """Of the program."""
        self._turns: dict[str, tuple[trio.Lock, int]] = {}

    @property
    def has_bans(self) -> bool:
        return len(self.bans) + len(self.own_bans) > 0

    def is_banned(self, client_id: str, username: str | None, peer: str) -> bool:
        if not self.has_bans:
            return False
        now_s = time.time()
        return any(bans.find(client_id, username, peer, now_s) is not None for bans in (self.bans, self.own_bans))

    async def check(self, passwords: Passwords, request: ConnectRequest) -> str | None:
        """The user name, or None after a while."""
        name, password = request.username, request.password
        if name is None:
            return None
        if password is not None and passwords.is_proven(name, password):
            return name
        address = address_of(request.peer)
        async with self._turn(address):
            entry, counts = passwords.find(name)
            async with self.suspects if self.throttle.has_failed(address, trio.current_time()) else nullcontext():
                right = await trio.to_thread.run_sync(entry.verifies, password or b"", limiter=self.limiter)
            if right and counts and password is not None:
                passwords.prove(name, password)
                return name
            if address:
                await trio.sleep(self.throttle.failed(address, trio.current_time()))
        return None

    async def exchange(self, passwords: Passwords, request: ConnectRequest) -> str | None:
        """SCRAM: the user name, or None. The client does the slow work; what slows its guesses here is their number by address."""
        exchange = scram.ServerExchange(passwords, scram.new_nonce(secrets.token_bytes(18)))
        try:
            answer = await request.challenge(exchange.first(request.auth_data or b""))
            address = address_of(request.peer)
            async with self._turn(address):
                request.final_data = exchange.final(answer)
                if request.final_data is None and address:
                    await trio.sleep(self.throttle.failed(address, trio.current_time()))
        except scram.ScramFault as fault:
            logger.info("SCRAM failed for client %r at %s: %s", named(request.client_id), request.peer, fault)
            return None
        return None if request.final_data is None else exchange.name

    @asynccontextmanager
    async def _turn(self, address: str) -> AsyncIterator[None]:
        """One after another for an address that goes on failing; at once for all others."""
        if not address or not self.throttle.is_suspect(address, trio.current_time()):
            yield
            return
        lock, count = self._turns.get(address) or (trio.Lock(), 0)
        self._turns[address] = (lock, count + 1)
        try:
            async with lock:
                yield
        finally:
            count = self._turns[address][1] - 1
            if count:
                self._turns[address] = (lock, count)
            else:
                del self._turns[address]


class Lock:
    """Of one listener, or of all that have nothing of their own."""

    __slots__ = ("_guard", "allow_anonymous", "authenticate", "client_ids", "hook", "identity", "passwords", "tokens")

    def __init__(
        self,
        guard: Guard,
        hook: Authenticate | None,
        passwords: Passwords | None,
        allow_anonymous: bool | None,
        identity: Identity,
        judges: Tokens | None = None,
        client_ids: ClientIds | None = None,
    ) -> None:
        """hook: an embedder's; it decides alone. allow_anonymous: None leaves it to the hook, and without one lets everybody in."""
        self._guard = guard
        self.hook = hook
        self.passwords = passwords
        self.allow_anonymous = allow_anonymous
        self.identity = identity
        self.tokens = judges
        self.client_ids = client_ids or ClientIds()
        self.authenticate: Authenticate = self._check if hook is None else hook

    @property
    def asks(self) -> bool:
        """Is there anything to be asked before a CONNECT is accepted?"""
        if self.hook is not None or self.passwords is not None or self.tokens is not None or self.identity != "none":
            return True
        return self.allow_anonymous is False or self.client_ids.bound or self._guard.has_bans

    @property
    def takes_rules(self) -> bool:
        """May who comes in have rules of its own?"""
        return self.hook is None and self.tokens is not None and self.tokens.bring_rules

    def is_banned(self, client_id: str, username: str | None, peer: str) -> bool:
        return self._guard.is_banned(client_id, username, peer)

    def admit(self, question: AuthRequest, verdict: Verdict, peer: str) -> Verdict:
        """The last word on a CONNECT that has shown who it is: what it is called, and whether that one may come in."""
        client_id = self.client_ids.settle(question.client_id, verdict.username)
        if client_id is None:
            nameless = self.client_ids.from_username and not verdict.username
            return _NOT_AUTHORIZED if nameless else Verdict(None, ReasonCode.CLIENT_IDENTIFIER_NOT_VALID)
        if self.is_banned(client_id, verdict.username, peer):
            return BANNED
        return verdict._replace(client_id=client_id)

    @property
    def methods(self) -> tuple[str, ...]:
        """Of MQTT 5.0's enhanced authentication, where no hook decides which there are."""
        if self.identity != "none":
            return ()
        by_password = (scram.METHOD,) if self.passwords is not None and self.passwords.has_scram else ()
        return by_password if self.tokens is None else (*by_password, tokens.METHOD)

    def verdict(self, question: AuthRequest, certificate: Mapping[str, Any] | None, peer: str = "") -> Verdict | None:
        """What needs no waiting; None: `authenticate` is to be asked."""
        anonymous = question.username is None and question.method is None
        if self.hook is not None:
            return _NOT_AUTHORIZED if anonymous and self.allow_anonymous is False else None
        if question.method is not None and question.method not in self.methods:
            return Verdict(None, ReasonCode.BAD_AUTHENTICATION_METHOD)
        if question.method is None and self.identity != "none":
            name = identity_of(certificate, self.identity)
            return _NOT_AUTHORIZED if name is None else Verdict(name)
        token = self._token_of(question.username, question.password, question.method, question.data)
        if token is not None:
            return self._by_token(question, token, peer)
        if question.method is not None:
            return None
        if anonymous:
            return _NOT_AUTHORIZED if self.allow_anonymous is False else Verdict(None)
        if self.passwords is not None:
            return None
        if self.tokens is not None:  # a name that nothing shows to be one's own
            return Verdict(None, ReasonCode.BAD_USER_NAME_OR_PASSWORD)
        return _NOT_AUTHORIZED if self.allow_anonymous is False else Verdict(question.username)

    def _token_of(self, username: str | None, password: bytes | None, method: str | None, data: bytes | None) -> bytes | None:
        """What is to be judged as a token."""
        if self.tokens is None:
            return None
        if method is not None:
            return (data or b"") if method == tokens.METHOD else None
        return password if self.tokens.is_for(username, password) else None

    def _by_token(self, question: AuthRequest, token: bytes, peer: str) -> Verdict | None:
        """Not slowed: a signature cannot be guessed, and a thousand devices behind one address may all be late with a new token."""
        assert self.tokens is not None
        if self.tokens.is_slow(token):
            return None
        try:
            claims = self.tokens.check(token)
        except tokens.TokenFault as fault:
            _tell_token_fault(question.client_id, peer, fault)
            by_password = question.method is None
            return Verdict(None, ReasonCode.BAD_USER_NAME_OR_PASSWORD) if by_password else _NOT_AUTHORIZED
        return Verdict(claims.username, None, None, claims.ends_at_s, claims.rules)

    async def _check(self, request: ConnectRequest) -> str | None:
        token = self._token_of(request.username, request.password, request.auth_method, request.auth_data)
        if token is not None:
            return await self._check_token(request, token)
        if self.passwords is None:
            return None
        if request.auth_method is not None:
            return await self._guard.exchange(self.passwords, request)
        return await self._guard.check(self.passwords, request)

    async def _check_token(self, request: ConnectRequest, token: bytes) -> str | None:
        """One whose key is slow."""
        assert self.tokens is not None
        try:
            claims = await trio.to_thread.run_sync(self.tokens.check, token, limiter=self._guard.limiter)
        except tokens.TokenFault as fault:
            _tell_token_fault(request.client_id, request.peer, fault)
            return None
        request.ends_at_s, request._rules = claims.ends_at_s, claims.rules
        return claims.username


def _tell_token_fault(client_id: str, peer: str, fault: tokens.TokenFault) -> None:
    logger.info("the token of client %r at %s is not taken: %s", named(client_id), peer, fault)

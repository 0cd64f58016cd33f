"""Who comes in by a listener: the rule, and the slow work of verifying passwords, which may harm nobody else.

Hashing happens in threads, a few at a time. Whoever fails waits for the answer, longer each time; an address that goes on failing
has its attempts one after another.
A user whose password was right once is recognised quickly from then on (by a keyed digest, in memory), so that ten thousand devices
which come back at once cost no minutes, and whoever guesses beside them at the same address cannot keep them out.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import trio

from broker.auth import scram
from broker.auth.passwords import Passwords
from broker.auth.throttle import Throttle, address_of
from broker.net.tls import Identity, identity_of
from broker.reasons import ReasonCode

if TYPE_CHECKING:
    from broker.core.auth import AuthRequest
    from broker.net.authentication import Authenticate, ConnectRequest

HASHES_COUNT_MAX: Final = max(1, (os.cpu_count() or 2) - 1)
"""At a time. One core is left to the clients that are in."""

logger = logging.getLogger("broker.auth")

Verdict = tuple[str | None, ReasonCode | None]
"""(user name, why not)."""


class Guard:
    """What all listeners share: the threads that hash, and the memory of who failed."""

    def __init__(self) -> None:
        self.throttle = Throttle()
        self.limiter = trio.CapacityLimiter(HASHES_COUNT_MAX)
        self._turns: dict[str, tuple[trio.Lock, int]] = {}

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
            logger.info("SCRAM failed for client %r at %s: %s", request.client_id, request.peer, fault)
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

    __slots__ = ("_guard", "allow_anonymous", "authenticate", "hook", "identity", "passwords")

    def __init__(
        self, guard: Guard, hook: Authenticate | None, passwords: Passwords | None, allow_anonymous: bool | None, identity: Identity
    ) -> None:
        """hook: an embedder's; it decides alone. allow_anonymous: None leaves it to the hook, and without one lets everybody in."""
        self._guard = guard
        self.hook = hook
        self.passwords = passwords
        self.allow_anonymous = allow_anonymous
        self.identity = identity
        self.authenticate: Authenticate = self._check if hook is None else hook

    @property
    def asks(self) -> bool:
        """Is there anything to be asked before a CONNECT is accepted?"""
        return self.hook is not None or self.passwords is not None or self.identity != "none" or self.allow_anonymous is False

    @property
    def methods(self) -> tuple[str, ...]:
        """Of MQTT 5.0's enhanced authentication, where no hook decides which there are."""
        return (scram.METHOD,) if self.passwords is not None and self.passwords.has_scram and self.identity == "none" else ()

    def verdict(self, question: AuthRequest, certificate: Mapping[str, Any] | None) -> Verdict | None:
        """What needs no waiting; None: `authenticate` is to be asked."""
        anonymous = question.username is None and question.method is None
        if self.hook is not None:
            return (None, ReasonCode.NOT_AUTHORIZED) if anonymous and self.allow_anonymous is False else None
        if question.method is not None:
            return None if question.method in self.methods else (None, ReasonCode.BAD_AUTHENTICATION_METHOD)
        if self.identity != "none":
            name = identity_of(certificate, self.identity)
            return (None, ReasonCode.NOT_AUTHORIZED) if name is None else (name, None)
        if anonymous or self.passwords is None:
            return (None, ReasonCode.NOT_AUTHORIZED) if self.allow_anonymous is False else (question.username, None)
        return None

    async def _check(self, request: ConnectRequest) -> str | None:
        if self.passwords is None:
            return None
        if request.auth_method is not None:
            return await self._guard.exchange(self.passwords, request)
        return await self._guard.check(self.passwords, request)

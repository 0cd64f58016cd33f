"""One question of who a client is: put to its listener's lock, asked of a hook if need be, answered to the core.

It lives from CONNECT, or from an AUTH that authenticates anew, to its verdict, and until what the client has sent ahead is worked off; a
connection has one at a time. Not even the end of the client's stream takes it back, if there is something ahead: "connect, publish, close" in one
go is a message. What bounds it is what bounds the question of a client that stays: `connect_timeout_s`, and the account of what comes in.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio

from broker.core.access import Access
from broker.net import authentication
from broker.net.locks import BANNED
from broker.net.pausing import work_off

if TYPE_CHECKING:
    from broker.core.auth import AuthRequest
    from broker.net.authentication import Authenticate, Verdict
    from broker.net.connection import Connection


class Inquiry:
    __slots__ = ("_answered", "connection", "over", "question", "scope")

    def __init__(self, connection: Connection, question: AuthRequest) -> None:
        self.connection = connection
        self.question = question
        self.scope: trio.CancelScope | None = None
        """Of the hook, while it runs."""
        self.over = trio.Event()
        """Nothing more comes of it."""
        self._answered: trio.Event | None = None

    def ask(self, nursery: trio.Nursery, asked_at: float) -> bool:
        """Was it answered at once? Then there may be something that the client has sent ahead. asked_at: from when its time counts."""
        connection, question = self.connection, self.question
        server = connection.server
        lock = server.lock_of(connection.bound)
        # Before anything is hashed; `_settle` asks again, when it is known who it is.
        if not question.reauthentication and lock.is_banned(question.client_id, question.username, connection.peer):
            self._settle(BANNED)
            return True
        verdict = lock.verdict(question, connection.certificate, connection.peer)
        if verdict is not None:
            self._settle(verdict)
            return True
        deadline = asked_at + connection.limits.connect_timeout_s
        limiter = None if lock.hook is None else server.limiter
        nursery.start_soon(self._wait_answer, lock.authenticate, limiter, deadline)
        return False

    async def _wait_answer(self, authenticate: Authenticate, limiter: trio.CapacityLimiter | None, deadline: float) -> None:
        try:
            await authentication.ask(self, authenticate, limiter, deadline)
        finally:
            self.over.set()
            if self.connection.inquiry is self:
                self.connection.inquiry = None

    def attend(self) -> None:
        """The core has named the link: the client has answered a challenge, or nobody wants a verdict any more."""
        if self.question.done:
            if self.scope is not None:
                self.scope.cancel()
        elif self.question.answers and self._answered is not None:
            self._answered.set()

    async def answer(self, verdict: Verdict) -> None:
        """The hook's verdict, for the core; then what the client has sent ahead."""
        self._settle(verdict)
        await work_off(self.connection)

    async def challenge(self, data: bytes) -> bytes:
        """Ask the client for more and wait for what it says; the caller's deadline bounds it."""
        connection = self.connection
        assert connection.link is not None
        connection.server.engine.challenge(connection.link, data, trio.current_time())
        self._answered = trio.Event()
        connection.server.flush()
        try:
            while not self.question.answers:
                await self._answered.wait()
                self._answered = trio.Event()
        finally:
            self._answered = None
        return self.question.answers.popleft()

    def _settle(self, verdict: Verdict) -> None:
        connection = self.connection
        server = connection.server
        assert connection.link is not None
        if verdict.refused is None and not self.question.reauthentication:
            verdict = server.lock_of(connection.bound).admit(self.question, verdict, connection.peer)
        now = trio.current_time()
        ends_at = now + (verdict.ends_at_s - time.time())
        # Without rules of its own it has the listener's, also if it had others before.
        access = server.access_of(connection.bound)
        if verdict.rules is not None:
            access = Access(verdict.rules, refuses_wills=False, own=verdict.rules.text)
        name, refused, data = verdict.username, verdict.refused, verdict.final_data
        server.engine.authenticated(
            connection.link, name, now, refused=refused, data=data, ends_at=ends_at, access=access, client_id=verdict.client_id
        )
        server.flush()

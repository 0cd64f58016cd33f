"""Asking the embedder who a client is: in that client's nursery, with a deadline, a limited number at a time.

Whatever goes wrong refuses; nobody gets in by a mistake. The client is read meanwhile, so that its departure cancels the
question (unless there is something that it has said before it left: see `inquiry`), and a slow answer holds up nobody else.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Awaitable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Callable, Final, NamedTuple, TypeAlias  # noqa: UP035  # this Callable takes a docstring: see broker/__init__.py

import trio

from broker.reasons import ReasonCode
from broker.words import named

if TYPE_CHECKING:
    from broker.auth.tokens import TokenRules
    from broker.net.inquiry import Inquiry

QUESTIONS_COUNT_MAX: Final = 100
"""`authenticate` hooks running at a time; more wait their turn, inside their own deadline."""

logger = logging.getLogger("broker.auth")


class Verdict(NamedTuple):
    """username: by which the client is known; refused: why not. final_data: of enhanced authentication. ends_at_s: until when it holds, Unix
    time. rules: instead of those of files. client_id: under which it is served; "" for the one it brought."""

    username: str | None
    refused: ReasonCode | None = None
    final_data: bytes | None = None
    ends_at_s: float = math.inf
    rules: TokenRules | None = None
    client_id: str = ""


class ConnectRequest:
    """What a client says of itself.

    client_id, username, password (bytes): of its CONNECT; None where it gave none, and client_id may be empty. peer: "192.0.2.7:50123", "unix" or
    "in-process"; listener: the URL it came in by; certificate: what `ssl.SSLSocket.getpeercert()` gives, None without TLS or without a client's
    certificate. auth_method, auth_data: of MQTT 5.0's enhanced authentication, else None. reauthentication: the client is connected already, and
    proves itself anew. final_data: set it to send Authentication Data with the success. ends_at_s: set it (Unix time) to have the connection end
    then, with 0xA0, unless the client authenticates anew before.
    """

    __slots__ = (
        "_inquiry", "_rules", "auth_data", "auth_method", "certificate", "client_id", "ends_at_s", "final_data", "listener", "password",
        "peer", "reauthentication", "username",
    )  # fmt: skip

    def __init__(self, inquiry: Inquiry) -> None:
        self._inquiry = inquiry
        connection, question = inquiry.connection, inquiry.question
        self.client_id = question.client_id
        self.username = question.username
        self.password = question.password
        self.peer = connection.peer
        self.listener = connection.listener
        self.certificate: Mapping[str, Any] | None = connection.certificate
        self.auth_method = question.method
        self.auth_data = question.data
        self.reauthentication = question.reauthentication
        self.final_data: bytes | None = None
        self.ends_at_s = math.inf
        self._rules: TokenRules | None = None
        """Of a token."""

    def __repr__(self) -> str:
        hidden = None if self.password is None else "..."
        return f"ConnectRequest(client_id={self.client_id!r}, username={self.username!r}, password={hidden}, peer={self.peer!r})"

    async def challenge(self, data: bytes) -> bytes:
        """Send AUTH 0x18 with `data` and wait for the client's next AUTH. RuntimeError without an auth_method."""
        if self.auth_method is None:
            raise RuntimeError("only a client that named an Authentication Method can be challenged")
        return await self._inquiry.challenge(data)


Authenticate: TypeAlias = Callable[[ConnectRequest], Awaitable[str | None]]
"""The user name by which the client is known from now on; None refuses it (0x86)."""


async def ask(inquiry: Inquiry, authenticate: Authenticate, limiter: trio.CapacityLimiter | None, deadline: float) -> None:
    """Run the hook and give the core its verdict; nothing if the client has gone, or the core no longer wants to know.

    limiter: None for one that limits itself.
    """
    connection, question = inquiry.connection, inquiry.question
    if question.done:  # it has gone before its turn came, and what it said of itself with it
        return
    request = ConnectRequest(inquiry)
    username: str | None = None
    refused: ReasonCode | None = ReasonCode.NOT_AUTHORIZED if question.reauthentication else ReasonCode.SERVER_UNAVAILABLE
    with trio.CancelScope(deadline=deadline) as scope:
        inquiry.scope = scope
        try:
            async with limiter or nullcontext():
                answer = await authenticate(request)
        except Exception as error:  # somebody else's code: whatever it raises refuses this client and touches no other
            # Neither its text nor its chain: the hook has seen the password, and may have put it there.
            frame = traceback.extract_tb(error.__traceback__)[-1]
            logger.error(
                "the authenticate hook failed for client %r at %s: %s at %s:%s; refused",
                named(question.client_id), connection.peer, type(error).__name__, frame.filename, frame.lineno,
            )  # fmt: skip
        else:
            if isinstance(answer, str):
                username, refused = answer, None
            elif question.reauthentication or question.method is not None:
                refused = ReasonCode.NOT_AUTHORIZED
            else:
                refused = ReasonCode.BAD_USER_NAME_OR_PASSWORD
    if scope.cancelled_caught and trio.current_time() >= deadline:  # the core's own deadline may have come first
        who = "the client" if question.challenged else "the authenticate hook"
        logger.warning("%s gave no answer in time: client %r at %s; refused", who, named(question.client_id), connection.peer)
        if question.challenged:
            refused = ReasonCode.NOT_AUTHORIZED
    if not question.done:
        await inquiry.answer(Verdict(username, refused, request.final_data, request.ends_at_s, request._rules))

"""How a client shows who it is over AUTH (MQTT 5.0, 4.12): one object that `connect(auth=)` takes, and one exchange of it for each connection."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Protocol

import trio

from broker.auth import scram
from broker.auth.saslprep import saslprep
from broker.errors import ProtocolError


class Exchange(Protocol):
    def first(self) -> bytes | None:
        """What CONNECT, or the AUTH that begins it anew, says."""

    async def answer(self, challenge: bytes) -> bytes:
        """ProtocolError ends the connection."""

    def accepts(self, last: bytes) -> bool:
        """Is it the right broker? Of what came with its success."""


class Authentication(Protocol):
    @property
    def method(self) -> str: ...
    def begin(self) -> Exchange: ...


class ScramSHA256:
    """SCRAM-SHA-256: the password is proven and never sent, and the broker proves that it knows it. ValueError where SASLprep forbids one of them."""

    method = scram.METHOD

    def __init__(self, username: str, password: str) -> None:
        for name, text in (("username", username), ("password", password)):
            if not isinstance(text, str):
                raise TypeError(f"{name} must be str, not {type(text).__name__}")
        self._username = saslprep(username)
        self._password = scram.SaltedPassword(password)

    def __repr__(self) -> str:
        return f"ScramSHA256({self._username!r}, ...)"

    def begin(self) -> Exchange:
        """For `connect`: one proof, with a nonce of its own."""
        return _Scram(scram.ClientExchange(self._username, self._password, scram.new_nonce(secrets.token_bytes(18))))


class _Scram:
    def __init__(self, exchange: scram.ClientExchange) -> None:
        self._exchange = exchange
        self.first = exchange.first
        self.accepts = exchange.accepts

    async def answer(self, challenge: bytes) -> bytes:
        try:
            return await trio.to_thread.run_sync(self._exchange.final, challenge, abandon_on_cancel=True)
        except scram.ScramFault as fault:
            raise ProtocolError(str(fault)) from None


class Token:
    """A token, sent as it is; of JSON Web Tokens unless `method` says otherwise. token: text, or what gives the newest one for each connection."""

    def __init__(self, token: str | Callable[[], str], method: str = "JWT") -> None:
        if not isinstance(token, str) and not callable(token):
            raise TypeError(f"token must be str, or a function that gives it, not {type(token).__name__}")
        self._token = token
        self.method = method

    def __repr__(self) -> str:
        return f"Token(..., {self.method!r})"

    def begin(self) -> Exchange:
        """For `connect`: what is sent this time."""
        token = self._token if isinstance(self._token, str) else self._token()
        if not isinstance(token, str):
            raise TypeError(f"the function that gives the token must give str, not {type(token).__name__}")
        return _Sent(token)


class _Sent:
    def __init__(self, token: str) -> None:
        self._token = token

    def first(self) -> bytes:
        return self._token.encode("utf-8")

    async def answer(self, challenge: bytes) -> bytes:
        raise ProtocolError("the broker asks for more than a token")

    def accepts(self, last: bytes) -> bool:
        return True

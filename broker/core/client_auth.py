"""The client's half of enhanced authentication (MQTT 5.0, 4.12): what may come when, and what is still to be answered or shown.

What the words in it mean is the caller's: it makes the first one, answers challenges, and says whether the broker's last one is right.
"""

from __future__ import annotations

from collections.abc import Callable

from broker.errors import ProtocolError
from broker.reasons import ReasonCode
from broker.wire.packets import Auth, Properties


class ClientAuth:
    """method: None where none was named. challenge: what the broker asked and nobody has answered. renewing: an AUTH 0x19 of ours is under way."""

    __slots__ = ("_accepts", "challenge", "first", "method", "renewing")

    def __init__(self, method: str | None) -> None:
        self.method = method
        self.first: bytes | None = None
        self.challenge: bytes | None = None
        self.renewing = False
        self._accepts: Callable[[bytes], bool] | None = None

    def prepare(self, first: bytes | None, accepts: Callable[[bytes], bool]) -> None:
        """Before a connection, or an AUTH 0x19: what to say first. accepts: is the broker's last word right?"""
        self.first = first
        self._accepts = accepts

    def begin(self) -> None:
        self.challenge = None
        self.renewing = False

    def packet(self, reason: ReasonCode, data: bytes | None) -> Auth:
        return Auth(reason, Properties(authentication_method=self.method, authentication_data=data))

    def on_auth(self, packet: Auth, connected: bool) -> bool:
        """Is a re-authentication complete?"""
        if self.method is None:
            raise ProtocolError("AUTH, though no Authentication Method was named")  # [MQTT5-4.12.0-6]
        if self._accepts is None:
            raise ProtocolError("AUTH, which this client cannot answer", ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR)
        if packet.properties.authentication_method != self.method:
            raise ProtocolError("AUTH with another Authentication Method than our CONNECT's")  # [MQTT5-4.12.0-5]
        if connected and not self.renewing:
            raise ProtocolError("an AUTH that nobody asked for")
        if packet.reason == ReasonCode.CONTINUE_AUTHENTICATION:
            if self.challenge is not None:
                raise ProtocolError("a second challenge before the first was answered")
            self.challenge = packet.properties.authentication_data or b""
            return False
        if packet.reason != ReasonCode.SUCCESS or not connected:
            raise ProtocolError(f"AUTH with {packet.reason.describe()} from a broker")
        self.check(packet.properties.authentication_data)
        self.renewing = False
        return True

    def check(self, data: bytes | None) -> None:
        """What came with the success."""
        if self._accepts is not None and not self._accepts(data or b""):
            raise ProtocolError("it has not shown that it knows us", ReasonCode.NOT_AUTHORIZED)
        self.challenge = None

"""The other end of a bridge: at which of its addresses, as whom, and with what deadline for its answers.

An address is another broker, with another Session, as far as anybody can know; so each is dialled by a client of its own, and the first one in
the list is gone back to as soon as it is there.
"""

from __future__ import annotations

import random
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import trio

from broker.auth.scram import METHOD as SCRAM
from broker.bridge.pump import UNDER_WAY_COUNT_MAX
from broker.bridge.settings import Bridge, BridgeTls, address_of, client_context, read_password, target_of
from broker.client.authentication import Exchange, ScramSHA256, Token
from broker.client.client import Client
from broker.client.connect import Attachable, connect
from broker.client.reconnect import Reconnect
from broker.client.workings import Workings
from broker.core.client_state import PACKET_BYTES_MAX
from broker.errors import BrokerError, ConnectRefused
from broker.messages import Will
from broker.reasons import ReasonCode
from broker.wire.framing import PACKET_BYTES_LARGEST
from broker.words import strerror

if TYPE_CHECKING:
    from broker.core.client_state import Outgoing

RECEIVE_COUNT_MAX: Final = 500
"""Unacknowledged messages on the way in to a client of ours."""
GOODBYE_S: Final = 1.0
DELAY_S: Final = 1.0
DELAY_S_MAX: Final = 30.0
SHORT_S: Final = 30.0
"""A connection that has not lasted so long was none for the policy of `Backoff`."""
SHORT_COUNT_MAX: Final = 3
SLOW_S: Final = 60.0
"""Between two attempts where the same answer is to be expected, at least."""
LOOKS_COUNT: Final = 4
"""At what is owed, within the deadline for it."""
_AWAY: Final = frozenset(
    {
        ReasonCode.SERVER_UNAVAILABLE,
        ReasonCode.SERVER_BUSY,
        ReasonCode.SERVER_SHUTTING_DOWN,
        ReasonCode.USE_ANOTHER_SERVER,
        ReasonCode.SERVER_MOVED,
    }
)


class Backoff(Reconnect):
    """That of every bridge; with `attempts_max` 1 where there are other addresses. A broker that accepts each connection and ends it at once is
    dialled less often too: after up to 8 s, where the policy alone would begin anew with up to 1 s."""

    __slots__ = ("_short_count",)

    def __init__(self, attempts_max: int | None = None) -> None:
        super().__init__(delay_s=DELAY_S, delay_s_max=DELAY_S_MAX, attempts_max=attempts_max)
        self._short_count = 0

    def lasted(self, seconds: float) -> None:
        """A connection is over."""
        self._short_count = min(SHORT_COUNT_MAX, self._short_count + 1) if seconds < SHORT_S else 0

    def delay(self, attempt: int) -> float:
        return super().delay(max(attempt, self._short_count))


class FarEnd:
    """Where the bridge is going."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._urls = bridge.urls
        self._index = 0
        self._password = b""
        self.backoff = Backoff(1 if len(self._urls) > 1 else None)

    @property
    def address(self) -> str:
        """For people: the one that is dialled now."""
        return address_of(self._urls[self._index])

    @property
    def end(self) -> str | Attachable:
        """The same, as `Bridge.ends` has it."""
        return self._bridge.ends[self._index]

    @property
    def has_others(self) -> bool:
        return len(self._urls) > 1

    @property
    def is_first(self) -> bool:
        """Is it the one that is preferred?"""
        return self._index == 0

    def first(self) -> None:
        """Begin at the first again."""
        self._index = 0

    def next(self) -> bool:
        """To the next one; have all been tried?"""
        self._index = (self._index + 1) % len(self._urls)
        return self._index == 0

    @asynccontextmanager
    async def dialled(self) -> AsyncIterator[Client]:
        """This bridge's client there."""
        bridge = self._bridge
        topic = bridge.notification_topic
        is_new = bridge.version == "5.0"
        async with self._connect(
            self._index,
            client_id=bridge.remote_client_id,
            clean_start=False,
            session_expiry_s=bridge.session_expiry_s if is_new else 0,
            reconnect=self.backoff,
            receive_maximum=RECEIVE_COUNT_MAX,
            outgoing_count_max=UNDER_WAY_COUNT_MAX,
            packet_bytes_max=PACKET_BYTES_MAX if is_new else PACKET_BYTES_LARGEST,  # one of 3.1.1 cannot be told, and would send it again
            will=None if topic is None else Will(topic, b"0", qos=1, retain=True),
        ) as remote:
            try:
                yield remote
            finally:
                if topic is not None:
                    await Workings(remote).end_with_will(GOODBYE_S)

    def delay(self, attempts: int, *, slowly: bool) -> float:
        """Until the next attempt, after so many. slowly: the same answer is to be expected."""
        return SLOW_S * random.uniform(1, 1.5) if slowly else self.backoff.delay(attempts)

    async def wait_first_there(self) -> None:
        """While this is another of the addresses: until the first one answers."""
        while True:
            await trio.sleep(self.delay(0, slowly=True))
            if await self._is_first_there():
                return

    async def _is_first_there(self) -> bool:
        """Does the first address answer a CONNECT, whatever it says of it, but that it is away? As nobody, with no Session: it leaves nothing."""
        try:
            async with self._connect(0, client_id="", clean_start=True, reconnect=None):
                return True
        except ConnectRefused as error:
            return error.reason not in _AWAY
        except BrokerError:
            return False

    @asynccontextmanager
    async def _connect(self, index: int, **options: Any) -> AsyncIterator[Client]:
        bridge = self._bridge
        url = self._urls[index]
        target = target_of(url)
        tls: ssl.SSLContext | None = client_context(bridge.tls) if isinstance(bridge.tls, BridgeTls) else bridge.tls
        if bridge.local_address is not None:
            options["bind_address"] = bridge.local_address
        if bridge.auth_method is not None:
            options["auth"] = Proof(bridge.auth_method, bridge.username or "", self._newest_password)
        else:
            options["username"] = bridge.username if target is None or bridge.username is not None else target.username
            options["password"] = self._newest_password if bridge.password_file is not None else None if target is None else target.password
        async with connect(
            url,
            version=bridge.version,
            keep_alive_s=bridge.keepalive_s,
            close_grace_s=GOODBYE_S,
            tls=tls,
            **options,
        ) as client:
            yield client

    def _newest_password(self) -> bytes:
        """A file that cannot be read any more, or is empty while it is written anew, counts as unchanged."""
        assert self._bridge.password_file is not None
        try:
            self._password = read_password(self._bridge.password_file)
        except (OSError, ValueError) as error:
            if not self._password:
                cause = strerror(error) if isinstance(error, OSError) else str(error)
                raise BrokerError(f"the password in {self._bridge.password_file} cannot be had: {cause}") from None
        return self._password


class Proof:
    """An `Authentication` with the newest password, or token, for each connection."""

    def __init__(self, method: str, username: str, newest: Callable[[], bytes]) -> None:
        self.method = method
        self._username = username
        self._newest = newest

    def begin(self) -> Exchange:
        try:
            secret = self._newest().decode("utf-8")
            return (ScramSHA256(self._username, secret) if self.method == SCRAM else Token(secret, self.method)).begin()
        except ValueError:  # UnicodeDecodeError too, whose words repeat it
            raise BrokerError(f"the user name or what is in password_file cannot be used with {self.method}") from None


async def watch_answers(remote: Client, oldest: Callable[[], Outgoing | None], timeout_s: float, late: Callable[[], object]) -> None:
    """For ever: break a connection off on which the other broker answers PINGREQs, and not what it was asked, or the oldest message. late: told."""
    workings = Workings(remote)
    owed: tuple[object, ...] | None = None
    since = trio.current_time()
    while True:
        await trio.sleep(timeout_s / LOOKS_COUNT)
        now = trio.current_time()
        before, owed = owed, workings.owed(oldest())
        if owed is None or owed != before:
            since = now
        elif now - since >= timeout_s:
            what = "answered SUBSCRIBE or UNSUBSCRIBE" if owed[1] is None else "acknowledged a message"
            workings.break_off(f"the broker has not {what} for {timeout_s:g} s")
            late()

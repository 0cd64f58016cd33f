"""A broker in a thread of its own, for programs that are not Trio's: asyncio, threads, plain tests, pytest.

Every method may be called from any thread and blocks only briefly. What the broker carries is also kept here, bounded, so that a
test can wait for a message without being a client.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec
import trio

from broker.core.message import ApplicationMessage
from broker.errors import shown
from broker.hub import Broker
from broker.messages import Message, Payload
from broker.net.listener import Listener, parse_listener
from broker.net.settings import Settings
from broker.opening import open_broker
from broker.reasons import ReasonCode
from broker.wire.topics import matches, topic_filter_fault

SEEN_COUNT_MAX: Final = 100_000
"""Messages kept for `wait_for`; the oldest go first."""

T = TypeVar("T")


class BrokerThread:
    """Made by `broker_thread`. url, host, port: of the first listener; a Unix one has host "" and port 0."""

    def __init__(
        self, config: Settings | None, listeners: Sequence[Listener | str], limits: dict[str, Any], store: str | PathLike[str] | None = None
    ) -> None:
        self._config = config
        self._store = store
        self._cleared = False
        """While it was stopped, so that what a store has is still to be forgotten."""
        self._listeners = [parse_listener(one) if isinstance(one, str) else one for one in listeners]
        self._limits = limits
        self._seen: deque[Message] = deque(maxlen=SEEN_COUNT_MAX)
        self._arrived = threading.Condition()
        self._token: trio.lowlevel.TrioToken | None = None
        self._hub: Broker | None = None
        self._stop: trio.Event | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self.url = ""
        self.host = ""
        self.port = 0

    # ---- its life ----

    def start(self) -> None:
        """Open it; after `stop` again, on the same port, with nothing remembered but what was seen and what is in the store, if it has one. Raises
        ListenError, ConfigError, StoreError."""
        if self._thread is not None:
            raise RuntimeError("this broker is running")
        ready = threading.Event()
        self._failure = None
        self._thread = threading.Thread(target=self._run, args=(ready,), name="broker", daemon=True)
        self._thread.start()
        ready.wait()
        if self._hub is None:
            self._thread.join()
            self._thread = None
            failure = self._failure
            assert failure is not None
            raise failure

    def stop(self) -> None:
        """Tell clients goodbye and close everything. Idempotent. Raises what made the broker fail, if it did."""
        thread = self._thread
        if thread is None:
            return
        if self._token is not None and self._stop is not None:
            with contextlib.suppress(trio.RunFinishedError):  # it has ended by itself
                self._token.run_sync_soon(self._stop.set)
        thread.join()
        self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _run(self, ready: threading.Event) -> None:
        try:
            trio.run(self._main, ready)
        except BaseException as error:  # this thread's end; `start` or `stop` raises it where somebody sees it
            self._failure = error
        finally:
            self._hub = self._token = self._stop = None
            ready.set()
            with self._arrived:
                self._arrived.notify_all()

    async def _main(self, ready: threading.Event) -> None:
        listeners: list[Listener | str] = list(self._listeners)
        if self.port and self._listeners:
            # Again: on the port that the system chose the first time.
            first = self._listeners[0]
            if first.unix is None and first.port == 0:
                listeners[0] = msgspec.structs.replace(first, port=self.port)
        async with open_broker(self._config, listeners=listeners, store=self._store, **self._limits) as hub:
            self._stop = trio.Event()
            self._token = trio.lowlevel.current_trio_token()
            self._locate(hub)
            if self._cleared:
                self._cleared = False
                _clear_retained(hub)
            internal = hub._engine.subscribe_internal("broker-thread", ["#"], 2, self._record, trio.current_time(), retained=False)
            self._hub = hub
            ready.set()
            try:
                await self._stop.wait()
            finally:
                self._hub = None
                hub._engine.unsubscribe_internal(internal, trio.current_time())
        # Clients get 0x8B and `shutdown_grace_s` on the way out.

    def _locate(self, hub: Broker) -> None:
        if hub.urls:
            self.url = hub.urls[0]
            parts = urlsplit(self.url)
            self.host, self.port = (parts.hostname or "", parts.port or 0) if parts.scheme != "unix" else ("", 0)

    def _record(self, message: ApplicationMessage, qos: int, retain: bool, now: float) -> None:
        """In the broker's thread, in the middle of a verb: no more than to keep it."""
        public = Message(message.topic, message.payload, qos=qos, retain=message.retain, properties=message.properties, received_at=time.time())
        with self._arrived:
            self._seen.append(public)
            self._arrived.notify_all()

    def _call(self, function: Callable[[Broker], T]) -> T:
        """Run it in the broker's thread."""
        hub, token = self._hub, self._token
        if hub is None or token is None:
            raise RuntimeError("this broker is stopped")
        return trio.from_thread.run_sync(function, hub, trio_token=token)

    # ---- what tests do ----

    def publish(self, topic: str, payload: Payload = b"", *, qos: int = 0, retain: bool = False) -> ReasonCode:
        """As the broker itself: no access rules. Raises InvalidTopic."""
        hub, token = self._hub, self._token
        if hub is None or token is None:
            raise RuntimeError("this broker is stopped")

        async def publish() -> ReasonCode:
            return await hub.publish(topic, payload, qos=qos, retain=retain)

        return trio.from_thread.run(publish, trio_token=token)

    def wait_for(self, filter: str, *, timeout_s: float = 5, count: int = 1) -> list[Message]:
        """The first `count` messages that match, of those seen since `start` or `clear`. TimeoutError lists what came instead.
        RuntimeError if the broker fails meanwhile.
        """
        fault = topic_filter_fault(filter)
        if fault is not None:
            raise ValueError(f"{shown(filter)} is not a topic filter: {fault}")
        deadline = time.monotonic() + timeout_s if timeout_s != math.inf else None
        with self._arrived:
            while True:
                found = [message for message in self._seen if matches(filter, message.topic)]
                if len(found) >= count:
                    return found[:count]
                if self._failure is not None:  # `stop` raises it
                    raise RuntimeError("this broker has failed, so no message will come") from self._failure
                left = None if deadline is None else deadline - time.monotonic()
                if (left is not None and left <= 0) or self._thread is None:
                    raise TimeoutError(f"{len(found)} of {count} messages for {filter!r} came in {timeout_s:g} s; {self._what_came()}")
                self._arrived.wait(left)

    def _what_came(self) -> str:
        if not self._seen:
            return "nothing else either"
        last = [f"{message.topic} {message.payload[:60]!r}" for message in list(self._seen)[-20:]]
        more = f"{len(self._seen) - 20} more, then " if len(self._seen) > 20 else ""
        return f"what came: {more}{', '.join(last)}"

    def clear(self) -> None:
        """Forget what was seen, and all retained messages."""
        if self._hub is not None:
            self._call(_clear_retained)
        else:
            self._cleared = True
        with self._arrived:
            self._seen.clear()

    def drop_clients(self) -> None:
        """Cut every connection without a goodbye, to test reconnection."""
        self._call(Broker.drop_clients)


def _clear_retained(hub: Broker) -> None:
    now = trio.current_time()
    for filter in ("#", "$SYS/#"):
        for message in hub.retained(filter):
            hub._engine.publish(ApplicationMessage(message.topic, b"", 0, True), now)
    hub._server.flush()


@contextmanager
def broker_thread(
    config: Settings | None = None,
    *,
    listeners: Sequence[Listener | str] = ("mqtt://127.0.0.1:0",),
    store: str | PathLike[str] | None = None,
    **limits: int | float,
) -> Iterator[BrokerThread]:
    """A broker in its own thread for the length of the block. config: a `Config`; its listeners are not used. store: as of `open_broker`; with one,
    `stop` and `start` are a restart that keeps what is to outlive it. limits: keys of [limits]."""
    thread = BrokerThread(config, listeners, limits, store)
    thread.start()
    try:
        yield thread
    finally:
        thread.stop()

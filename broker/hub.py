"""`Broker`: an open broker, as the program sees it that opened it (`broker.opening`)."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final

import trio

from broker.auth.bans import Ban, BanInfo
from broker.bridge.bridges import Bridges
from broker.bridge.settings import BridgeInfo, check_bridges
from broker.channel import MessageChannel, Subscription
from broker.core.allowance import LimitOverrides
from broker.core.limits import Limits
from broker.core.message import ApplicationMessage
from broker.errors import BrokerError, ConfigError
from broker.inspection import (
    ClientInfo,
    SubscriptionInfo,
    client_info,
    client_slices,
    public_message,
    retained_slices,
    subscriber_slices,
    subscription_info,
)
from broker.messages import (
    Message,
    Overflow,
    Payload,
    QoS,
    UserProperties,
    check_qos,
    check_topic_filter,
    check_topic_name,
    message_properties,
    payload_bytes,
)
from broker.metrics.sys_topics import SysTopics
from broker.net.authentication import Authenticate
from broker.net.bound_socket import BoundSocket
from broker.net.doorkeeper import Doorkeeper, without_live
from broker.net.doors import anonymous_at, is_locked
from broker.net.listen import adopted_is_private
from broker.net.listener import Listener, control_faults
from broker.net.observer import ClientLog
from broker.net.server import Server
from broker.net.settings import Settings, limit_faults, override_faults
from broker.net.transport import StreamTransport
from broker.reasons import ReasonCode
from broker.wire.packets import NO_PROPERTIES, Properties

SHUTDOWN_GRACE_S: Final = 5.0
CREDIT_REFILL_RATE: Final = 0.1

logger = logging.getLogger("broker")


class Broker:
    """An open broker. Publishes and subscribes as itself: no access rules, $SYS allowed. Made by `open_broker`."""

    def __init__(
        self,
        server: Server,
        bound: Sequence[BoundSocket],
        config: Settings | None,
        sys_topics: SysTopics,
        log: ClientLog,
        doorkeeper: Doorkeeper,
        overflow: Mapping[str, str],
        overrides: LimitOverrides,
        bridges: Bridges,
    ) -> None:
        self._urls = tuple(one.url for one in bound)
        self._places = tuple(one.place for one in bound)
        self._server = server
        self._engine = server.engine
        self._config = config
        self._sys_topics = sys_topics
        self._log = log
        self._doorkeeper = doorkeeper
        self._overflow = overflow
        self._overrides = overrides
        self._bridges = bridges
        self._grace_s = SHUTDOWN_GRACE_S if config is None else config.shutdown_grace_s
        self._numbers = itertools.count(1)
        self._subscriptions: set[Callable[[], None]] = set()
        """How each of them is closed."""
        server.on_ended = self._close_subscriptions
        self._credit_s = server.limits.slow_subscriber_grace_s
        self._credit_at = trio.current_time()

    @property
    def urls(self) -> tuple[str, ...]:
        """Where it listens, with real ports: "mqtt://127.0.0.1:49321"."""
        return self._urls

    @property
    def places(self) -> tuple[str, ...]:
        """The same for people, with what is spoken there where the URL does not say it: "unix:///run/broker.sock (control)"."""
        return self._places

    # ---- messages ----

    async def publish(
        self,
        topic: str,
        payload: Payload = b"",
        *,
        qos: int = 0,
        retain: bool = False,
        content_type: str | None = None,
        user_properties: UserProperties = (),
        message_expiry_s: int | None = None,
    ) -> ReasonCode:
        """Publish to all that subscribed; NO_MATCHING_SUBSCRIBERS if there is nobody. Raises InvalidTopic, ValueError, TypeError.

        Waits while a subscriber is over its high mark, for at most `slow_subscriber_grace_s` of credit, which refills at a tenth of
        time. Cancelled there: nothing was published. With a store, QoS 1 and 2 and what is retained also wait until it is on disk;
        BrokerError where that is not known when the broker has shut down.
        """
        fields = message_properties(content_type, None, None, user_properties, message_expiry_s, None)
        properties = Properties(**fields) if fields else NO_PROPERTIES
        data = payload_bytes(payload)
        check_topic_name(topic)
        check_qos(qos)
        await trio.lowlevel.checkpoint()
        await self._wait_for_slow_ones()
        now = trio.current_time()
        expires_at = math.inf if message_expiry_s is None else now + message_expiry_s
        before = self._engine.changes_count
        reason = self._engine.publish(ApplicationMessage(topic, data, qos, retain, properties, expires_at=expires_at), now)
        changed = self._engine.changes_count != before
        self._server.flush()
        if self._server.committer is not None and changed and (qos or retain):
            await self._server.committer.wait_written()
        return reason

    async def _wait_for_slow_ones(self) -> None:
        """As the core makes a client's connection wait; without it a loop of publishes outruns every socket."""
        if not self._over_high_mark():
            return
        grace_s = self._server.limits.slow_subscriber_grace_s
        now = trio.current_time()
        self._credit_s = min(grace_s, self._credit_s + CREDIT_REFILL_RATE * (now - self._credit_at))
        self._credit_at = now
        with trio.move_on_after(self._credit_s):
            while self._over_high_mark():
                await self._server.progressed.wait()
        ended = trio.current_time()
        self._credit_s = max(0.0, self._credit_s - (ended - now))
        self._credit_at = ended

    def _over_high_mark(self) -> bool:
        for connection in self._server.writing:
            link = connection.link
            if link is not None and not link.closing and link.outbox.committed_bytes >= link.outbox_bytes_high:
                return True
        return False

    @asynccontextmanager
    async def subscribe(
        self, *filters: str, qos: int = 2, buffer_count_max: int = 1000, overflow: Overflow = "drop-oldest"
    ) -> AsyncIterator[Subscription]:
        """Messages of these Topic Filters, retained ones first, inside the process. Raises InvalidTopic; BrokerError when the broker has ended.

        There is no acknowledgement and nobody is paused: beyond buffer_count_max the overflow rule acts, and it is counted. A loop over them ends
        when the broker has, by `shutdown` or otherwise: with the last client, and after its Will.
        """
        if self._server.has_ended:
            raise BrokerError("the broker has shut down")
        if not filters:
            raise ValueError("subscribe needs at least one topic filter")
        for filter in filters:
            check_topic_filter(filter)
        check_qos(qos)
        channel = MessageChannel(ack="on_receipt", buffer_count_max=buffer_count_max, overflow=overflow)

        def close() -> None:
            for one in channel.siblings:
                one.close()

        channel.on_disconnect = close

        def take(message: ApplicationMessage, granted: int, retain: bool, now: float) -> None:
            public = public_message(message, granted, retain, now)
            for one in channel.siblings:
                one.offer(public)

        internal = self._engine.subscribe_internal(f"inside-{next(self._numbers)}", filters, qos, take, trio.current_time())
        self._subscriptions.add(close)
        try:
            self._server.flush()
            await trio.lowlevel.checkpoint()
            yield Subscription(filters, (QoS(qos),) * len(filters), channel)
        finally:
            self._subscriptions.discard(close)
            self._engine.unsubscribe_internal(internal, trio.current_time())
            self._server.flush()
            close()

    def _close_subscriptions(self) -> None:
        for close in self._subscriptions:
            close()

    def retained(self, filter: str = "#") -> Sequence[Message]:
        """All retained messages that match. Raises InvalidTopic."""
        now = trio.current_time()
        return [public_message(message, message.qos, True, now) for message in self._engine.retained(filter, now)]

    # ---- clients ----

    async def attach(self, stream: trio.abc.Stream, *, peer: str = "in-process") -> None:
        """Serve any byte stream to its end, and close it. Cancelled: the client is cut off. BrokerError while shutting down."""
        finished = trio.Event()
        connection = self._server.admit(StreamTransport(stream), peer)
        if connection is None:
            await trio.aclose_forcefully(stream)
            raise BrokerError("the broker is shutting down")
        connection.finished = finished
        try:
            await finished.wait()
        finally:
            connection.cancel()

    def clients(self) -> Sequence[ClientInfo]:
        """Every session, connected or not."""
        return [client_info(session) for session in self._engine.clients()]

    def client(self, client_id: str) -> ClientInfo | None:
        """The Session of this Client Identifier; None if there is none."""
        session = self._engine.client(client_id)
        return None if session is None else client_info(session)

    def subscriptions(self, client_id: str) -> Sequence[SubscriptionInfo]:
        """What this client subscribes to; nothing if there is no such client."""
        session = self._engine.client(client_id)
        if session is None:
            return []
        return [subscription_info(filter, subscription) for filter, subscription in session.subscriptions.items()]

    def subscribers(self, topic: str) -> Sequence[SubscriptionInfo]:
        """Every subscription of a client, connected or not, by which a message on this topic would be sent to it, as access rules are now; of a
        share group all its members, of whom one would get it. Raises InvalidTopic."""
        return [one for some in self.subscriber_slices(topic) for one in some]

    def client_slices(self) -> Iterator[Sequence[ClientInfo]]:
        """`clients()` in short steps, for very many: pass a checkpoint after each, since what else the broker does waits meanwhile. Who has
        ended since the first is left out, who came since may be missing."""
        return client_slices(self._engine)

    def subscriber_slices(self, topic: str) -> Iterator[Sequence[SubscriptionInfo]]:
        """`subscribers(topic)` likewise; a step may be empty."""
        return subscriber_slices(self._engine, topic)

    def retained_slices(self, filter: str = "#") -> Iterator[Sequence[Message]]:
        """`retained(filter)` likewise."""
        return retained_slices(self._engine, filter)

    @property
    def bridges(self) -> Sequence[BridgeInfo]:
        """Every bridge, connected or not, in the order of their names."""
        return self._bridges.infos()

    def disconnect(self, client_id: str, reason: ReasonCode = ReasonCode.ADMINISTRATIVE_ACTION, *, drop_session: bool = False) -> bool:
        """Throw a client out; was there one, or a session to drop?"""
        found = self._engine.disconnect(client_id, reason, trio.current_time(), drop_session=drop_session)
        self._server.flush()
        return found

    def ban(self, *, client_id: str | None = None, username: str | None = None, address: str | None = None, until: datetime | None = None) -> int:
        """Refuse whoever all of this fits from now on (0x8A), and throw out who is here (0x98); how many were. Until then, or `unban`, or the
        broker's end; `[[banned]]` of a config is its own. address: or a network. Their sessions stay: `disconnect(..., drop_session=True)`
        ends them. ValueError for none of the three, for what is no address, and for more than 100,000; TypeError for other kinds than these."""
        for name, value, kind in (("client_id", client_id, str), ("username", username, str), ("address", address, str), ("until", until, datetime)):
            if value is not None and not isinstance(value, kind):
                raise TypeError(f"{name} is a {kind.__name__}, and no {type(value).__name__}")
        return self._doorkeeper.ban(Ban(client_id=client_id, username=username, address=address, until=until))

    def unban(self, *, client_id: str | None = None, username: str | None = None, address: str | None = None) -> bool:
        """Take back the `ban` of exactly these; was there one?"""
        return self._doorkeeper.unban(client_id, username, address)

    def bans(self) -> Sequence[BanInfo]:
        """All that hold now: those of `ban`, and those of the config."""
        return self._doorkeeper.bans()

    def drop_clients(self) -> None:
        """Cut every connection without a goodbye, to test how clients come back."""
        self._server.drop_all()

    def forget_permissions(self, username: str | None = None) -> None:
        """Ask `authorize` anew about everything, for one user or for all."""
        self._engine.forget_permissions(username)

    # ---- itself ----

    def reload(self, config: Settings) -> Sequence[str]:
        """Take over what can change while running: limits (under those that `open_broker` was given) and overflow for what comes from
        now on, passwords, access rules, certificates, tokens, bans, allow_anonymous and the small keys of listeners, bridges (those that have
        changed begin anew), sys_interval_s, shutdown_grace_s, log.connections. The files are
        read again. Clients stay connected, with what the new rules allow them. Returns the keys that differ and need a restart.
        ConfigError: nothing was changed. (log.level is the process's, which owns its logging.)
        """
        old = self._config
        plan = self._doorkeeper.read(config)
        limits = limits_of(self._overrides, config, plan.listeners)
        if not self._bridges.fixed:
            check_bridges(config.bridges)
        check_open([*plan.listeners, *self._doorkeeper.adopted], config, self._doorkeeper.hook)
        self._engine.set_overflow(overflow_rules(self._overflow, config))
        self._doorkeeper.use(plan)
        self._server.set_limits(limits, config.limits_for)
        self._sys_topics.set_interval(config.sys_interval_s)
        self._grace_s = config.shutdown_grace_s
        self._log.connections = config.log.connections
        self._server.flush()
        if not self._bridges.fixed:
            self._bridges.use(config.bridges)
        restart = [] if old is None else _needs_restart(old, config)
        if not restart or old is None:
            self._config = config
        return restart

    async def shutdown(self, grace_s: float | None = None) -> None:
        """Stop accepting, end bridges, tell clients goodbye, send what is queued, close all. grace_s: at most so long; None: shutdown_grace_s.

        Idempotent; a second call may shorten the grace. Returns when everything is gone.
        """
        await self._wind_up(self._grace_s if grace_s is None else grace_s)
        await self._server.wait_ended()

    async def _wind_up(self, grace_s: float) -> None:
        """End the bridges, and begin to tell clients goodbye: that also where this is cancelled."""
        ends_at = trio.current_time() + grace_s
        self._server.announce_end()
        try:
            with trio.move_on_at(ends_at):
                await self._bridges.end(grace_s)
        finally:
            self._server.begin_shutdown(ends_at - trio.current_time())

    async def wait_closed(self) -> None:
        """Until somebody calls `shutdown`."""
        await self._server.wait_stopping()

    def statistics(self) -> Mapping[str, int | float]:
        """Counters since the start and gauges of now: the core's, of the listeners, and of the store if there is one."""
        return self._server.statistics()


# ---- what a configuration says ----------------------------------------------------------------------------------------


def limits_of(overrides: LimitOverrides, config: Settings | None, listeners: Sequence[Listener]) -> Limits:
    """Of the file, under the embedder's. ConfigError names all that make no sense, those of listeners and users too."""
    limits = overrides.over(Limits() if config is None else config.limits)
    faults = limit_faults(limits) or override_faults(limits, listeners, () if config is None else config.limits_for)
    if faults:
        raise ConfigError(faults)
    return limits


def overflow_rules(first: Mapping[str, str], config: Settings | None) -> dict[str, str]:
    """The embedder's, then the file's."""
    rules = dict(first)
    for rule in () if config is None else config.overflow:
        rules.setdefault(rule.filter, rule.rule)
    return rules


OPEN_ADVICE: Final = (
    "say who may come in with open_broker(authenticate=...) or a password_file in its Config, or that everybody may with allow_anonymous=True in its "
    "Listener or Config"
)
PAGE_ADVICE: Final = (
    "its page asks nobody for a password; write allow_anonymous = true for this listener itself if everybody may read it, or have its TLS require a "
    "certificate (client_ca, require_certificate)"
)


def check_open(
    listeners: Sequence[Listener | trio.SocketListener], config: Settings | None, authenticate: Authenticate | None, advice: str = OPEN_ADVICE
) -> None:
    """Nobody opens a broker to the world by forgetting something. advice: what to do, in the words of whoever asks. ConfigError."""
    problems = []
    for index, listener in enumerate(listeners):
        own = listener if isinstance(listener, Listener) else None
        if own is not None and own.protocol == "control":
            problems += [(f"listeners[{index}].{key}", text) for key, _, text in (fault.partition(": ") for fault in control_faults(own))]
            continue
        is_page = own is not None and own.protocol == "http"
        if is_locked(own, config) or (authenticate is not None and not is_page):
            continue
        allowed = anonymous_at(own, config, None)
        private = listener.is_private if isinstance(listener, Listener) else adopted_is_private(listener)
        if allowed is False:
            problems.append((f"listeners[{index}]", "allow_anonymous = false, and no authentication is configured: nobody could come in"))
        elif not private and allowed is not True:
            where = listener.url if isinstance(listener, Listener) else "this socket"
            problems.append((
                f"listeners[{index}]",
                f"{where} can be reached from other machines: {PAGE_ADVICE if is_page else advice}",
            ))  # fmt: skip
    if problems:
        raise ConfigError(problems)


def _needs_restart(old: Settings, new: Settings) -> list[str]:
    keys = []
    if [without_live(one) for one in old.listeners] != [without_live(one) for one in new.listeners]:
        keys.append("listeners")
    keys += [f"log.{name}" for name in ("format", "target") if getattr(old.log, name) != getattr(new.log, name)]
    if old.store.path != new.store.path:
        keys.append("store.path")
    return keys

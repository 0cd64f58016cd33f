"""One bridge at work: its client here, its client there, and the two pumps between them, made again whatever happens.

The client here is made first and once, so that its Session is there and queues, though the other broker may never have been reached; then it
is away, behind its gate, whenever the other broker is. Both clients outlive lost connections, and with them the state of QoS 2: only the end
of one of them, by a crash or a refusal, can double a message.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from broker.bridge.condition import Condition
from broker.bridge.far import DELAY_S_MAX, FarEnd, watch_answers
from broker.bridge.filters import Filters
from broker.bridge.gate import Gate, entered
from broker.bridge.mapping import Mapping
from broker.bridge.pump import Pump
from broker.bridge.settings import Bridge, comes_back
from broker.channel import Subscription
from broker.client.client import Client
from broker.client.connect import Attachable
from broker.client.connection import unwrap
from broker.client.reconnect import is_final
from broker.core.message import ApplicationMessage
from broker.errors import BrokerError, ConnectError, ConnectionLost, SubscribeRefused
from broker.net.seldom import Seldom
from broker.wire.packets import MQTT_5, Properties

if TYPE_CHECKING:
    from broker.core.client_state import Outgoing
    from broker.net.server import Server

FINISH_S: Final = 2.0
"""For what is under way at an address that is left for a better one."""

logger = logging.getLogger("broker.bridge")


class BeginAnew(Exception):
    """With new clients, and at once: what is under way has to be looked at again."""


class BridgeLink:
    """One bridge with these settings, until `stop`."""

    def __init__(self, bridge: Bridge, server: Server, condition: Condition) -> None:
        self._bridge = bridge
        self._server = server
        self._condition = condition
        self._far = FarEnd(bridge)
        self._seldom = Seldom(logger)
        self._scope = trio.CancelScope()
        self._stopping = trio.Event()
        self._waiting = trio.CancelScope()
        self._remote: Client | None = None
        self._out: Pump | None = None
        self._is_new = False
        """The Session here is, and what is retained has not been asked for on both sides."""
        self._announcing = False
        """The other broker has not acknowledged that it is told that we are here."""
        self._filters = Filters(bridge)
        self._outward = Mapping([(one.local_filter, one.local_prefix, one.remote_prefix, one.qos) for one in bridge.topics if one.goes_out])
        self._inward = Mapping([(one.remote_filter, one.remote_prefix, one.local_prefix, one.qos) for one in bridge.topics if one.comes_in])

    # ---- its life ----------------------------------------------------------------------------------------------------

    async def run(self, ready: Callable[[], object]) -> None:
        """Until `stop`; ready: called when what comes for it is kept. Whatever goes wrong is logged, and begins anew. Raises nothing but a
        cancellation from outside."""
        self._tell_state(b"0")
        attempts = 0
        with self._scope:
            while not self._stopping.is_set():
                began_at = trio.current_time()
                slowly = False
                try:
                    await self._live(ready)
                except Exception as error:
                    fault = unwrap(error)
                    if isinstance(fault, BeginAnew):
                        attempts = 0
                        continue
                    slowly = isinstance(fault, BrokerError)  # what mends itself does not come here
                    if slowly:
                        self._down(str(fault), slowly)
                    else:
                        self._down(f"a fault of the broker: {type(fault).__name__}")
                        logger.error("bridge %r: ended by a fault of the broker, please report it; it begins anew", self._bridge.name, exc_info=fault)
                ready()
                attempts = 0 if trio.current_time() - began_at > DELAY_S_MAX else attempts + 1
                await self._pause(self._far.delay(attempts, slowly=slowly))
        self._condition.down("it has ended")
        self._tell_state(b"0")

    @property
    def end(self) -> str | Attachable:
        """The one of `Bridge.ends` that it goes to."""
        return self._far.end

    @property
    def is_refused(self) -> bool:
        """A filter was, at the other broker."""
        return self._filters.is_refused

    def stop(self, grace_s: float, *, for_good: bool = False) -> None:
        """Take nothing more, finish what is under way within the grace, say goodbye. for_good: the other broker need not keep its Session."""
        remote = self._remote
        self._stopping.set()
        if remote is not None and remote.connected:
            if for_good and remote.core.version >= MQTT_5:
                remote.core.goodbye.properties = Properties(session_expiry_interval=0)
            self._scope.deadline = min(self._scope.deadline, trio.current_time() + max(0.0, grace_s))
        else:
            self._scope.cancel()

    def cancel(self) -> None:
        """End it without waiting for what is under way."""
        self._stopping.set()
        self._scope.cancel()

    def hurry(self) -> None:
        """If it waits to try again, do it now."""
        self._waiting.cancel()

    async def _pause(self, seconds: float) -> None:
        with trio.move_on_after(seconds) as self._waiting:
            await self._stopping.wait()

    # ---- what is known of it -----------------------------------------------------------------------------------------

    def _up(self) -> None:
        if not self._condition.connected:
            self._condition.up()
            logger.info("bridge %r: connected to %s as %r", self._bridge.name, self._far.address, self._bridge.remote_client_id)
            self._tell_state(b"1")

    async def _wait_up(self, local: Client, remote: Client) -> None:
        """Both ways are open: only then it counts as connected."""
        await local.wait_connected()
        if remote.connected:
            self._up()

    def _down(self, cause: str, slowly: bool = False) -> None:
        was_connected = self._condition.connected
        news = self._condition.down(cause, slowly)
        if was_connected:
            self._tell_state(b"0")
        if news:
            again = "it is tried again every minute or so" if slowly else "it is tried again until it succeeds"
            what = "lost" if was_connected else "no connection"
            logger.log(logging.ERROR if slowly else logging.WARNING, "bridge %r: %s: %s; %s", self._bridge.name, what, cause, again)

    def _judge(self, remote: Client) -> bool:
        """A connection has ended: by one message that the other broker answers so each time?"""
        oldest = None if self._out is None or self._announcing else self._out.oldest
        return self._condition.suspicion.judge(remote.core.reason, remote.core.cause, oldest)

    def _tell_state(self, state: bytes) -> None:
        self._server.engine.publish(ApplicationMessage(self._bridge.state_topic, state, 1, True), trio.current_time())
        self._server.flush()

    # ---- its clients -------------------------------------------------------------------------------------------------

    async def _live(self, ready: Callable[[], object]) -> None:
        """With a client here, from its beginning to its end."""
        gate = Gate(self._server, f"bridge {self._bridge.name}")
        async with AsyncExitStack() as stack:
            local = await stack.enter_async_context(entered(gate, self._bridge.local_client_id))
            stack.callback(gate.end)
            self._is_new = self._is_new or not local.session_present
            session = self._server.engine.state.sessions.get(self._bridge.local_client_id)
            outgoing = await self._filters.ask_here(stack, local, [] if session is None else list(session.subscriptions))
            gate.shut()
            ready()
            await self._meet(local, outgoing, gate)

    async def _meet(self, local: Client, outgoing: Subscription | None, gate: Gate) -> None:
        """Until `stop`, or until the other broker says what it would say again."""
        attempts = 0
        while not self._stopping.is_set():
            self._condition.address = self._far.address
            try:
                async with self._far.dialled() as remote:
                    self._remote = remote
                    await self._carry(local, remote, outgoing, gate)
                return
            except ConnectionLost as error:
                if self._remote is not None:
                    self._judge(self._remote)
                if is_final(error) or not self._far.has_others:
                    raise
                self._far.next()
                raise BeginAnew from None  # each address has a Session of its own, which another client has to ask for
            except ConnectError as error:  # it has not been connected
                slowly = is_final(error)
                self._down(str(error), slowly)
            finally:
                self._remote = self._out = None
                gate.shut()
            if self._far.next():
                attempts += 1
                await self._pause(self._far.delay(attempts, slowly=slowly))

    async def _carry(self, local: Client, remote: Client, outgoing: Subscription | None, gate: Gate) -> None:
        bridge, tally = self._bridge, self._condition.tally
        news = remote.connections()
        pumps: list[Pump] = []
        given: dict[str, bytes] = {}
        standing = trio.Event()  # all subscriptions do
        began_at = 0.0
        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:

            def begin() -> None:
                nonlocal began_at
                began_at = trio.current_time()
                self._condition.suspicion.begin()
                gate.open()
                if bridge.notification_topic is not None:
                    nursery.start_soon(self._announce, remote, bridge.notification_topic)

            async def watch() -> None:
                async for what in news:
                    if what == "lost":
                        gate.shut()
                        self._far.backoff.lasted(trio.current_time() - began_at)
                        self._down(remote.core.cause or "the connection broke")
                        if self._judge(remote):
                            raise BeginAnew
                        if self._stopping.is_set():  # what is under way cannot end without a connection
                            nursery.cancel_scope.cancel()
                    else:
                        begin()
                        if standing.is_set():
                            await self._wait_up(local, remote)

            begin()
            nursery.start_soon(watch)
            nursery.start_soon(watch_answers, remote, self._oldest, bridge.answer_timeout_s, self._count_timeout)
            if outgoing is not None:
                self._out = Pump(bridge, "out", self._outward, remote, self._seldom, tally)
                pumps.append(self._out)
                nursery.start_soon(pumps[-1].run, outgoing)
                if self._is_new:
                    self._out.begin_retained(given)
            await local.wait_connected()
            if self._is_new and self._out is not None and outgoing is not None:
                give = partial(self._give_retained, local, self._out, outgoing)
                if any(comes_back(one, other) for one in bridge.topics for other in bridge.topics):
                    await give()
                else:
                    nursery.start_soon(give)
            incoming = await self._filters.ask_there(stack, local, remote, is_new=self._is_new)
            if incoming is not None:
                pumps.append(Pump(bridge, "in", self._inward, local, self._seldom, tally))
                pumps[-1].echoes = given
                nursery.start_soon(pumps[-1].run, incoming)
                nursery.start_soon(_forget, given, bridge.answer_timeout_s)
            standing.set()
            self._is_new = False
            await self._wait_up(local, remote)
            await self._finish(pumps, better=await self._wait_end())
            nursery.cancel_scope.cancel()

    async def _finish(self, pumps: Sequence[Pump], *, better: bool) -> None:
        """Take nothing more, and wait for what is under way. better: then go to the first address."""
        for pump in pumps:
            pump.stop()
        with trio.move_on_after(FINISH_S if better else math.inf):  # else `stop` has set a deadline
            for pump in pumps:
                await pump.finished.wait()
        if better and not self._stopping.is_set():
            self._down(f"{self._bridge.address} is there again")
            self._far.first()
            raise BeginAnew

    async def _wait_end(self) -> bool:
        """Until `stop`; or True: the first of the addresses is there again, and this is another one."""
        async with trio.open_nursery() as nursery:

            async def seek() -> None:
                await self._far.wait_first_there()
                nursery.cancel_scope.cancel()

            if not self._far.is_first:
                nursery.start_soon(seek)
            await self._stopping.wait()
            nursery.cancel_scope.cancel()
        return not self._stopping.is_set()

    async def _announce(self, remote: Client, topic: str) -> None:
        """Tell the other broker's clients; that it is over its Will tells."""
        able = remote.core.capabilities
        self._announcing = True
        try:
            with trio.move_on_after(self._bridge.answer_timeout_s):
                await remote.publish(topic, b"1", qos=min(1, able.maximum_qos), retain=able.retain)
        except ConnectionLost:
            return
        except BrokerError as error:
            self._seldom.warn("notification", "bridge %r: its notification_topic is not published: %s", self._bridge.name, error)
        self._announcing = False

    def _oldest(self) -> Outgoing | None:
        return None if self._out is None else self._out.oldest_outgoing

    def _count_timeout(self) -> None:
        self._condition.timeouts_count += 1

    async def _give_retained(self, local: Client, pump: Pump, outgoing: Subscription) -> None:
        """What is retained here is asked for. The retained state is asked for last, and tells when all of it is here; but nobody waits for it for
        long.

        Where both brokers have retained something of a topic that is carried both ways, this comes before theirs is asked for; else they would
        exchange them, and differ from then on.
        """
        self._filters.ask_retained(local)
        topic = self._bridge.state_topic
        if topic not in self._filters.here and self._server.engine.retained(topic, trio.current_time()):  # there may be no place for it
            with trio.move_on_after(self._bridge.answer_timeout_s), suppress(SubscribeRefused):
                async with local.subscribe(topic, qos=1) as marks:
                    await marks.receive()
                came = outgoing.statistics()
                await pump.wait_settled(came["received"] - came["dropped"])
        pump.end_retained()


async def _forget(given: dict[str, bytes], seconds: float) -> None:
    """What has not come back by then does not, and the same from somebody else is news."""
    await trio.sleep(seconds)
    given.clear()

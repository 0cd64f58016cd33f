"""All bridges of a broker: each in a task of its own, begun anew when its settings change, and gone when they are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio

from broker.bridge.condition import Condition
from broker.bridge.link import BridgeLink
from broker.bridge.settings import Bridge, BridgeInfo, BridgeTls, check_bridges
from broker.core.message import ApplicationMessage
from broker.net.inside import INSIDE
from broker.net.signatures import signatures

if TYPE_CHECKING:
    from broker.net.server import Server

CHANGE_GRACE_S: Final = 2.0
"""For what is under way in a bridge whose settings have changed."""

logger = logging.getLogger("broker.bridge")


class Bridges:
    """fixed: they are a program's, and a new config says nothing about them. ConfigError names every mistake."""

    def __init__(self, bridges: Sequence[Bridge], *, fixed: bool) -> None:
        if not isinstance(bridges, (list, tuple)):
            raise TypeError("bridges is a list: bridges=[Bridge(...)]")
        check_bridges(bridges)
        self.fixed = fixed
        self._wanted = bridges
        self._keepers: dict[str, Keeper] = {}
        self._server: Server | None = None
        self._nursery: trio.Nursery | None = None
        self._ending = False

    def prepare(self, server: Server) -> None:
        """Before anybody can come in: what is a bridge's is nobody else's, and what was one's of an earlier run goes."""
        self._server = server
        now = trio.current_time()
        for bridge in self._wanted:
            server.engine.reserve(bridge.local_client_id, INSIDE, now)
        for client_id in server.engine.drop_unreserved(INSIDE, now):
            logger.info("%r is no bridge any more: its Session and what waited in it are dropped", client_id)

    async def start(self, nursery: trio.Nursery) -> None:
        """Returns when what comes for them is kept."""
        self._nursery = nursery
        for bridge in self._wanted:
            keeper = self._keepers[bridge.name] = self._new_keeper(bridge)
            await nursery.start(keeper.run)

    def _new_keeper(self, bridge: Bridge) -> Keeper:
        assert self._server is not None
        return Keeper(bridge, self._server, self._keepers)

    def use(self, bridges: Sequence[Bridge]) -> None:
        """From now on these; who has not changed is not touched."""
        if self._nursery is None or self._ending:
            return
        wanted = {bridge.name: bridge for bridge in bridges}
        for name, keeper in self._keepers.items():
            keeper.use(wanted.pop(name, None))
        for bridge in wanted.values():
            keeper = self._keepers[bridge.name] = self._new_keeper(bridge)
            self._nursery.start_soon(keeper.run)

    async def end(self, grace_s: float) -> None:
        """Half of the grace is theirs, for what is under way. Returns when all are gone."""
        self._ending = True
        keepers = list(self._keepers.values())
        for keeper in keepers:
            keeper.end(grace_s / 2)
        for keeper in keepers:
            await keeper.ended.wait()

    def cancel(self) -> None:
        """End them without waiting for anything. Idempotent."""
        self._ending = True
        for keeper in self._keepers.values():
            keeper.cancel()

    def infos(self) -> Sequence[BridgeInfo]:
        """In the order of their names."""
        return [self._keepers[name].info() for name in sorted(self._keepers)]


class Keeper:
    """One name, and whatever bridge it is the name of."""

    def __init__(self, bridge: Bridge, server: Server, keepers: dict[str, Keeper]) -> None:
        self._bridge = bridge
        self._wanted: Bridge | None = bridge
        self._seen = _signatures(bridge)
        self._server = server
        self._keepers = keepers
        self._condition = Condition()
        self._link: BridgeLink | None = None
        self._ending = False
        self.ended = trio.Event()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until it is wanted no more, or the broker ends."""
        ready = _Once(task_status)
        try:
            while self._wanted is not None and not self._ending:
                bridge = self._bridge = self._wanted
                self._seen = _signatures(bridge)
                self._server.engine.reserve(bridge.local_client_id, INSIDE, trio.current_time())
                self._link = BridgeLink(bridge, self._server, self._condition)
                await self._link.run(ready)
            if not self._ending:
                self._forget()  # not in the `finally`: a broker that is cancelled keeps what waits
        finally:
            ready()
            self._keepers.pop(self._bridge.name, None)
            self.ended.set()

    def _forget(self) -> None:
        now = trio.current_time()
        self._server.engine.release(self._bridge.local_client_id, now)
        self._server.engine.publish(ApplicationMessage(self._bridge.state_topic, b"", 0, True), now)
        self._server.flush()

    def use(self, bridge: Bridge | None) -> None:
        """From now on this one; None: none."""
        unchanged = bridge is not None and bridge == self._wanted and _signatures(bridge) == self._seen
        self._wanted = bridge
        if self._link is not None and unchanged and not self._link.is_refused:
            self._link.hurry()  # what kept it from the other broker may have been mended, such as a password
        elif self._link is not None:
            moved = bridge is None or bridge.remote_client_id != self._bridge.remote_client_id or self._link.end not in bridge.ends
            logger.info("bridge %r: %s", self._bridge.name, "it ends" if bridge is None else "it begins anew, with what has changed or was refused")
            self._link.stop(CHANGE_GRACE_S, for_good=moved)

    def end(self, grace_s: float) -> None:
        self._ending = True
        if self._link is not None:
            self._link.stop(grace_s)

    def cancel(self) -> None:
        self._ending = True
        if self._link is not None:
            self._link.cancel()

    def info(self) -> BridgeInfo:
        condition = self._condition
        return BridgeInfo(
            name=self._bridge.name,
            address=condition.address or self._bridge.address,
            client_id=self._bridge.local_client_id,
            connected=condition.connected,
            since_s=condition.since_s,
            cause=condition.cause,
            out_count=condition.tally.carried["out"],
            in_count=condition.tally.carried["in"],
            timeouts_count=condition.timeouts_count,
            dropped=dict(condition.tally.dropped),
        )


class _Once:
    def __init__(self, task_status: trio.TaskStatus[None]) -> None:
        self._task_status: trio.TaskStatus[None] | None = task_status

    def __call__(self) -> None:
        status, self._task_status = self._task_status, None
        if status is not None:
            status.started()


def _signatures(bridge: Bridge) -> dict[str, tuple[int, ...]]:
    """Of its certificate files: a bridge whose files have changed is one that has changed."""
    tls = bridge.tls
    return signatures((tls.ca, tls.certificate, tls.key) if isinstance(tls, BridgeTls) else ())

"""`open_broker`: a broker as a scope. No task, socket or Unix path of it outlives the `async with`, however that ends.

The clients live in a shielded task, so that they are told goodbye even when the scope around is cancelled; the body's end, of
whatever kind, gives that shield its deadline. What the body raises comes out bare, not in the group of our nursery.
"""

from __future__ import annotations

import inspect
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from os import PathLike
from typing import Any

import msgspec
import trio

from broker.bridge.bridges import Bridges
from broker.bridge.settings import Bridge
from broker.core.access import Authorize
from broker.core.allowance import LimitOverrides
from broker.core.engine import Engine
from broker.core.limits import Limits
from broker.errors import ConfigError, StoreError
from broker.hub import Broker, check_open, limits_of, overflow_rules
from broker.messages import Overflow
from broker.metrics.sys_topics import SysTopics
from broker.net.authentication import Authenticate
from broker.net.bound_socket import BoundSocket
from broker.net.committer import Committer
from broker.net.connection import bytes_underway
from broker.net.doorkeeper import Doorkeeper
from broker.net.listen import at_descriptor, bind_all
from broker.net.listener import Listener, parse_listener
from broker.net.observer import ClientLog
from broker.net.server import Server
from broker.net.settings import Settings
from broker.net.store_start import opened

logger = logging.getLogger("broker")


@asynccontextmanager
async def open_broker(
    config: Settings | None = None,
    *,
    listeners: Sequence[Listener | str | trio.SocketListener] | None = None,
    authenticate: Authenticate | None = None,
    authorize: Authorize | None = None,
    overflow: Mapping[str, Overflow] | None = None,
    store: str | PathLike[str] | None = None,
    bridges: Sequence[Bridge] | None = None,
    **limits: int | float,
) -> AsyncIterator[Broker]:
    """A broker that lives as long as the body. Entered when all listeners are bound; else ListenError, and none is left open.

    config: a `Config`. listeners: None means the config's; without a config **none**: in-process only, so that a test never takes port
    1883. authenticate decides instead of password files and certificates' names, authorize instead of ACL files and [[access]]; what
    comes in by `Broker.attach` is asked as others are. A SocketListener becomes the broker's own. overflow: Topic Filter to
    rule, asked before the config's. store: a file for what is to outlive the broker: retained messages, Wills, and the Sessions that outlive their
    connection, with what waits for them; it is made where it is not there, and is this broker's alone. Without it and the config's nothing does. What
    has to last is on disk before it is acknowledged. bridges: to other brokers, instead of the config's; those need not be there. limits: keys of the
    TOML's [limits]. $SYS is published when a config says how often (Config's default: 10 s), not otherwise.

    Left normally: `shutdown(shutdown_grace_s)`. Cancelled, or left by an exception: the same goodbye, with the same deadline; the
    body's own exception comes out bare. ConfigError for a listener that is not loopback or Unix while nothing says who may come in.
    StoreError for a store that cannot be opened, and at the end for one to which the rest could not be written.
    """
    _check_kinds(config, authenticate, authorize, overflow)
    wanted = _listeners(config, listeners)
    unknown = sorted(limits.keys() - set(Limits.__struct_fields__))
    if unknown:
        raise TypeError(f"open_broker() has neither an argument nor a limit of the name {unknown[0]!r}")
    bridging = Bridges(bridges if bridges is not None else () if config is None else config.bridges, fixed=bridges is not None)
    overrides = LimitOverrides(**limits)
    own = [listener for listener in wanted if isinstance(listener, Listener)]
    chosen = limits_of(overrides, config, own)
    check_open(wanted, config, authenticate)
    doorkeeper = Doorkeeper(config, own, authenticate, authorized_by_hook=authorize is not None, fixed=listeners is not None)
    path = store if store is not None or config is None else config.store.path
    log = ClientLog(config is None or config.log.connections)
    engine = Engine(
        chosen,
        new_client_id=_new_client_id,
        asks_authentication=authenticate is not None,
        authorize=authorize,
        on_authorize_error=_log_authorize_error,
        observer=log,
        overflow=overflow_rules(overflow or {}, config),
        bytes_underway=bytes_underway,
        lasting=path is not None,
    )
    committer = None if path is None else Committer(engine, await opened(path))
    sys_topics = SysTopics(0 if config is None else config.sys_interval_s)
    server = Server(engine, chosen, chores=(sys_topics.run, doorkeeper.watch, log.drops.run), committer=committer, tally=log.tally)
    bound: Sequence[BoundSocket] = ()
    unsaved: StoreError | None = None
    failure: BaseException | None = None
    caught: BaseExceptionGroup[BaseException] | None = None
    left_well = False
    try:
        bound = await bind_all(wanted)
        doorkeeper.begin(server, bound)
        server.bound = bound
        server.chores += _pages(bound, bridging)
        server.set_limits(chosen, () if config is None else config.limits_for)
        if committer is not None:
            await committer.restore(server.rules_of, in_thread=authorize is None)
        bridging.prepare(server)
        async with trio.open_nursery() as nursery:
            hub = Broker(server, bound, config, sys_topics, log, doorkeeper, overflow or {}, overrides, bridging)
            try:
                server.chores += _rooms(bound, hub)
                await nursery.start(server.run, bound)
                await bridging.start(nursery)
                yield hub
                await hub._wind_up(hub._grace_s)
            except BaseException as error:
                failure = error
                raise
            finally:
                bridging.cancel()
                # The one place that ends the shield in `run`, whatever the body did.
                server.begin_shutdown(hub._grace_s)
        left_well = True
    except BaseExceptionGroup as group:
        caught = group
    finally:
        for one in bound:
            one.close()
        if committer is not None:
            unsaved = await committer.close()
            if unsaved is not None and not left_well:  # something else comes out
                logger.error("%s", unsaved)
    if caught is not None:
        # Outside of the handler: the group is no context of what it held.
        try:
            raise _bare(caught, failure)
        finally:
            del caught, failure
    if unsaved is not None:
        raise unsaved


def _pages(bound: Sequence[BoundSocket], bridging: Bridges) -> list[Callable[[Server], Awaitable[None]]]:
    if not any(one.listener.protocol == "http" for one in bound):
        return []
    from broker.metrics.page import Page  # late: what it needs is an extra, which `bind_all` has looked for

    return [Page(bridging.infos).run]


def _rooms(bound: Sequence[BoundSocket], hub: Broker) -> list[Callable[[Server], Awaitable[None]]]:
    if not any(one.listener.protocol == "control" for one in bound):
        return []
    from broker.control.room import Room  # late: h11 costs every start something

    return [Room(hub).run]


def _bare(group: BaseExceptionGroup[BaseException], failure: BaseException | None) -> BaseException:
    """What is in our nursery's group, without it, if that is one thing. A group that the body raised itself is one thing."""
    faults = _faults(group)
    if failure is not None and faults == _faults(failure):
        return failure
    if len(faults) == 1:
        return next(iter(faults.values()))
    return group


def _faults(error: BaseException) -> dict[int, BaseException]:
    """Its leaves but for cancellations, by identity: Trio rebuilds the groups around them."""
    if isinstance(error, BaseExceptionGroup):
        return {key: leaf for inner in error.exceptions for key, leaf in _faults(inner).items()}
    return {} if isinstance(error, trio.Cancelled) else {id(error): error}


async def serve(
    config: Settings | None = None,
    *,
    listeners: Sequence[Listener | str | trio.SocketListener] | None = None,
    authenticate: Authenticate | None = None,
    authorize: Authorize | None = None,
    overflow: Mapping[str, Overflow] | None = None,
    store: str | PathLike[str] | None = None,
    bridges: Sequence[Bridge] | None = None,
    task_status: trio.TaskStatus[Broker] = trio.TASK_STATUS_IGNORED,
    **limits: int | float,
) -> None:
    """`open_broker` for `hub = await nursery.start(serve, config)`, until cancelled or `Broker.shutdown`."""
    opened = open_broker(
        config,
        listeners=listeners,
        authenticate=authenticate,
        authorize=authorize,
        overflow=overflow,
        store=store,
        bridges=bridges,
        **limits,
    )
    async with opened as hub:
        task_status.started(hub)
        await hub.wait_closed()
        await hub._server.wait_ended()  # as long as whoever called `shutdown` gave it; the end of this scope would shorten that


def _new_client_id() -> str:
    return f"auto-{secrets.token_hex(10)}"


def _log_authorize_error(error: Exception) -> None:
    logger.error("the authorize rule failed; refused", exc_info=error)


def _check_kinds(config: Any, authenticate: Any, authorize: Any, overflow: Any) -> None:
    if config is not None and not hasattr(config, "listeners"):
        raise TypeError("config must be a Config, as Config.load(PATH) or Config.from_dict({...}) gives")
    if overflow is not None and not isinstance(overflow, Mapping):
        raise TypeError(f"overflow maps Topic Filters to rules, and is no {type(overflow).__name__}")
    if authenticate is not None and not callable(authenticate):
        raise TypeError(f"authenticate must be an async function, not {type(authenticate).__name__}")
    if authorize is not None and (not callable(authorize) or inspect.iscoroutinefunction(authorize)):
        raise TypeError("authorize must be a plain function: it is asked in the middle of a delivery, and cannot wait")


def _listeners(config: Settings | None, listeners: Sequence[Listener | str | trio.SocketListener] | None) -> list[Listener | trio.SocketListener]:
    if isinstance(listeners, (str, Listener, trio.SocketListener)):
        raise TypeError("listeners is a list: listeners=[...]")
    found: list[Listener | trio.SocketListener] = []
    wanted: Sequence[Listener | str | trio.SocketListener] = listeners if listeners is not None else () if config is None else config.listeners
    for index, listener in enumerate(wanted):
        one = parse_listener(listener) if isinstance(listener, str) else listener
        if not isinstance(one, (Listener, trio.SocketListener)):
            raise TypeError(f"a listener is a Listener, a URL or a trio.SocketListener, not {type(one).__name__}")
        if isinstance(one, Listener) and one.descriptor is not None:
            try:
                one = at_descriptor(one, one.descriptor)
            except ValueError as error:
                raise ConfigError([(f"listeners[{index}].descriptor", str(error))]) from None
        if isinstance(one, Listener) and any(one is other for other in found):
            one = msgspec.structs.replace(one)  # two sockets, of which a reload may say different things
        found.append(one)
    return found

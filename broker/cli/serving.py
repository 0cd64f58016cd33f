"""What `broker serve` does once its options are known: limits, logging, listeners, signals."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from types import FrameType
from typing import Final, Literal, NoReturn

import trio

from broker import Broker, Config, ConfigError, Listener, ListenError, StoreError, open_broker
from broker.cli import logs, systemd
from broker.cli.check import problem_lines, refuse_open
from broker.cli.running import DONE, ENDINGS, FAILED, INTERRUPTED, WRONG_USAGE, Failure, interrupted_by, only_cause, report, say
from broker.cli.serve import Order
from broker.config import DEFAULT_LISTENERS, ENV_PREFIX
from broker.net.listener import check
from broker.net.server import tune_collector

PORT: Final = 1883
STORE_VARIABLE: Final = f"{ENV_PREFIX}STORE__PATH"

logger: Final = logging.getLogger("broker")


def serve(order: Order) -> int:
    """Serve until a signal; returns the exit code."""
    try:
        sockets = systemd.inherited(os.environ, os.getpid())
        notifier = systemd.Notifier(os.environ, os.getpid())
        config = load(order, sockets)
        logs.lighten()
        logs.configure("debug" if order.verbose else config.log.level, config.log.format, config.log.target)
        raise_file_limit()
        return trio.run(partial(_serve, order, config, sockets, notifier))
    except Exception as error:
        cause = only_cause(error)
        if isinstance(cause, ConfigError):
            for line in problem_lines(cause):
                say(line)
            return FAILED
        if isinstance(cause, ListenError):
            say(listen_line(cause, order))
            return FAILED
        if isinstance(cause, StoreError):
            say(store_line(cause, order))
            return FAILED
        return report(error)
    except (KeyboardInterrupt, BaseExceptionGroup) as ending:
        return interrupted_by(ending)


def listen_line(error: ListenError, order: Order) -> str:
    """With the flag, or the file, that chooses another address."""
    if error.errno not in (errno.EADDRINUSE, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOENT):
        return str(error)
    unix = error.address.startswith("unix://")
    if order.control is not None and error.address == f"unix://{os.path.abspath(order.control)}":
        return f"{error}: --control PATH"
    if order.config is not None and listeners_of(order) is None:
        return f"{error}; {'unix' if unix else 'port'} of [[listeners]] in {order.config}"
    return f"{error}: {'--unix PATH' if unix else '--port PORT'}"


def store_line(error: StoreError, order: Order) -> str:
    """With what chose that path."""
    if order.store is not None:
        return f"{error} (set by --store)"
    if STORE_VARIABLE in os.environ:
        return f"{error} (set by {STORE_VARIABLE})"
    return f"{error} (set by path of [store] in {order.config})"


def load(order: Order, sockets: Mapping[str, Sequence[int]]) -> Config:
    """The file, with what the command line says instead, and the sockets that systemd handed over. ConfigError."""
    config = Config.load(order.config) if order.config is not None else Config.from_dict({}, env=os.environ)
    listeners = listeners_of(order)
    config = config.replaced(
        listeners=listeners,
        allow_anonymous=True if order.allow_anonymous else None,
        store=None if order.store is None else os.path.abspath(order.store),
    )
    try:
        placed = systemd.placed(config.listeners, sockets, default=config.listeners is DEFAULT_LISTENERS)
        if order.control is not None:
            placed = [*placed, _unix_listener("--control", order.control, "control")]
        config = config.replaced(listeners=placed)
    except ConfigError as error:
        raise ConfigError(error.problems, order.config or "listeners") from None
    refuse_open(config, order.config if listeners is None else None)
    return config


def listeners_of(order: Order) -> list[Listener] | None:
    """The listeners of the command line; None if it names none, and the file's (or the default) stay."""
    if not order.hosts and order.port is None and not order.unix:
        return None
    listeners: list[Listener] = []
    if order.hosts or order.port is not None:
        listeners = [Listener(host=host, port=PORT if order.port is None else order.port) for host in order.hosts or ("localhost",)]
    return listeners + [_unix_listener("--unix", path, "mqtt") for path in order.unix]


def _unix_listener(flag: str, path: str, protocol: Literal["mqtt", "control"]) -> Listener:
    """Failure that names the flag, where a listener's number in the file would mean nothing."""
    listener = Listener(protocol=protocol, unix=os.path.abspath(path))
    for fault in check(listener):
        raise Failure(f"{flag}: {fault.removeprefix('unix: ')}", WRONG_USAGE)
    return listener


def raise_file_limit() -> None:
    """Each client is a file descriptor, and the usual limit of 1,024 is there for programs that use select()."""
    if sys.platform != "win32":  # which has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Some systems (macOS) say that there is no hard limit, and then refuse more than the kernel's own, which is not less than 10,240.
        for count in (65_536, 10_240) if hard == resource.RLIM_INFINITY else (hard,):
            if soft == resource.RLIM_INFINITY or count <= soft:
                return
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
                return


async def _serve(order: Order, config: Config, sockets: Mapping[str, Sequence[int]], notifier: systemd.Notifier) -> int:
    # Signs of life to the very end: the goodbye to clients may take longer than the watchdog waits.
    async with notifier.living(), open_broker(config) as broker, trio.open_nursery() as nursery:
        nursery.start_soon(logs.write_each_turn)
        # Signals first: whoever reads the address may send one at once.
        with trio.open_signal_receiver(*_endings(order)) as signals:
            if sys.platform != "win32" and order.config is not None:
                await nursery.start(_reload_on_hangup, signal.SIGHUP, broker, order, sockets, notifier)
            tune_collector()
            with contextlib.suppress(OSError):  # whoever started us may have stopped reading; the clients have not
                print("\n".join(f"listening on {place}" for place in broker.places), flush=True)
            await notifier.ready(_status(broker))
            await anext(aiter(signals))
        _end_at_once_on_the_next(config)
        await notifier.stopping("clients are told goodbye")
        logger.info("stopping: clients are told goodbye, and get what is queued for them; a second signal ends at once")
        nursery.cancel_scope.cancel()
    return DONE


def _endings(order: Order) -> list[signal.Signals]:
    """The signals that end it. SIGHUP, where there is no file to read again: the terminal is gone; unless `nohup` said that this is no end."""
    endings = list(ENDINGS)
    if sys.platform != "win32":
        # What the receivers put back when they close: a terminal and its shell may both send one, and the goodbye is under way.
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if order.config is None and before != signal.SIG_IGN:
            endings.append(signal.SIGHUP)
    return endings


def _status(broker: Broker) -> str:
    return f"listening on {', '.join(broker.places)}"


def _end_at_once_on_the_next(config: Config) -> None:
    """A plain handler: it acts even when the event loop does not turn. Sockets are the kernel's to close; a Unix path is ours to remove."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        for listener in config.listeners:
            if listener.unix is not None and listener.descriptor is None:
                with contextlib.suppress(OSError):
                    os.unlink(listener.unix)
        os._exit(INTERRUPTED)

    for ending in ENDINGS:
        signal.signal(ending, end)


async def _reload_on_hangup(
    hangup: signal.Signals,
    broker: Broker,
    order: Order,
    sockets: Mapping[str, Sequence[int]],
    notifier: systemd.Notifier,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(hangup) as signals:
        task_status.started()
        async for _ in signals:
            await notifier.reloading()
            logs.reopen()
            fault = _reload(broker, order, sockets)
            await notifier.ready(f"not reloaded: {fault}" if fault else _status(broker))


def _reload(broker: Broker, order: Order, sockets: Mapping[str, Sequence[int]]) -> str | None:
    """A file with a mistake changes nothing; its first one."""
    try:
        config = load(order, sockets)
        restart = broker.reload(config)
    except ConfigError as error:
        for line in problem_lines(error):
            logger.error("not reloaded: %s", line)
        return problem_lines(error)[0]
    except Exception as error:  # a fault of ours: no reason to throw out everybody who is served
        logger.error("not reloaded, by a fault of the broker: please report it", exc_info=error)
        return "a fault of the broker"
    logs.set_level("debug" if order.verbose else config.log.level)
    logger.info("reloaded %s%s", order.config, f"; these keys need a restart: {', '.join(restart)}" if restart else "")
    return None

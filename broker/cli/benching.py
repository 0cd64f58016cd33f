"""What `broker bench` does once its options are known: dial as the options say, show how it goes, write what it came to."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
from dataclasses import replace

import trio

from broker.bench.histogram import Histogram
from broker.bench.load import Load
from broker.bench.plan import Plan
from broker.bench.report import Result, duration, figures, lines
from broker.cli.connecting import authentication_of, tls_context, url_of
from broker.cli.output import Output
from broker.cli.running import DONE, FAILED, explain, only_cause, run_tool, say, timed_out
from broker.cli.settings import Connection
from broker.net.dial import dial, parse_url

VIEW_PERIOD_S = 0.25


def bench(connection: Connection, plan: Plan, *, as_json: bool) -> int:
    """Returns the exit code."""
    _allow_descriptors(plan.publishers_count + plan.subscribers_count + 64)
    run = _Run(connection, plan, as_json)
    return run_tool(run.whole, quiet=connection.quiet, cut_short=run.interrupted)


def _allow_descriptors(count: int) -> None:
    """As many as are needed, if the hard limit lets us; else opening the sockets will say what is missing."""
    if sys.platform != "win32":  # no such limit there
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < count:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard) if hard != resource.RLIM_INFINITY else count, hard))


class _Run:
    """A load and its figures, which are written once: of all of it, or of what there was when it was cut short."""

    def __init__(self, connection: Connection, plan: Plan, as_json: bool) -> None:
        self.connection = connection
        self.plan = plan
        self.as_json = as_json
        self.load: Load | None = None

    def _load(self) -> Load:
        connection = self.connection
        target = parse_url(url_of(connection))
        tls = None if connection.tls is None else tls_context(connection.tls)

        async def dial_one(keeper: trio.Nursery) -> trio.abc.Stream:
            return await dial(target, tls=tls, bind_address=connection.bind_address, keeper=keeper)

        return Load(replace(self.plan, auth=authentication_of(connection)), dial_one, connection.address)

    async def whole(self) -> int:
        quiet, timeout_s = self.connection.quiet, self.connection.timeout_s
        load = self.load = self._load()
        try:
            with trio.move_on_after(timeout_s) as scope:
                async with trio.open_nursery() as nursery:
                    if sys.stderr.isatty() and not quiet:
                        nursery.start_soon(show, load)
                    result = await load.run()
                    nursery.cancel_scope.cancel()
        except Exception as error:
            await self._write_cut_short(explain(only_cause(error))[0])
            raise
        if scope.cancelled_caught:
            await self._write_cut_short(f"by -W after {timeout_s:g} s")
            return timed_out(timeout_s, quiet=quiet)
        return await self._write(result)

    async def interrupted(self, number: int) -> int:
        """128 and the signal's number, as a shell has it."""
        if self.load is not None and self.load.phase != "done":  # else they are being written, to someone who does not read
            await self._write_cut_short(f"by {signal.Signals(number).name}")
        return 128 + number

    async def _write_cut_short(self, why: str) -> None:
        if self.load is not None and self.load.phase != "connecting":  # else there is nothing yet
            await self._write(self.load.result(why))

    async def _write(self, result: Result) -> int:
        text = json.dumps(figures(result)) if self.as_json else "\n".join(lines(result))
        await Output().write(text.encode() + b"\n")
        for promise in result.broken_promises():
            say(f"not kept: {promise}")
        return FAILED if result.broken_promises() else DONE


async def show(load: Load) -> None:
    """A line on stderr that is renewed while the load runs, and gone after it."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(Text("connecting"), console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        before = (trio.current_time(), 0, 0)
        while True:
            await trio.sleep(VIEW_PERIOD_S)
            now = (trio.current_time(), load.published_count, load.received_count)
            live.update(Text(status(load, before, now)), refresh=True)
            before = now
            load.recent = Histogram()


def status(load: Load, before: tuple[float, int, int], now: tuple[float, int, int]) -> str:
    """One line; before and now: (time, published, received)."""
    plan = load.plan
    if load.phase == "connecting":
        wanted = plan.publishers_count + plan.subscribers_count
        return f"connecting: {len(load.publishers) + len(load.subscribers):,} of {wanted:,}"
    seconds = now[0] - before[0]
    end = f" of {plan.warmup_s + plan.duration_s:g}" if math.isfinite(load.stop_at) else ""
    parts = [f"{load.phase}: {now[0] - load.began_at:.1f} s{end}", f"published {(now[1] - before[1]) / seconds:,.0f}/s"]
    parts.append(f"delivered {(now[2] - before[2]) / seconds:,.0f}/s")
    if load.recent.count:
        parts += [f"p{percent} {duration(load.recent.percentile(percent))}" for percent in (50, 99)]
    return "   ".join(parts)

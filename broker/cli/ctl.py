"""`broker ctl`: ask a running broker on this machine, throw out, ban. What it does is in `controlling`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import click

from broker.cli import values

SETTINGS: Final[dict[str, Any]] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Where:
    """Which broker is asked, and whether a program reads the answer."""

    socket: str | None = None
    config: str | None = None
    json: bool = False


def _where(command: F) -> F:
    """These options stand before or behind the name of what is asked."""
    command = click.option("--json", "json", is_flag=True, help="Print the broker's own answer, in JSON.")(command)
    command = click.option("-c", "--config", type=values.path, metavar="FILE", help="The broker's config file, which names its control socket.")(
        command
    )
    return click.option("--socket", type=values.path, metavar="PATH", help="The broker's control socket.  [default: /run/broker/control.sock]")(
        command
    )


def _merged(context: click.Context, socket: str | None, config: str | None, json: bool) -> Where:
    before = context.obj if isinstance(context.obj, Where) else Where()
    if socket is not None or config is not None:
        before = Where(json=before.json)
    where = Where(socket or before.socket, config or before.config, json or before.json)
    if where.socket is not None and where.config is not None:
        raise click.UsageError("--socket, or -c and the file that names it")
    return where


def until(value: str) -> datetime:
    """ "2027-01-31", "2027-01-31T12:00", or how long from now: "90m", "12h", "7d"."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", value)
    try:
        if found is not None:
            return datetime.now(UTC) + timedelta(**{_UNITS[found[2]]: int(found[1])})
        moment = in_local_time(datetime.fromisoformat(value))
    except (ValueError, OverflowError):
        raise click.BadParameter(f"a date and time as 2027-01-31T12:00, or how long as 90m, 12h, 7d, expected, not {values.quoted(value)}") from None
    if moment <= datetime.now(UTC):
        raise click.BadParameter(f"{values.quoted(value)} is over already")
    return moment


def in_local_time(moment: datetime) -> datetime:
    """Of one without a zone that is what it is in. The ends of the calendar, by which people mean "always", stay in their own, or are UTC's: they
    have no time everywhere."""
    try:
        return moment.astimezone()
    except (OverflowError, ValueError, OSError):  # OSError: Windows
        return moment.replace(tzinfo=moment.tzinfo or UTC)


@click.group(
    context_settings=SETTINGS,
    help="Ask a running broker on this machine which clients it has and what waits for them; throw one out; ban. The broker needs a control "
    "listener: 'broker serve --control PATH', or protocol = \"control\" in its file.",
    epilog="Exit codes: 0 done, 1 failed (there is no such client, nobody answers), 2 wrong usage.",
    short_help="Ask a running broker",
    invoke_without_command=True,
)
@_where
@click.pass_context
def command(context: click.Context, socket: str | None, config: str | None, json: bool) -> int:
    context.obj = _merged(context, socket, config, json)
    if context.invoked_subcommand is None:
        from broker.cli.running import WRONG_USAGE, show

        show(context.get_help())
        return WRONG_USAGE
    return 0


def _asks(name: str, text: str) -> Callable[[Callable[..., int]], click.Command]:
    """A command of the group, called with where to ask first."""

    def make(run: Callable[..., int]) -> click.Command:
        @click.pass_context
        def asked(context: click.Context, /, socket: str | None, config: str | None, json: bool, **rest: Any) -> int:
            return run(_merged(context, socket, config, json), **rest)

        asked.__click_params__ = getattr(run, "__click_params__", [])  # type: ignore[attr-defined]
        return command.command(name, context_settings=SETTINGS, help=text, short_help=text.partition(".")[0])(_where(asked))

    return make


_limit = click.option("--limit", type=values.count, metavar="N", help="At most so many.")


@_asks("clients", "List clients: connected or not, with what waits for them. 'broker ctl client ID' says more of one.")
@click.option("--connected/--away", default=None, help="Only those that are connected, or that are not.")
@click.option("--waiting", is_flag=True, help="Only those for whom something waits, or is not acknowledged; the one with most of it first.")
@click.option("-u", "--user", "username", type=values.text, metavar="NAME", help="Only those of this user.")
@click.option("--prefix", type=values.text, metavar="TEXT", help="Only those whose Client Identifier begins so.")
@_limit
def clients(where: Where, connected: bool | None, waiting: bool, username: str | None, prefix: str | None, limit: int | None) -> int:
    from broker.cli import controlling

    here = None if connected is None else str(connected).lower()
    given = {"connected": here, "waiting": "true" if waiting else None, "username": username, "prefix": prefix}
    return controlling.look(where, "clients", given, limit, first=controlling.burden if waiting else None)


@_asks("client", "Show one client, and what it subscribes to.")
@click.argument("client_id", type=values.text, metavar="ID")
def client(where: Where, client_id: str) -> int:
    from broker.cli import controlling

    return controlling.look_at_client(where, client_id)


@_asks("kick", "Throw a client out. It may come again, and its session waits for it.")
@click.option("--drop-session", is_flag=True, help="With its session: subscriptions, and messages that wait for it.")
@click.argument("client_id", type=values.text, metavar="ID")
def kick(where: Where, client_id: str, drop_session: bool) -> int:
    from broker.cli import controlling

    return controlling.kick(where, client_id, drop_session=drop_session)


def _whom(run: F) -> F:
    run = click.option("--address", type=values.text, metavar="ADDRESS", help="An address, or a network as 192.0.2.0/24.")(run)
    run = click.option("-u", "--user", "username", type=values.text, metavar="NAME", help="A user name.")(run)
    return click.option("-i", "--client", "--id", "client_id", type=values.text, metavar="ID", help="A Client Identifier.")(run)


def _named(client_id: str | None, username: str | None, address: str | None) -> dict[str, str]:
    given = {"client_id": client_id, "username": username, "address": address}
    found = {name: value for name, value in given.items() if value is not None}
    if not found:
        raise click.UsageError("say whom: --client ID, --user NAME or --address ADDRESS; of several all must fit")
    return found


@_asks("ban", "Ban who fits all that is given, and throw out who is here; until then, or 'unban', or the broker's end. For longer: [[banned]].")
@_whom
@click.option("--until", "until", type=until, metavar="WHEN", help="A date and time as 2027-01-31T12:00, or how long: 90m, 12h, 7d.")
def ban(where: Where, client_id: str | None, username: str | None, address: str | None, until: datetime | None) -> int:
    from broker.cli import controlling

    return controlling.ban(where, _named(client_id, username, address), until)


@_asks("unban", "Take back the ban of exactly these.")
@_whom
def unban(where: Where, client_id: str | None, username: str | None, address: str | None) -> int:
    from broker.cli import controlling

    return controlling.unban(where, _named(client_id, username, address))


@_asks("bans", "List bans, those of the config too.")
@_limit
def bans(where: Where, limit: int | None) -> int:
    from broker.cli import controlling

    return controlling.look(where, "bans", {}, limit)


@_asks("bridges", "List bridges, and how they are.")
def bridges(where: Where) -> int:
    from broker.cli import controlling

    return controlling.look(where, "bridges", {})


@_asks("subscribers", "List the subscriptions by which a message on TOPIC would be sent. Of a share group one member gets it.")
@_limit
@click.argument("topic", callback=lambda context, parameter, value: values.checked_topic(value))
def subscribers(where: Where, topic: str, limit: int | None) -> int:
    from broker.cli import controlling

    return controlling.look(where, "subscribers", {"topic": topic}, limit)


@_asks("retained", "List retained messages that match FILTER (all but $SYS, unless given): topic and size, not what is in them.")
@_limit
@click.argument("filter", required=False, default="#", callback=lambda context, parameter, value: values.checked_filter(value))
def retained(where: Where, filter: str, limit: int | None) -> int:
    from broker.cli import controlling

    return controlling.look(where, "retained", {"filter": filter}, limit)


@_asks("statistics", "Print every number that is counted.")
def statistics(where: Where) -> int:
    from broker.cli import controlling

    return controlling.statistics(where)

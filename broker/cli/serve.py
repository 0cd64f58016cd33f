"""`broker serve`: where to listen and what to allow. What it does is in `serving`."""

from __future__ import annotations

from dataclasses import dataclass

import click

from broker.cli import values


@dataclass(frozen=True)
class Order:
    """The command line of serve. Any of hosts, port and unix replaces all listeners of the file; control is one more."""

    config: str | None
    hosts: tuple[str, ...]
    port: int | None
    unix: tuple[str, ...]
    allow_anonymous: bool
    verbose: bool
    store: str | None = None
    control: str | None = None


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="Start a broker. It listens on this machine only (127.0.0.1, and ::1 where there is IPv6), port 1883, unless told otherwise.",
    epilog="SIGINT and SIGTERM end it with a goodbye to its clients, and exit code 0; a second one ends it at once, with 130. "
    "SIGHUP reads the config file again; without one it ends the broker, as SIGTERM does.",
    short_help="Start a broker",
)
@click.option("-p", "--port", type=values.whole(0, 65_535), metavar="PORT", help="0 = a free one, which is printed.  [default: 1883]")
@click.option(
    "--host",
    "hosts",
    type=values.host,
    multiple=True,
    metavar="HOST",
    help="Listen on this address; may be repeated. '*' = all of them.  [default: localhost]",
)
@click.option("--unix", type=values.path, multiple=True, metavar="PATH", help="Listen on this Unix socket; may be repeated.")
@click.option("-c", "--config", type=values.path, metavar="FILE", help="Read this file (TOML); 'broker check FILE' tells what is wrong with one.")
@click.option(
    "--store",
    type=values.path,
    metavar="PATH",
    help="Keep sessions, retained messages and Wills in this file.  [default: none; a restart forgets them]",
)
@click.option("--control", type=values.path, metavar="PATH", help="Open a Unix socket for 'broker ctl --socket PATH': for this user (and root) only.")
@click.option("--allow-anonymous", is_flag=True, help="Let in clients without a user name, wherever they come from.")
@click.option("-v", "--verbose", is_flag=True, help="Log everything there is to log.")
def command(
    port: int | None,
    hosts: tuple[str, ...],
    unix: tuple[str, ...],
    config: str | None,
    store: str | None,
    control: str | None,
    allow_anonymous: bool,
    verbose: bool,
) -> int:
    from broker.cli.serving import serve

    return serve(Order(config, hosts, port, unix, allow_anonymous, verbose, store, control))

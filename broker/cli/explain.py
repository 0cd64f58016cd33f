"""`broker explain`: what the access rules of a config file say to one question, and which line says it. Nothing is started."""

from __future__ import annotations

import click

from broker.auth.acl import AccessRules, load_rules, table_rules
from broker.cli import values
from broker.cli.check import problem_lines
from broker.cli.running import DONE, FAILED, say, show
from broker.config import Config
from broker.core.access import Action
from broker.core.mount import mounted_filter
from broker.errors import ConfigError
from broker.net.doors import anonymous_at
from broker.wire.topics import split_shared, topic_filter_fault, topic_name_fault


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="Say whether a client may publish to TOPIC, receive from it, or subscribe to it, and which rule decides.",
    epilog="Exit codes: 0 allowed, 1 refused (or the file has mistakes), 2 wrong usage.",
    short_help="Say who may do what, and by which rule",
)
@click.option("-c", "--config", "file", type=values.path, required=True, metavar="FILE", help="The broker's config file.")
@click.option("-u", "--user", metavar="NAME", help="The user name.  [default: none, an anonymous client]")
@click.option("-i", "--client", "--id", "client_id", default="", metavar="ID", help="The Client Identifier.")
@click.option(
    "-l", "--listener", "index", type=int, metavar="N", help="Which listener, from 0 on: with its rules, and its mount_point put before TOPIC."
)
@click.argument("action", type=click.Choice(["publish", "receive", "subscribe"]))
@click.argument("topic")
def command(file: str, user: str | None, client_id: str, index: int | None, action: Action, topic: str) -> int:
    fault = topic_filter_fault(topic) if action == "subscribe" else topic_name_fault(topic)
    if fault is not None:
        raise click.UsageError(fault)
    try:
        config = Config.load(file)
        rules = _rules(config, file, index)
        mount_point = "" if index is None else config.listeners[index].mount_point
    except ConfigError as error:
        for line in problem_lines(error):
            say(line)
        return FAILED
    if mount_point:  # the topic as its clients call it; rules have the whole
        topic = mounted_filter(mount_point, topic) if action == "subscribe" else mount_point + topic
    who = ("an anonymous client" if user is None else f"user {user!r}") + (f" ({client_id!r})" if client_id else "")
    if user is None and _anonymous(config, index) is False:
        show(f"refused: {who} cannot come in: a user name is asked for")
        return FAILED
    if rules is None:
        show(f"allowed: {who} may {action} {topic!r}: there are no access rules")
        return DONE
    decision = rules.decide(user, client_id, action, topic)
    why = decision.cause if decision.rule is None else f"{decision.rule.place}: {decision.rule.text}"
    show(f"{'allowed' if decision.allowed else 'refused'}: {who} {'may' if decision.allowed else 'may not'} {action} {topic!r}: {why}")
    if action == "subscribe" and decision.allowed:
        plain = split_shared(topic)[1]
        if "+" not in plain and "#" not in plain and not rules.decide(user, client_id, "receive", plain).allowed:
            show(f"but nothing will come: the same client may not receive {plain!r}")
    return DONE if decision.allowed else FAILED


def _rules(config: Config, file: str, index: int | None) -> AccessRules | None:
    """What decides at this listener; None if nothing does."""
    if index is not None:
        if not 0 <= index < len(config.listeners):
            raise click.UsageError(f"--listener: expected 0 to {len(config.listeners) - 1}, got {index}")
        if not config.listeners[index].speaks_mqtt:
            raise click.UsageError(f'--listener: listeners[{index}] has protocol = "{config.listeners[index].protocol}", where no MQTT is spoken')
        own = config.listeners[index].acl_file
        if own is not None:
            return AccessRules(load_rules(own))
    if config.acl_file is None and not config.access:
        return None
    rules = [] if config.acl_file is None else load_rules(config.acl_file)
    return AccessRules([*rules, *table_rules([(rule.user, rule.topic, rule.may) for rule in config.access], file)])


def _anonymous(config: Config, index: int | None) -> bool | None:
    return anonymous_at(None if index is None else config.listeners[index], config, None)

"""Who subscribed to one Topic Filter: a session, several, or the members of shared groups.

Most filters have one subscriber with the same options as all its others. So a filter's entry is that subscription itself, and one
object stands for all the filters that a session subscribed to alike: a million filters of a hundred clients are a hundred objects,
which stay in the processor's cache (239 to about 170 bytes a filter, and no object to make for each).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from broker.core.mount import is_hidden

if TYPE_CHECKING:
    from broker.core.session import Session


class Subscription:
    """What a session asked for with its Topic Filters, or some of them (MQTT 5.0, 3.8.3.1)."""

    __slots__ = ("identifier", "no_local", "plain", "qos", "retain_as_published", "session", "wild")

    def __init__(self, session: Session, qos: int, no_local: bool, retain_as_published: bool, identifier: int, wild: bool = False) -> None:
        self.session = session
        self.qos = qos
        self.no_local = no_local
        self.retain_as_published = retain_as_published
        self.identifier = identifier
        """Subscription Identifier; 0 when it has none."""
        self.plain = not no_local and not identifier and session.sink is None and not session.mount_point
        """A QoS 0 message can go to this session as it came, whoever published it."""
        self.wild = wild
        """Behind a mount point, its filters begin with a wildcard."""

    def matches(self, topic: str) -> bool:
        """Does it, for the client, that one of its filters matches by its full name?"""
        return not self.wild or not is_hidden(self.session.mount_point, topic)


class SharedGroup:
    """The members of one `$share/{name}/{filter}`; each message goes to one of them, taken in turn."""

    __slots__ = ("_positions", "_turn", "members", "name", "steps_count")

    def __init__(self, name: str) -> None:
        self.name = name
        self.members: list[Subscription] = []
        self._positions: dict[Session, int] = {}
        self._turn = 0
        self.steps_count = 0
        """Members that the last `choose` looked at, for the budget of the verb that asked."""

    def join(self, subscription: Subscription) -> None:
        """Once for each session [MQTT5-3.8.4-3]."""
        position = self._positions.setdefault(subscription.session, len(self.members))
        if position == len(self.members):
            self.members.append(subscription)
        else:
            self.members[position] = subscription

    def has(self, session: Session) -> bool:
        """Is it a member?"""
        return session in self._positions

    def leave(self, session: Session) -> None:
        """The last one takes the place, so that a group of a hundred thousand does not cost the square of it to end."""
        position = self._positions.pop(session)
        last = self.members.pop()
        if position < len(self.members):
            self.members[position] = last
            self._positions[last.session] = position

    def choose(self, qos: int, topic: str) -> Subscription | None:
        """The next member that may have a message and can take it now, else one that can later; None when nobody can.

        A connected member with room comes first, then a connected one, then (at QoS 1 and 2) one that is away: a group
        that delivers to the dead or the stuck while others wait is what users of other brokers complain about.
        """
        members = self.members
        count = len(members)
        second: Subscription | None = None
        third: Subscription | None = None
        for step in range(count):
            position = (self._turn + step) % count
            member = members[position]
            session = member.session
            if (session.mount_point or not session.access.allows_all) and not (session.may_receive(topic) and member.matches(topic)):
                continue
            if session.link is not None or session.sink is not None:
                if session.has_room(min(qos, member.qos)):
                    self._turn = position + 1
                    self.steps_count = step + 1
                    return member
                if second is None:
                    second = member
            elif third is None and min(qos, member.qos) > 0:
                third = member
        self._turn += 1
        self.steps_count = count
        return second if second is not None else third


class FilterEntry:
    """The subscribers of one filter, where there are several or a shared group. (A single one stands for itself, to save memory.)"""

    __slots__ = ("groups", "subscriptions")

    def __init__(self) -> None:
        self.subscriptions: dict[Session, Subscription] = {}
        self.groups: dict[str, SharedGroup] = {}


Entry: TypeAlias = Subscription | FilterEntry


def with_subscriber(entry: Entry | None, subscription: Subscription, group: str | None) -> Entry:
    """The entry when this subscription, of a shared group or of none, has come to it, or taken the place of the same session's."""
    if group is None and (entry is None or (isinstance(entry, Subscription) and entry.session is subscription.session)):
        return subscription
    if entry is None:
        entry = FilterEntry()
    elif isinstance(entry, Subscription):
        single = entry
        entry = FilterEntry()
        entry.subscriptions[single.session] = single
    if group is None:
        entry.subscriptions[subscription.session] = subscription
        return entry
    shared = entry.groups.get(group)
    if shared is None:
        shared = entry.groups[group] = SharedGroup(group)
    shared.join(subscription)
    return entry


def without_subscriber(entry: Entry, subscription: Subscription, group: str | None) -> Entry | None:
    """The entry when it has left, None if nobody is left."""
    if isinstance(entry, Subscription):
        return None
    if group is None:
        del entry.subscriptions[subscription.session]
    else:
        shared = entry.groups[group]
        shared.leave(subscription.session)
        if not shared.members:
            del entry.groups[group]
    if entry.groups:
        return entry
    if len(entry.subscriptions) == 1:
        return next(iter(entry.subscriptions.values()))
    return entry if entry.subscriptions else None


def by_filter(filter: str, entry: Entry) -> list[tuple[str, list[Subscription]]]:
    """Who is there, by the Topic Filter as it was subscribed, `$share/...` included."""
    if isinstance(entry, Subscription):
        return [(filter, [entry])]
    found = [(filter, list(entry.subscriptions.values()))] if entry.subscriptions else []
    return found + [(f"$share/{group.name}/{filter}", list(group.members)) for group in entry.groups.values()]

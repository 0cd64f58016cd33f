"""Who gets what: Topic Filters to subscriptions, and for topics that were published to, the resolved route.

Literal filters are found by one dict look-up, wildcards by a trie over levels, so that the cost of a topic does not grow
with the filters that do not match it. A *route* keeps the answer for a topic. It holds sessions, not connections, so a
reconnect changes nothing; a literal subscription makes one route stale, a wildcard one those of its first level, and
only filters that begin with a wildcard touch all. (One version for everything made strangers' subscriptions cost every
publisher a new look-up: 623 against 3,116 ns a message under churn.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from broker.wire.topics import split_shared

if TYPE_CHECKING:
    from broker.core.session import Session


KEPT_TOPIC_LENGTH_MAX: Final = 1024
"""Longer topics are resolved for each message: a hundred thousand of 64 KiB would be 6 GB."""
TARGETS_PER_ROUTE_COUNT: Final = 16
"""On the average, of the routes that are kept."""


class Subscription:
    """One session's Topic Filter with its options (MQTT 5.0, 3.8.3.1). `filter` is as subscribed, `$share/...` included."""

    __slots__ = ("filter", "identifier", "no_local", "qos", "retain_as_published", "session")

    def __init__(self, session: Session, filter: str, qos: int, no_local: bool, retain_as_published: bool, identifier: int) -> None:
        self.session = session
        self.filter = filter
        self.qos = qos
        self.no_local = no_local
        self.retain_as_published = retain_as_published
        self.identifier = identifier
        """Subscription Identifier; 0 when it has none."""


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
            if (session.mount_point or not session.access.allows_all) and not session.may_receive(topic):
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


Entry = Subscription | FilterEntry


class _Node:
    """One level of the wildcard trie: the entries of the filter that ends here, and of the one that ends here with `#`."""

    __slots__ = ("children", "entry", "multi", "plus")

    def __init__(self) -> None:
        self.children: dict[str, _Node] | None = None
        self.plus: _Node | None = None
        self.entry: Entry | None = None
        self.multi: Entry | None = None

    def is_empty(self) -> bool:
        return not self.children and self.plus is None and self.entry is None and self.multi is None


class Target:
    """One session on a route: its matching subscriptions merged, so that it gets one copy [MQTT5-3.3.4-2, -4]."""

    __slots__ = ("identifiers", "qos", "retain_as_published", "session", "subscriptions")

    def __init__(self, session: Session, subscriptions: list[Subscription]) -> None:
        self.session = session
        self.subscriptions = subscriptions
        self.qos = max(subscription.qos for subscription in subscriptions)
        self.retain_as_published = any(subscription.retain_as_published for subscription in subscriptions)
        self.identifiers = tuple(subscription.identifier for subscription in subscriptions if subscription.identifier)

    def without_local(self) -> Target | None:
        """This target for a message that the session itself published [MQTT5-3.8.3-3]."""
        others = [subscription for subscription in self.subscriptions if not subscription.no_local]
        if len(others) == len(self.subscriptions):
            return self
        return Target(self.session, others) if others else None


class _Bucket:
    """Counts the changes of wildcard filters that share a first level."""

    __slots__ = ("routes_count", "version")

    def __init__(self) -> None:
        self.version = 0
        self.routes_count = 0


_NO_BUCKET: Final = _Bucket()
"""Of routes that are not kept; nothing ever touches it."""


class Route:
    """Where messages of one topic go. Valid while `TopicTable.is_fresh` says so."""

    __slots__ = ("any_no_local", "bucket", "bucket_version", "groups", "plain", "stale", "targets", "topic", "version")

    def __init__(self, topic: str, bucket: _Bucket) -> None:
        self.topic = topic
        self.bucket = bucket
        self.bucket_version = 0
        self.version = 0
        self.stale = True
        self.targets: list[Target] = []
        self.groups: list[SharedGroup] = []
        self.any_no_local = False
        self.plain = False
        """No group, No Local, identifier, internal session or mount point: a QoS 0 frame can go to all targets as it came."""


class TopicTable:
    def __init__(self, routes_count_max: int) -> None:
        self._routes_count_max = routes_count_max
        self._targets_count_max = routes_count_max * TARGETS_PER_ROUTE_COUNT
        self._targets_count = 0
        """Of all routes that are kept: a thousand subscribers of everything would else stand on every one of them."""
        self._literals: dict[str, Entry] = {}
        self._root = _Node()
        self._routes: dict[str, Route] = {}
        self._route_topics: deque[str] = deque()
        """In the order of coming: to find a dict's first key costs the more the more were taken from its front."""
        self._buckets: dict[str, _Bucket] = {}
        self.remembered: dict[bytes, Route] = {}
        """Topics by their bytes as they stand in a PUBLISH, of those who may publish everything: valid, and not of $SYS."""
        self._version = 0
        self.subscriptions_count = 0
        self.shared_count = 0

    # ---- changes ----

    def add(self, subscription: Subscription) -> Subscription | None:
        """Put it in the place of the same session's one with the same filter, which is returned [MQTT5-3.8.4-3]."""
        plain = filter = subscription.filter
        group: str | None = None
        if filter.startswith("$"):
            group, plain = split_shared(filter)
        mine = subscription.session.subscriptions
        old = mine.get(filter)
        mine[filter] = subscription
        if "+" in plain or "#" in plain:
            node = self._node(plain)
            if plain.endswith("#"):
                node.multi = _with(node.multi, subscription, group)
            else:
                node.entry = _with(node.entry, subscription, group)
            self._touch_wildcard(plain)
        else:
            entry = self._literals.get(plain)
            self._literals[plain] = subscription if entry is None and group is None else _with(entry, subscription, group)
            self._touch_literal(plain)
        if old is None:
            self.subscriptions_count += 1
            if group is not None:
                self.shared_count += 1
        return old

    def remove(self, session: Session, filter: str) -> bool:
        """Was there a subscription of this session with exactly this filter? It is gone [MQTT5-3.10.4-1]."""
        subscription = session.subscriptions.pop(filter, None)
        if subscription is None:
            return False
        group, plain = split_shared(filter)
        if "+" in plain or "#" in plain:
            self._remove_wildcard(plain, subscription, group)
            self._touch_wildcard(plain)
        else:
            left = _without(self._literals[plain], subscription, group)
            if left is None:
                del self._literals[plain]
            else:
                self._literals[plain] = left
            self._touch_literal(plain)
        self.subscriptions_count -= 1
        if group is not None:
            self.shared_count -= 1
        return True

    def remember(self, key: bytes, route: Route) -> None:
        if len(self.remembered) >= self._routes_count_max:
            self.remembered.clear()
        self.remembered[key] = route

    def forget_routes(self) -> None:
        """Something that routes depend on has changed for all topics, such as who may receive what."""
        self._version += 1

    def forget_routes_to(self, session: Session) -> None:
        """What this one may receive has changed."""
        for filter in session.subscriptions:
            plain = split_shared(filter)[1]
            if "+" in plain or "#" in plain:
                self._touch_wildcard(plain)
            else:
                self._touch_literal(plain)

    # ---- look-ups ----

    def route(self, topic: str) -> Route:
        """The fresh route of a topic; kept for the next message, the oldest ones giving way.

        One that leads to nobody is not kept: a million retained topics that are only looked up would cost as much again.
        """
        route = self._routes.get(topic)
        if route is None:
            route = Route(topic, _NO_BUCKET)
            self._resolve(route)
            if len(topic) > KEPT_TOPIC_LENGTH_MAX or not (route.targets or route.groups):
                self._targets_count -= len(route.targets)
                route.stale = True  # nothing touches it: whoever keeps it must look again
                return route
            while self._routes and (len(self._routes) >= self._routes_count_max or self._targets_count > self._targets_count_max):
                self._evict()
            first = topic.partition("/")[0]
            bucket = self._buckets.get(first)
            if bucket is None:
                bucket = self._buckets[first] = _Bucket()
            bucket.routes_count += 1
            route.bucket = bucket
            route.bucket_version = bucket.version
            self._routes[topic] = route
            self._route_topics.append(topic)
        elif not self.is_fresh(route):
            self._resolve(route)
        return route

    def may_be_wanted(self, topic: str) -> bool:
        """False: no filter matches it. Cheap, and not the last word: another filter under its first level is enough for a True."""
        root = self._root
        if topic in self._literals or root.multi is not None or root.plus is not None:
            return True
        return root.children is not None and topic.partition("/")[0] in root.children

    def is_fresh(self, route: Route) -> bool:
        return not route.stale and route.bucket_version == route.bucket.version and route.version == self._version

    def entries(self, topic: str) -> Iterator[Entry]:
        """The entries of every filter that matches a topic [MQTT5-4.7.3-4], by the rule for `$` [MQTT5-4.7.2-1]."""
        literal = self._literals.get(topic)
        if literal is not None:
            yield literal
        root = self._root
        if root.is_empty():
            return
        levels = topic.split("/")
        nodes = [root]
        hidden = topic.startswith("$")
        for depth, level in enumerate(levels):
            below: list[_Node] = []
            for node in nodes:
                skip_wildcards = hidden and depth == 0
                if node.multi is not None and not skip_wildcards:
                    yield node.multi
                if node.children is not None:
                    child = node.children.get(level)
                    if child is not None:
                        below.append(child)
                if node.plus is not None and not skip_wildcards:
                    below.append(node.plus)
            if not below:
                return
            nodes = below
        for node in nodes:
            if node.entry is not None:
                yield node.entry
            if node.multi is not None:  # "a/#" matches "a" too
                yield node.multi

    # ---- inside ----

    def _resolve(self, route: Route) -> None:
        route.stale = False
        route.bucket_version = route.bucket.version
        route.version = self._version
        entries = list(self.entries(route.topic))
        if not entries and not route.targets and not route.groups:
            route.any_no_local = False  # it may have been thrown out of the table, and lost its targets so
            route.plain = True
            return
        by_session: dict[Session, list[Subscription]] = {}
        groups: list[SharedGroup] = []
        for entry in entries:
            if isinstance(entry, Subscription):
                by_session.setdefault(entry.session, []).append(entry)
            else:
                for subscription in entry.subscriptions.values():
                    by_session.setdefault(subscription.session, []).append(subscription)
                groups.extend(entry.groups.values())
        self._targets_count -= len(route.targets)
        route.targets = [Target(session, matching) for session, matching in by_session.items() if session.may_receive(route.topic)]
        self._targets_count += len(route.targets)
        route.groups = groups
        route.any_no_local = any(subscription.no_local for target in route.targets for subscription in target.subscriptions)
        route.plain = (
            not groups
            and not route.any_no_local
            and all(not target.identifiers and target.session.sink is None and not target.session.mount_point for target in route.targets)
        )

    def _touch_literal(self, plain: str) -> None:
        route = self._routes.get(plain)
        if route is not None:
            self._retire(route)

    def _touch_wildcard(self, plain: str) -> None:
        first = plain.partition("/")[0]
        if first in ("+", "#"):
            self._version += 1
        else:
            bucket = self._buckets.get(first)
            if bucket is not None:
                bucket.version += 1

    def _evict(self) -> None:
        oldest = self._route_topics.popleft()
        route = self._routes.pop(oldest)
        self._retire(route)  # whoever still holds it must look again: nothing touches it any more
        route.bucket.routes_count -= 1
        if route.bucket.routes_count == 0:
            del self._buckets[oldest.partition("/")[0]]

    def _retire(self, route: Route) -> None:
        """It holds no sessions while nobody publishes there, or those that ended would stay."""
        route.stale = True
        self._targets_count -= len(route.targets)
        route.targets = []
        route.groups = []

    def _node(self, plain: str) -> _Node:
        """The node at which a wildcard filter ends, made if need be; without the last level where that is `#`."""
        node = self._root
        levels = plain.split("/")
        if levels[-1] == "#":
            levels.pop()
        for level in levels:
            if level == "+":
                if node.plus is None:
                    node.plus = _Node()
                node = node.plus
            else:
                if node.children is None:
                    node.children = {}
                child = node.children.get(level)
                if child is None:
                    child = node.children[level] = _Node()
                node = child
        return node

    def _remove_wildcard(self, plain: str, subscription: Subscription, group: str | None) -> None:
        levels = plain.split("/")
        is_multi = levels[-1] == "#"
        if is_multi:
            levels.pop()
        path = [self._root]
        for level in levels:
            node = path[-1]
            child = node.plus if level == "+" else (node.children or {}).get(level)
            assert child is not None
            path.append(child)
        last = path[-1]
        if is_multi:
            assert last.multi is not None
            last.multi = _without(last.multi, subscription, group)
        else:
            assert last.entry is not None
            last.entry = _without(last.entry, subscription, group)
        for depth in range(len(levels) - 1, -1, -1):
            if not path[depth + 1].is_empty():
                break
            parent, level = path[depth], levels[depth]
            if level == "+":
                parent.plus = None
            else:
                assert parent.children is not None
                del parent.children[level]
                if not parent.children:
                    parent.children = None


def _with(entry: Entry | None, subscription: Subscription, group: str | None) -> Entry:
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


def _without(entry: Entry, subscription: Subscription, group: str | None) -> Entry | None:
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

"""Who gets what: Topic Filters to subscriptions, and for topics that were published to, the resolved route.

Literal filters are found by one dict look-up, wildcards by a trie over levels (`core.filter_trie`). A *route* keeps
the answer for a topic that was published to before. It holds sessions, not connections, so a reconnect changes
nothing; a literal subscription makes one route stale, a wildcard one those of its first level, and only filters that
begin with a wildcard touch all. (One version for everything made strangers' subscriptions cost every publisher a new
look-up: 623 against 3,116 ns a message under churn.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from broker.core.filter_trie import FilterCursor, FilterTrie
from broker.core.subscription import Entry, SharedGroup, Subscription, with_subscriber, without_subscriber
from broker.wire.topics import split_shared

if TYPE_CHECKING:
    from broker.core.session import Session


LONG_LENGTH: Final = 1024
DEEP_LEVELS: Final = 16
KEPT_TOPIC_LENGTH_MAX: Final = 1024
"""Longer topics are resolved for each message: a hundred thousand of 64 KiB would be 6 GB."""
SIZE_OF_ROUTE: Final = 16
"""On the average, of the routes that are kept."""
STEPS_PER_WORK_SHIFT: Final = 3
"""Eight steps of a look-up (0.1 µs each) count for one delivery."""


def more_places(filter: str) -> int:
    """How many subscriptions a filter counts for beside one: as many as it has KiB and, if it has a wildcard, sixteens of levels, each of which is a
    node of the trie. Ten thousand of the longest and deepest would else be 700 MB, of one client."""
    levels = filter.count("/")
    deep = levels // DEEP_LEVELS if levels >= DEEP_LEVELS and ("+" in filter or "#" in filter) else 0
    return len(filter) // LONG_LENGTH + deep


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

    __slots__ = ("any_no_local", "bucket", "bucket_version", "groups", "plain", "size", "stale", "targets", "topic", "version")

    def __init__(self, topic: str, bucket: _Bucket) -> None:
        self.topic = topic
        self.bucket = bucket
        self.bucket_version = 0
        self.version = 0
        self.stale = True
        self.targets: list[Target] = []
        self.groups: list[SharedGroup] = []
        self.size = 0
        """Subscriptions and groups that stand on it."""
        self.any_no_local = False
        self.plain = False
        """No group, No Local, identifier, internal session or mount point: a QoS 0 frame can go to all targets as it came."""


class TopicTable:
    """spend: told how much of a turn's work a look-up was, where it was any: filters of one client can match a topic in ten thousand ways."""

    def __init__(self, routes_count_max: int, spend: Callable[[int], None]) -> None:
        self.keep_routes(routes_count_max)
        self._spend = spend
        self._routes_size = 0
        """Of all routes that are kept: a thousand subscribers of everything, or ten thousand filters of one, would else stand on each."""
        self.literals: dict[str, Entry] = {}
        self.wildcards = FilterTrie()
        self._routes: dict[str, Route] = {}
        self._route_topics: deque[str] = deque()
        """In the order of coming: to find a dict's first key costs the more the more were taken from its front."""
        self._buckets: dict[str, _Bucket] = {}
        self.remembered: dict[bytes, Route] = {}
        """Topics by their bytes as they stand in a PUBLISH, of those who may publish everything: valid, and not of $SYS."""
        self._version = 0
        self.subscriptions_count = 0
        self.shared_count = 0

    def keep_routes(self, count_max: int) -> None:
        """From now on at most so many."""
        self._routes_count_max = count_max
        self._routes_size_max = count_max * SIZE_OF_ROUTE

    # ---- changes ----

    def add(self, filter: str, subscription: Subscription) -> Subscription | None:
        """Put it in the place of the same session's one with the same filter, which is returned [MQTT5-3.8.4-3].

        filter: as subscribed, `$share/...` included.
        """
        group: str | None = None
        plain = filter
        if filter.startswith("$"):
            group, plain = split_shared(filter)
        mine = subscription.session.subscriptions
        old = mine.get(filter)
        mine[filter] = subscription
        if "+" in plain or "#" in plain:
            self.wildcards.add(plain, subscription, group)
            self._touch_wildcard(plain)
        else:
            entry = self.literals.get(plain)
            self.literals[plain] = subscription if entry is None and group is None else with_subscriber(entry, subscription, group)
            self._touch_literal(plain)
        if old is None:
            self.subscriptions_count += 1
            if group is not None:
                self.shared_count += 1
            if len(filter) >= LONG_LENGTH or filter.count("/") >= DEEP_LEVELS:
                subscription.session.more_places += more_places(filter)
        return old

    def add_literals(self, filters: list[str], subscription: Subscription) -> None:
        """The same for several filters without wildcards and without `$share`."""
        wanted = dict.fromkeys(filters, subscription)
        mine = subscription.session.subscriptions
        self.subscriptions_count -= len(mine)
        mine.update(wanted)
        self.subscriptions_count += len(mine)
        literals = self.literals
        if literals.keys().isdisjoint(wanted):
            literals.update(wanted)
        else:
            for filter in wanted:
                literals[filter] = with_subscriber(literals.get(filter), subscription, None)
        if not self._routes.keys().isdisjoint(wanted):
            for filter in wanted:
                self._touch_literal(filter)

    def remove(self, session: Session, filter: str) -> bool:
        """Was there a subscription of this session with exactly this filter? It is gone [MQTT5-3.10.4-1]."""
        subscription = session.subscriptions.pop(filter, None)
        if subscription is None:
            return False
        group: str | None = None
        plain = filter
        if filter.startswith("$"):
            group, plain = split_shared(filter)
        if "+" in plain or "#" in plain:
            self.wildcards.remove(plain, subscription, group)
            self._touch_wildcard(plain)
        else:
            left = without_subscriber(self.literals[plain], subscription, group)
            if left is None:
                del self.literals[plain]
            else:
                self.literals[plain] = left
            self._touch_literal(plain)
        self.subscriptions_count -= 1
        if group is not None:
            self.shared_count -= 1
        if session.more_places:
            session.more_places -= more_places(filter)
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
                self._routes_size -= route.size
                route.stale = True  # nothing touches it: whoever keeps it must look again
                return route
            while self._routes and (len(self._routes) >= self._routes_count_max or self._routes_size > self._routes_size_max):
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
        return topic in self.literals or (self.wildcards.filters_count > 0 and self.wildcards.may_match(topic))

    def is_fresh(self, route: Route) -> bool:
        return not route.stale and route.bucket_version == route.bucket.version and route.version == self._version

    def cursor(self, topic: str) -> FilterCursor:
        """Every filter that matches a topic, in steps. No route is made or kept."""
        literal = self.literals.get(topic)
        return self.wildcards.cursor(topic, [] if literal is None else [(topic, literal)])

    # ---- inside ----

    def _resolve(self, route: Route) -> None:
        route.stale = False
        route.bucket_version = route.bucket.version
        route.version = self._version
        entries: list[Entry] = []
        steps = 0
        if self.wildcards.filters_count:
            entries, steps = self.wildcards.entries(route.topic)
        literal = self.literals.get(route.topic)
        if literal is not None:
            entries.append(literal)
        if not entries and not route.targets and not route.groups:
            route.any_no_local = False  # it may have been thrown out of the table, and lost its targets so
            route.plain = True
            self._spend(steps >> STEPS_PER_WORK_SHIFT)
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
        if "/$" in route.topic:
            by_session = _matching(by_session, route.topic)
        route.targets = [Target(session, matching) for session, matching in by_session.items() if session.may_receive(route.topic)]
        route.groups = groups
        size = len(groups) + sum([len(target.subscriptions) for target in route.targets])
        self._routes_size += size - route.size
        route.size = size
        self._spend((steps + size) >> STEPS_PER_WORK_SHIFT)
        route.any_no_local = any(subscription.no_local for target in route.targets for subscription in target.subscriptions)
        route.plain = (
            not groups and not route.any_no_local and all(subscription.plain for target in route.targets for subscription in target.subscriptions)
        )

    def _touch_literal(self, plain: str) -> None:
        route = self._routes.get(plain)
        if route is not None:
            self._retire(route)

    def _touch_wildcard(self, plain: str) -> None:
        if plain[0] == "+" or plain[0] == "#":
            self._version += 1
        elif self._buckets:
            bucket = self._buckets.get(plain.partition("/")[0])
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
        self._routes_size -= route.size
        route.size = 0
        route.targets = []
        route.groups = []


def _matching(by_session: dict[Session, list[Subscription]], topic: str) -> dict[Session, list[Subscription]]:
    """Less what does not match it as clients behind a mount point call it."""
    found = {session: [subscription for subscription in given if subscription.matches(topic)] for session, given in by_session.items()}
    return {session: matching for session, matching in found.items() if matching}

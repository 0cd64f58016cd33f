"""The retained messages in a trie of topic levels, looked up by filter with a cursor that does a bounded amount each time.

A cursor must see everything that stays, once, while messages come and go between its steps. So the names under a node
stand in a list that only grows: a cursor holds that list and how long it was, which is a snapshot without a copy. A name
that is cleared leaves a tombstone, so that setting it again does not put it into the list a second time; when more
than half are tombstones, list and children are made anew as new objects, and cursors keep the old list. Values are
read from the children at the time of visiting.

A branch with a single message in it is that message, however many levels its topic still has: most topics end in a level
or two that they share with nobody, and a node for each of those took twice the memory of the message. What is in the trie is the
messages' frames (`core.kept`) and the names of levels, which are shared where the same come again: "temperature" under every room is one string.

Topics that are published to lie near each other: the nodes that were last put into are known by their topics without the last level,
and a message that goes there too needs no walk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

from broker.core.kept import Expiring, Kept, is_on, kept_of, size_of, topic_of
from broker.core.message import ApplicationMessage
from broker.core.names import Names
from broker.wire.primitives import encode_string
from broker.wire.topics import matches

_TOMBSTONES_KEPT: Final = 16
"""Below this many names a node is not made anew: there is nothing to win."""
_NEAR_COUNT_MAX: Final = 1024
_NEAR_LENGTH_MAX: Final = 256
"""Topics that are longer always take the walk."""


class _Node:
    """A level that several topics go through. `kept`: the message of the one that ends here."""

    __slots__ = ("children", "kept", "order", "tombstones")

    def __init__(self, kept: Kept | None) -> None:
        self.kept = kept
        self.children: dict[str, _Child] = {}
        self.order: list[str] = []
        """The names of `children`, in the order in which they first came."""
        self.tombstones = 0

    def add(self, name: str, child: _Node | Kept) -> None:
        """Put a child where none is, or only its tombstone."""
        if name in self.children:
            self.tombstones -= 1
        else:
            self.order.append(name)
        self.children[name] = child

    def remove(self, name: str) -> None:
        self.children[name] = None
        self.tombstones += 1
        if self.tombstones > _TOMBSTONES_KEPT and self.tombstones * 2 > len(self.order):
            self.children = {name: child for name, child in self.children.items() if child is not None}
            self.order = list(self.children)
            self.tombstones = 0

    @property
    def empty(self) -> bool:
        return self.tombstones == len(self.order)


_Child: TypeAlias = _Node | Kept | None


class RetainedStore:
    """At most one message for each topic. Which topics may be stored, and how many, is for the caller to say.

    bytes: of the frames that are kept, together.
    """

    __slots__ = ("_count", "_names", "_near", "_root", "bytes")

    def __init__(self) -> None:
        self._root = _Node(None)
        self._count = 0
        self._near: dict[str, _Node] = {}
        """Nodes below the root, by the topic that leads to them; never one that has gone."""
        self._names = Names()
        self.bytes = 0

    def __len__(self) -> int:
        return self._count

    def set(self, message: ApplicationMessage) -> Kept | None:
        """Keep it in place of the topic's older one, which is returned."""
        return self.put(message.topic, message.topic_field, kept_of(message))

    def put(self, topic: str, topic_field: bytes, kept: Kept) -> Kept | None:
        """The same for what was made a kept message already. topic_field: the topic as it is encoded."""
        parent, slash, name = topic.rpartition("/")
        node = self._near.get(parent) if slash else self._root
        previous: Kept | None = None
        if node is None:
            previous = self._put_from_root(topic, topic_field, kept)
        else:
            child = node.children.get(name)
            if child is None:
                node.add(self._names.shared(name), kept)
            elif isinstance(child, _Node):
                previous = child.kept
                child.kept = kept
            elif is_on(child, topic_field):
                previous = child
                node.children[name] = kept
            else:
                previous = self._put_from_root(topic, topic_field, kept)
        self.bytes += len(kept) if isinstance(kept, bytes) else len(kept.frame)
        if previous is None:
            self._count += 1
        else:
            self.bytes -= len(previous) if isinstance(previous, bytes) else len(previous.frame)
        return previous

    def get(self, topic: str) -> Kept | None:
        node = self._root
        for name in topic.split("/"):
            child = node.children.get(name)
            if not isinstance(child, _Node):
                return child if child is not None and is_on(child, encode_string(topic)) else None
            node = child
        return node.kept

    def may_match(self, filter: str) -> bool:
        """False where it is seen at once that nothing here matches a well-formed filter: most match nothing, and need no cursor."""
        first = filter.partition("/")[0]
        if first == "+" or first == "#":
            return self._count > 0
        if self._root.children.get(first) is None:
            return False
        return "+" in filter or "#" in filter or self.get(filter) is not None

    def clear(self, topic: str) -> Kept | None:
        """Remove and return the topic's message."""
        names = topic.split("/")
        path: list[_Node] = []
        node = self._root
        for name in names:
            path.append(node)
            child = node.children.get(name)
            if not isinstance(child, _Node):
                kept = child if child is not None and is_on(child, encode_string(topic)) else None
                if kept is not None:
                    self._remove(path, names)
                break
            node = child
        else:
            kept = node.kept
            node.kept = None
        if kept is not None:
            self._count -= 1
            self.bytes -= size_of(kept)
        return kept

    def drop_expired(self, expiring: Expiring) -> bool:
        """Clear its topic if that very message is still what it has; whether it was."""
        topic = topic_of(expiring)
        return self.get(topic) is expiring and self.clear(topic) is expiring

    def cursor(self, filter: str) -> ReplayCursor:
        """All that match a well-formed filter (of a shared one: the part after the group), from now on; nothing is done yet."""
        return ReplayCursor(self._root, filter)

    def statistics(self) -> dict[str, int]:
        return {"messages": self._count, "bytes": self.bytes}

    def _put_from_root(self, topic: str, topic_field: bytes, kept: Kept) -> Kept | None:
        names = topic.split("/")
        others: list[str] = []  # the levels of a topic in our way
        previous: Kept | None = None
        node = self._root
        depth = 0
        last = len(names) - 1
        while True:
            name = names[depth]
            child = node.children.get(name)
            if child is None:
                node.add(self._names.shared(name), kept)
                break
            if isinstance(child, _Node):
                if depth == last:
                    previous = child.kept
                    child.kept = kept
                    break
                node = child
                depth += 1
            elif is_on(child, topic_field):
                previous = child
                node.children[name] = kept
                break
            else:
                # Another topic goes through here: both move one level down, and the loop meets the branch instead.
                others = others or topic_of(child).split("/")
                branch = _Node(None)
                if len(others) == depth + 1:
                    branch.kept = child
                else:
                    branch.add(self._names.shared(others[depth + 1]), child)
                node.children[name] = branch
        if depth and depth == last and len(topic) <= _NEAR_LENGTH_MAX:
            if len(self._near) >= _NEAR_COUNT_MAX:
                self._near.clear()
            self._near[topic[: -len(names[last]) - 1]] = node
        return previous

    def _remove(self, path: list[_Node], names: list[str]) -> None:
        """Take out the message that stands in the last node of the path, and every branch that thereby holds nothing."""
        for depth in range(len(path) - 1, -1, -1):
            node = path[depth]
            node.remove(names[depth])
            if depth == 0 or not node.empty:
                return
            self._near.pop("/".join(names[:depth]), None)
            if node.kept is not None:
                # One message again. A cursor inside the branch has read it when it came.
                path[depth - 1].children[names[depth - 1]] = node.kept
                return


class _Visit:
    """A node whose children are being visited: the snapshot of their names, the next one, and the filter level they are to match."""

    __slots__ = ("depth", "index", "length", "names", "node")

    def __init__(self, node: _Node, depth: int, names: Sequence[str]) -> None:
        self.node = node
        self.depth = depth
        self.names = names
        self.index = 0
        self.length = len(names)


class ReplayCursor:
    """Gives each matching message once, in steps; every one that is there from start to end is among them.

    A message that comes after the start may or may not be given. Only the branches that can match are entered.
    visits: nodes looked at so far.
    """

    __slots__ = ("_filter", "_levels", "_open", "_root", "visits")

    def __init__(self, root: _Node, filter: str) -> None:
        self._root = root
        self._filter = filter
        self._levels = filter.split("/")
        self._open: list[_Visit] = []
        self.visits = 0
        self._enter(root, 0)

    @property
    def exhausted(self) -> bool:
        return not self._open

    def next_batch(self, visits_max: int, matches_max: int, now: float, bytes_max: int = 1 << 60) -> list[Kept]:
        """At most matches_max messages that are not expired, after looking at no more than visits_max nodes (each at least 1), and none
        after bytes_max is reached.

        May be empty while there are more to come: `exhausted` says when it is over.
        """
        batch: list[Kept] = []
        opened = self._open
        levels = self._levels
        levels_count = len(levels)
        visits = 0
        size = 0
        while opened and visits < visits_max and len(batch) < matches_max and size < bytes_max:
            visit = opened[-1]
            depth = visit.depth
            level = levels[depth]
            if level == "#" and visit.node is not self._root:
                # Whatever is here matches: as many messages in a row as there are.
                stop = min(visit.length, visit.index + visits_max - visits, visit.index + matches_max - len(batch))
                children = visit.node.children
                taken = 0
                for name in visit.names[visit.index : stop]:
                    child = children.get(name)
                    if not isinstance(child, bytes) or size >= bytes_max:
                        break
                    batch.append(child)
                    size += len(child)
                    taken += 1
                if taken:
                    visits += taken
                    visit.index += taken
                    if visit.index == visit.length:
                        opened.pop()
                    continue
            name = visit.names[visit.index]
            visit.index += 1
            if visit.index == visit.length:
                opened.pop()
            visits += 1
            child = visit.node.children.get(name)
            if child is None or (level != name and visit.node is self._root and name.startswith("$")):
                continue  # gone, or hidden from wildcards [MQTT5-4.7.2-1] [MQTT311-4.7.2-1]
            # `#` matches the level above it too, so all of a branch matches when it is this level or the next.
            below = depth if level == "#" else depth + 1
            whole = below < levels_count and levels[below] == "#"
            found: Kept | None
            if isinstance(child, _Node):
                found = child.kept if whole or below == levels_count else None
                if below < levels_count:
                    self._enter(child, below)
            else:
                found = child if whole or matches(self._filter, topic_of(child)) else None
            if isinstance(found, bytes):
                batch.append(found)
                size += len(found)
            elif found is not None and found.expires_at > now:
                batch.append(found)
                size += len(found.frame)
        self.visits += visits
        return batch

    def _enter(self, node: _Node, depth: int) -> None:
        level = self._levels[depth]
        names: Sequence[str] = node.order if level in ("+", "#") else (level,)
        if names:
            self._open.append(_Visit(node, depth, names))

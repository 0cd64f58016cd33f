"""Topic Filters with wildcards in a trie of their levels, so that the cost of a topic does not grow with the filters that do not match it.

A branch with a single filter that ends there is that filter's entry: a node for each would be as much again as all else that
such a filter takes (365 to about 240 bytes), and one place more in memory to look at for each message.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from broker.core.names import Names
from broker.core.subscription import Entry, FilterEntry, Subscription, with_subscriber, without_subscriber

_NO_CHILDREN: Final[dict[str, _Branch]] = {}
"""Of nodes that have none; nothing is ever put into it."""


class _Node:
    """One level: the entries of the filter that ends here, and of the one that ends here with `#`."""

    __slots__ = ("children", "entry", "multi", "plus")

    def __init__(self, entry: Entry | None = None) -> None:
        self.children: dict[str, _Branch] = _NO_CHILDREN
        self.plus: _Branch | None = None
        self.entry: Entry | None = entry
        self.multi: Entry | None = None

    def is_empty(self) -> bool:
        return not self.children and self.plus is None and self.entry is None and self.multi is None

    def branch(self, level: str) -> _Branch | None:
        return self.plus if level == "+" else self.children.get(level)

    def put(self, level: str, branch: _Branch, names: Names) -> None:
        if level == "+":
            self.plus = branch
        elif self.children is _NO_CHILDREN:
            self.children = {names.shared(level): branch}
        elif level in self.children:
            self.children[level] = branch
        else:
            self.children[names.shared(level)] = branch

    def cut(self, level: str) -> None:
        if level == "+":
            self.plus = None
            return
        del self.children[level]
        if not self.children:
            self.children = _NO_CHILDREN


_Branch: TypeAlias = _Node | Subscription | FilterEntry


class _Steps:
    """The levels of a filter down to a node, the last one first: only a filter that is found is spelled out."""

    __slots__ = ("before", "level")

    def __init__(self, before: _Steps | None, level: str) -> None:
        self.before = before
        self.level = level


def _spelled(steps: _Steps | None) -> str:
    levels: list[str] = []
    while steps is not None:
        levels.append(steps.level)
        steps = steps.before
    return "/".join(reversed(levels))


SEVERAL: Final = FilterEntry()
"""More than one entry, or perhaps more than one. (Nobody is in it.)"""


_NOTHING: Final = _Node()


class FilterTrie:
    """filters_count: different ones."""

    __slots__ = ("_names", "_root", "filters_count")

    def __init__(self) -> None:
        self._root = _Node()
        self._names = Names()
        self.filters_count = 0

    def is_empty(self) -> bool:
        return self._root.is_empty()

    def add(self, plain: str, subscription: Subscription, group: str | None) -> None:
        """plain: well-formed, with a wildcard and without `$share/...`."""
        levels = plain.split("/")
        last = levels.pop()
        node = self._root
        for level in levels:
            branch = node.plus if level == "+" else node.children.get(level)
            if isinstance(branch, _Node):
                node = branch
            else:
                below = _Node(branch)
                node.put(level, below, self._names)
                node = below
        old: Entry | None
        if last == "#":
            old = node.multi
            node.multi = with_subscriber(old, subscription, group)
        else:
            branch = node.branch(last)
            if isinstance(branch, _Node):
                old = branch.entry
                branch.entry = with_subscriber(old, subscription, group)
            else:
                old = branch
                node.put(last, with_subscriber(old, subscription, group), self._names)
        if old is None:
            self.filters_count += 1

    def remove(self, plain: str, subscription: Subscription, group: str | None) -> None:
        """The caller knows that it is there."""
        levels = plain.split("/")
        last = levels.pop()
        node = self._root
        path = [node]
        for level in levels:
            branch = node.plus if level == "+" else node.children.get(level)
            assert isinstance(branch, _Node)
            node = branch
            path.append(node)
        left: Entry | None
        if last == "#":
            assert node.multi is not None
            left = node.multi = without_subscriber(node.multi, subscription, group)
        else:
            branch = node.branch(last)
            assert branch is not None
            if isinstance(branch, _Node):
                assert branch.entry is not None
                left = branch.entry = without_subscriber(branch.entry, subscription, group)
                if branch.is_empty():
                    node.cut(last)
            else:
                left = without_subscriber(branch, subscription, group)
                if left is None:
                    node.cut(last)
                else:
                    node.put(last, left, self._names)
        if left is None:
            self.filters_count -= 1
        for depth in range(len(levels) - 1, -1, -1):
            if not path[depth + 1].is_empty():
                break
            path[depth].cut(levels[depth])

    def may_match(self, topic: str) -> bool:
        """False: no filter begins as the topic does, nor with a wildcard."""
        root = self._root
        if root.multi is not None or root.plus is not None:
            return True
        return topic.partition("/")[0] in root.children

    def entries(self, topic: str) -> tuple[list[Entry], int]:
        """Of every filter that matches a topic [MQTT5-4.7.3-4], by the rule for `$` [MQTT5-4.7.2-1]; and how many nodes were looked at for it."""
        found: list[Entry] = []
        steps = 0
        levels = topic.split("/")
        hidden = topic.startswith("$")
        nodes = [self._root]
        left = len(levels)
        for level in levels:
            left -= 1
            below: list[_Node] = []
            for node in nodes:
                branch = node.children.get(level)
                if isinstance(branch, _Node):
                    below.append(branch)
                elif branch is not None and left == 0:
                    found.append(branch)
                if not hidden:
                    if node.multi is not None:
                        found.append(node.multi)
                    branch = node.plus
                    if isinstance(branch, _Node):
                        below.append(branch)
                    elif branch is not None and left == 0:
                        found.append(branch)
            steps += len(nodes)
            if not below:
                return found, steps
            nodes = below
            hidden = False
        for node in nodes:
            if node.entry is not None:
                found.append(node.entry)
            if node.multi is not None:  # "a/#" matches "a" too
                found.append(node.multi)
        return found, steps + len(nodes)

    def cursor(self, topic: str, first: list[tuple[str, Entry]]) -> FilterCursor:
        """`entries` in steps, each with its filter, for people who ask: slower, and for no message. first: what is found before any step."""
        return FilterCursor(self._root, topic, first)

    def sole(self, topic: str, found: Entry | None) -> Entry | None:
        """The only entry that matches a topic, which does not begin with `$`, besides `found`; `found` if none does, and SEVERAL if there
        is more than one, or where that is not seen at once because two ways lead on."""
        node = self._root
        leaf: Entry | None = None
        for level in topic.split("/"):
            if node.multi is not None:
                if found is not None:
                    return SEVERAL
                found = node.multi
            branch = node.children.get(level)
            if node.plus is not None:
                if branch is not None:
                    return SEVERAL
                branch = node.plus
            if isinstance(branch, _Node):
                node = branch
            elif branch is None:
                return found
            else:
                leaf = branch
                node = _NOTHING  # so that it is found only if this was the last level
        if leaf is None:
            leaf = node.entry
            if node.multi is not None:
                if found is not None:
                    return SEVERAL
                found = node.multi
        if leaf is None:
            return found
        return leaf if found is None else SEVERAL


class FilterCursor:
    """Gives each filter that matches a topic, and who is there, in steps. What comes or goes between two of them may be given or not, so whoever is
    given may have gone."""

    __slots__ = ("_first", "_levels", "_open", "_topic")

    def __init__(self, root: _Node, topic: str, first: list[tuple[str, Entry]]) -> None:
        self._topic = topic
        self._levels = topic.split("/")
        self._open: list[tuple[_Node, int, _Steps | None]] = [(root, 0, None)]
        self._first = first

    @property
    def exhausted(self) -> bool:
        return not self._open

    def next_batch(self, visits_max: int) -> list[tuple[str, Entry]]:
        """After looking at no more than visits_max nodes. May be empty while there are more to come."""
        found, self._first = self._first, []
        opened = self._open
        levels = self._levels
        visits = 0
        while opened and visits < visits_max:
            visits += 1
            node, depth, steps = opened.pop()
            hidden = depth == 0 and self._topic.startswith("$")  # [MQTT5-4.7.2-1]
            if node.multi is not None and not hidden:
                found.append((_spelled(_Steps(steps, "#")), node.multi))
            if depth == len(levels):
                if node.entry is not None:
                    found.append((_spelled(steps), node.entry))
                continue
            for level in [levels[depth]] if hidden else [levels[depth], "+"]:
                branch = node.branch(level)
                if isinstance(branch, _Node):
                    opened.append((branch, depth + 1, _Steps(steps, level)))
                elif branch is not None and depth == len(levels) - 1:
                    found.append((_spelled(_Steps(steps, level)), branch))
        return found

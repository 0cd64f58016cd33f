"""The topic table against the rule written down as simply as it can be: a dict of filters and `wire.topics.matches`."""

from __future__ import annotations

import gc
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.access import Access
from broker.core.allowance import Allowance
from broker.core.limits import Limits
from broker.core.link import Link
from broker.core.session import Session
from broker.core.subscription import FilterEntry, SharedGroup, Subscription, by_filter
from broker.core.topic_table import KEPT_TOPIC_LENGTH_MAX, SIZE_OF_ROUTE, STEPS_PER_WORK_SHIFT, Route, TopicTable
from broker.core.waiting import Account
from broker.wire.topics import matches, split_shared

LEVELS = st.sampled_from(["a", "b", "", "$a", "$SYS"])
TOPICS = st.lists(LEVELS, min_size=1, max_size=4).map("/".join).filter(bool)
PLAIN_FILTERS = st.builds(
    lambda levels, end: "/".join([*levels, *end]),
    st.lists(st.one_of(LEVELS, st.just("+")), min_size=1, max_size=4),
    st.sampled_from([[], [], ["#"]]),
).filter(bool) | st.just("#")  # fmt: skip
FILTERS = st.one_of(PLAIN_FILTERS, PLAIN_FILTERS, st.builds(lambda name, plain: f"$share/{name}/{plain}", st.sampled_from(["g", "h"]), PLAIN_FILTERS))


def session(name: str = "s") -> Session:
    return Session(name, Access(), Allowance(Limits()), Account())


def subscription(who: Session, qos: int = 0, *, no_local: bool = False, retain_as_published: bool = False, identifier: int = 0) -> Subscription:
    return Subscription(who, qos, no_local, retain_as_published, identifier)


def is_empty(table: TopicTable) -> bool:
    return not table.literals and table.wildcards.is_empty() and table._routes_size == sum(size_of(route) for route in table._routes.values())


def subscriptions(table: TopicTable, topic: str, visits_max: int) -> list[tuple[str, Subscription]]:
    """All that match, by a cursor in steps of so many nodes."""
    cursor = table.cursor(topic)
    found = []
    while not cursor.exhausted:
        found += [(filter, one) for entry in cursor.next_batch(visits_max) for filter, some in by_filter(*entry) for one in some]
    return found


def check_route(table: TopicTable, topic: str, model: dict[tuple[Session, str], Subscription]) -> None:
    route = table.route(topic)
    expected: dict[Session, list[Subscription]] = {}
    members: dict[tuple[str, str], set[Subscription]] = {}
    for (who, filter), one in model.items():
        group, plain = split_shared(filter)
        if matches(plain, topic):
            if group is None:
                expected.setdefault(who, []).append(one)
            else:
                members.setdefault((group, plain), set()).add(one)
    assert {target.session: set(target.subscriptions) for target in route.targets} == {who: set(some) for who, some in expected.items()}
    assert len(route.targets) == len(expected)
    for target in route.targets:
        some = expected[target.session]
        assert target.qos == max(one.qos for one in some)
        assert target.retain_as_published == any(one.retain_as_published for one in some)
        assert sorted(target.identifiers) == sorted(one.identifier for one in some if one.identifier)
    assert sorted(map(set_of_ids, (group.members for group in route.groups))) == sorted(map(set_of_ids, members.values()))
    listed = {(one.session, filter): one for filter, one in subscriptions(table, topic, 1)}
    assert listed == {(who, filter): one for (who, filter), one in model.items() if matches(split_shared(filter)[1], topic)}
    assert len(listed) == len(subscriptions(table, topic, 1000))
    assert route.any_no_local == any(one.no_local for some in expected.values() for one in some)
    assert route.plain == (not members and not route.any_no_local and not any(one.identifier for some in expected.values() for one in some))


def set_of_ids(members: Any) -> list[int]:
    return sorted(id(member) for member in members)


WORK: list[int] = []
"""What the look-ups said that they took."""


def size_of(route: Route) -> int:
    return len(route.groups) + sum(len(target.subscriptions) for target in route.targets)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 2), FILTERS, st.integers(0, 2), st.booleans(), st.booleans(), st.integers(0, 2)),
        st.tuples(st.just("remove"), st.integers(0, 2), FILTERS),
        st.tuples(st.just("forget")),
        st.tuples(st.just("look"), TOPICS),
    ),
    max_size=40,
)


@settings(max_examples=400)
@given(STEPS, st.lists(TOPICS, min_size=1, max_size=5, unique=True), st.sampled_from([1, 2, 3, 1000]))
def test_every_route_is_right_under_churn(steps: list[Any], topics: list[str], routes_count_max: int) -> None:
    table = TopicTable(routes_count_max, WORK.append)
    sessions = [session(f"s{number}") for number in range(3)]
    model: dict[tuple[Session, str], Subscription] = {}
    held = {topic: table.route(topic) for topic in topics}  # as a link's known topics hold them
    for step in steps:
        if step[0] == "add":
            _, number, filter, qos, no_local, retain_as_published, identifier = step
            who = sessions[number]
            one = subscription(who, qos, no_local=no_local, retain_as_published=retain_as_published, identifier=identifier)
            assert table.add(filter, one) is model.get((who, filter))
            model[who, filter] = one
        elif step[0] == "remove":
            who = sessions[step[1]]
            existing = [filter for session_, filter in model if session_ is who]
            filter = existing[len(step[2]) % len(existing)] if existing else step[2]
            assert table.remove(who, filter) == ((who, filter) in model)
            model.pop((who, filter), None)
        elif step[0] == "forget":
            table.forget_routes()
        else:
            check_route(table, step[1], model)
        for topic in topics:
            if table.is_fresh(held[topic]):  # then it must be as good as a new one
                assert {t.session for t in held[topic].targets} == {t.session for t in table.route(topic).targets}
            held[topic] = table.route(topic)
            check_route(table, topic, model)
        assert len(table._routes) <= routes_count_max
        assert table.subscriptions_count == len(model)
        assert table.shared_count == sum(split_shared(filter)[0] is not None for _, filter in model)
        assert table._routes_size == sum(size_of(route) for route in table._routes.values())
    for who, filter in list(model):
        assert table.remove(who, filter)
    assert is_empty(table)
    assert not any(who.subscriptions for who in sessions)


def test_one_subscription_stands_for_itself_and_several_in_an_entry() -> None:
    table, one, two = TopicTable(10, WORK.append), session("one"), session("two")
    first = subscription(one)
    table.add("a/b", first)
    assert table.literals["a/b"] is first
    renewed = subscription(one, 2)
    assert table.add("a/b", renewed) is first
    assert table.literals["a/b"] is renewed
    table.add("a/b", subscription(two))
    assert isinstance(table.literals["a/b"], FilterEntry)
    table.remove(two, "a/b")
    assert table.literals["a/b"] is renewed
    table.add("$share/g/a/b", subscription(two))
    table.remove(one, "a/b")
    assert isinstance(table.literals["a/b"], FilterEntry)
    table.remove(two, "$share/g/a/b")
    assert is_empty(table)


def test_the_trie_gives_back_its_branches() -> None:
    table, one, two = TopicTable(10, WORK.append), session("one"), session("two")
    filters = ["a/+/c", "a/+/c/#", "a/#", "+/+", "#", "a/b/+", "+/b/c/d/e/f/#", "$share/g/a/+/c", "$share/h/#"]
    for filter in filters:
        table.add(filter, subscription(one))
        table.add(filter, subscription(two))
    for filter in filters:
        assert table.remove(one, filter)
    for filter in reversed(filters):
        assert table.remove(two, filter)
        assert not table.remove(two, filter)
    assert table.wildcards.is_empty()
    assert table.wildcards.filters_count == 0


def test_a_literal_subscription_makes_one_route_stale_and_a_wildcard_those_of_its_first_level() -> None:
    table, one, other = TopicTable(10, WORK.append), session(), session("other")
    for topic in ("a/b", "a/c", "z/b"):
        table.add(topic, subscription(other))
    near, sibling, far = table.route("a/b"), table.route("a/c"), table.route("z/b")
    table.add("a/b", subscription(one))
    assert [table.is_fresh(route) for route in (near, sibling, far)] == [False, True, True]
    table.route("a/b")
    table.add("a/+", subscription(one))
    assert [table.is_fresh(route) for route in (near, sibling, far)] == [False, False, True]
    table.add("+/b", subscription(one))
    assert not table.is_fresh(far)


def test_an_evicted_route_is_stale_for_whoever_still_holds_it() -> None:
    table, one, other = TopicTable(2, WORK.append), session(), session("other")
    for topic in ("a", "b", "c"):
        table.add(topic, subscription(other))
    held = table.route("a")
    table.route("b")
    table.route("c")
    assert not table.is_fresh(held)
    assert len(table._routes) == 2
    table.add("a", subscription(one))
    assert {target.session for target in table.route("a").targets} == {one, other}
    assert set(table._buckets) == {"a", "c"}


def test_a_route_to_nobody_is_not_kept() -> None:
    table, one = TopicTable(2, WORK.append), session()
    nowhere = table.route("a")
    assert (nowhere.targets, nowhere.groups, table._routes, table._buckets) == ([], [], {}, {})
    assert not table.is_fresh(nowhere)  # whoever holds it looks again, and so sees who comes
    table.add("a", subscription(one))
    assert [target.session for target in table.route("a").targets] == [one]


def test_routes_together_hold_a_bounded_number_of_targets() -> None:
    table = TopicTable(10, WORK.append)
    for number in range(100):
        table.add("#", subscription(session(f"s{number}")))
    for number in range(10):
        assert len(table.route(f"t/{number}").targets) == 100
        assert table._routes_size <= 10 * SIZE_OF_ROUTE + 100


def test_a_thousand_ways_to_one_session_count_on_a_route_as_such() -> None:
    """Each is held there, to be merged again: ten thousand filters of one client on a hundred thousand routes were 13 GB."""
    table, one = TopicTable(10, WORK.append), session()
    every_way = ["/".join(levels) for levels in product(("+", "a"), repeat=8)]
    for filter in every_way:
        table.add(f"{filter}/#", subscription(one))
    for number in range(10):
        assert len(table.route("/".join(["a"] * 8 + [str(number)])).targets) == 1
        assert len(table._routes) == 1
        assert table._routes_size == len(every_way)


def test_groups_count_on_a_route_too() -> None:
    table, one = TopicTable(10, WORK.append), session()
    for number in range(1000):
        table.add(f"$share/{number}/#", subscription(one))
    for number in range(10):
        assert len(table.route(f"a/{number}").groups) == 1000
        assert len(table._routes) == 1


def test_a_look_up_says_how_much_work_it_was() -> None:
    """A client's filters can match in ten thousand ways, or lead nowhere in as many; others have to get their turn between two such topics."""
    table, one = TopicTable(10, WORK.append), session()
    for levels in product(("+", "a"), repeat=8):
        table.add("/".join([*levels, "b"]), subscription(one))
    for topic, steps in (("a", 2), ("a/" * 8 + "b", 700), ("a/" * 8 + "c", 500), ("b", 1)):
        WORK.clear()
        table.route(topic)
        assert sum(WORK) >= steps >> STEPS_PER_WORK_SHIFT, topic
        assert sum(WORK) <= steps, topic


def test_long_topics_are_routed_and_not_kept() -> None:
    table, one = TopicTable(10, WORK.append), session()
    topic = "t" * (KEPT_TOPIC_LENGTH_MAX + 1)
    table.add("+", subscription(one))
    route = table.route(topic)
    assert [target.session for target in route.targets] == [one]
    assert not table.is_fresh(route)
    assert not table._routes
    assert table._routes_size == 0


def test_a_session_that_left_a_literal_filter_is_not_kept_by_the_route() -> None:
    table = TopicTable(10, WORK.append)
    one = session("it leaves")
    table.add("a/b", subscription(one))
    assert len(table.route("a/b").targets) == 1
    table.remove(one, "a/b")
    del one
    gc.collect()
    assert not [left for left in gc.get_objects() if isinstance(left, Session) and left.client_id == "it leaves"]


# ---- shared groups ----


def member(name: str, group: SharedGroup, *, qos: int = 2, connected: bool = True, room: bool = True, allowed: bool = True) -> Subscription:
    access, account = Access(None if allowed else lambda *asked: False), Account()
    allowance = Allowance(Limits(outbox_bytes_high=1_000 if room else 0))
    who = Session(name, access, allowance, account)
    if connected:
        who.link = Link(name, "", None, allowance, account, access, 0.0)
    made = Subscription(who, qos, False, False, 0)
    group.join(made)
    return made


def test_members_take_turns() -> None:
    group = SharedGroup("g")
    members = [member(name, group) for name in "abc"]
    assert [group.choose(1, "t") for _ in range(7)] == [*members, *members, members[0]]


def test_stuck_members_are_passed_over_while_another_has_room() -> None:
    group = SharedGroup("g")
    member("stuck", group, room=False)
    free = member("free", group)
    member("away", group, connected=False)
    assert [group.choose(1, "t") for _ in range(4)] == [free] * 4


def test_a_stuck_one_comes_before_one_that_is_away() -> None:
    group = SharedGroup("g")
    away = member("away", group, connected=False)
    stuck = member("stuck", group, room=False)
    assert [group.choose(1, "t") for _ in range(3)] == [stuck] * 3
    group.leave(stuck.session)
    assert group.choose(1, "t") is away
    assert group.choose(0, "t") is None  # at most once: nobody is there


def test_a_member_at_qos_0_that_is_away_gets_nothing() -> None:
    group = SharedGroup("g")
    member("away", group, connected=False, qos=0)
    assert group.choose(2, "t") is None
    later = member("later", group, connected=False, qos=1)
    assert group.choose(2, "t") is later


def test_one_who_may_not_receive_is_passed_over() -> None:
    group = SharedGroup("g")
    member("forbidden", group, allowed=False)
    assert group.choose(1, "t") is None
    free = member("free", group)
    assert [group.choose(1, "t") for _ in range(3)] == [free] * 3


def test_nobody_is_there() -> None:
    assert SharedGroup("g").choose(2, "t") is None


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_of_several_gets_the_same_share(count: int) -> None:
    group = SharedGroup("g")
    members = [member(str(number), group) for number in range(count)]
    chosen = [group.choose(0, "t") for _ in range(count * 4)]
    assert all(chosen.count(one) == 4 for one in members)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5))))
def test_joining_and_leaving_keep_the_places(steps: list[tuple[bool, int]]) -> None:
    group = SharedGroup("g")
    sessions = [session(str(number)) for number in range(6)]
    model: dict[Session, Subscription] = {}
    for joins, number in steps:
        who = sessions[number]
        if joins:
            model[who] = subscription(who)
            group.join(model[who])
        elif who in model:
            del model[who]
            group.leave(who)
        assert set_of_ids(group.members) == set_of_ids(model.values())
        assert {who: group.members[position] for who, position in group._positions.items()} == model


def test_a_cursor_looks_at_so_many_nodes_a_step_and_outlives_what_goes_meanwhile() -> None:
    table, one = TopicTable(10, WORK.append), session("one")
    filters = ["/".join(levels) for levels in product("a+", repeat=10)]
    for filter in filters:
        table.add(filter, subscription(one))
    topic = "/".join("a" * 10)
    assert sorted(filter for filter, _ in subscriptions(table, topic, 7)) == sorted(filters)
    cursor = table.cursor(topic)
    assert [filter for filter, _ in cursor.next_batch(9)] == [topic]  # which needs no step
    assert len(cursor.next_batch(1)) == 2
    for filter in filters:
        table.remove(one, filter)
    assert is_empty(table)
    while not cursor.exhausted:
        assert len(cursor.next_batch(5)) <= 20

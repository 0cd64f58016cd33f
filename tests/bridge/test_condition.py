"""What is known of a bridge: causes are told once each, and do not pile up."""

from __future__ import annotations

from broker.bridge.condition import CAUSES_COUNT_MAX, Condition


def test_a_broker_that_has_another_reason_each_time_is_no_news_for_ever_and_fills_no_memory() -> None:
    condition = Condition()
    news = [condition.down(f"refused, request {number}") for number in range(5 * CAUSES_COUNT_MAX)]
    assert news == [True] * CAUSES_COUNT_MAX + [False] * 4 * CAUSES_COUNT_MAX
    assert len(condition._told) == CAUSES_COUNT_MAX
    assert condition.cause == f"refused, request {5 * CAUSES_COUNT_MAX - 1}"
    condition.up()
    assert condition.down("refused, request 0")
    assert not condition.down("refused, request 0")
    assert condition.down("refused, request 0", slowly=True)

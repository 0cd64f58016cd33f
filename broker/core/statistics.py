"""What the broker tells of itself in numbers: counters since the start, gauges of now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.core.state import COUNTER_NAMES

if TYPE_CHECKING:
    from broker.core.state import State


def statistics(state: State) -> dict[str, int | float]:
    counters = state.counters
    found: dict[str, int | float] = {name: getattr(counters, name) for name in COUNTER_NAMES}
    found |= {
        "clients_connected": state.connected_count,
        "clients_total": len(state.sessions),
        "links_count": len(state.links),
        "subscriptions_count": state.topics.subscriptions_count,
        "shared_subscriptions_count": state.topics.shared_count,
        "retained_count": len(state.retained),
        "retained_bytes": state.retained.bytes,
        "queued_count": state.waiting.count,
        "queued_bytes": state.waiting.bytes,
        "unsent_bytes": state.waiting.unsent_bytes,
        "inflight_bytes": state.waiting.inflight_bytes,
        "receiving_bytes": state.waiting.receiving_bytes,
        "will_bytes": state.waiting.will_bytes,
        "memory_bytes": state.memory_bytes,
        "deadlines_count": len(state.deadlines) + len(state.newcomers),
    }
    for reason, count in state.dropped.items():
        found[f"dropped_{reason.replace('-', '_')}"] = count
    return found

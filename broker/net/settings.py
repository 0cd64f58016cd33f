"""What an open broker wants to know of a configuration, and what a type cannot say of the limits in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Protocol

from broker.auth.acl import May
from broker.core.limits import Limits
from broker.net.listen import Listener


class OverflowRule(Protocol):
    @property
    def filter(self) -> str: ...
    @property
    def rule(self) -> str: ...


class AccessRule(Protocol):
    @property
    def user(self) -> str | None: ...
    @property
    def topic(self) -> str: ...
    @property
    def may(self) -> May: ...


class LogSettings(Protocol):
    @property
    def level(self) -> str: ...
    @property
    def format(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def connections(self) -> bool: ...


class Settings(Protocol):
    """`broker.config.Config` is one; rooms below it need not know that."""

    @property
    def listeners(self) -> Sequence[Listener]: ...
    @property
    def limits(self) -> Limits: ...
    @property
    def log(self) -> LogSettings: ...
    @property
    def overflow(self) -> Sequence[OverflowRule]: ...
    @property
    def allow_anonymous(self) -> bool | None: ...
    @property
    def password_file(self) -> str | None: ...
    @property
    def acl_file(self) -> str | None: ...
    @property
    def access(self) -> Sequence[AccessRule]: ...
    @property
    def shutdown_grace_s(self) -> float: ...
    @property
    def sys_interval_s(self) -> float: ...


# name: (least, most); all others are 0 or more.
RANGES: Final[dict[str, tuple[float, float]]] = {
    "keepalive_s_max": (1, 65_535),
    "packet_bytes_max": (128, 268_435_460),
    "control_bytes_max": (128, 268_435_460),
    "client_id_bytes_max": (1, 65_535),
    "inflight_count_max": (1, 65_535),
    "receive_maximum": (1, 65_535),
    "topic_alias_maximum": (0, 65_535),
    "maximum_qos": (0, 2),
    "session_expiry_s_max": (0, 4_294_967_295),
    "outbox_bytes_high": (1024, math.inf),
    "connect_timeout_s": (0.001, math.inf),
    "close_timeout_s": (0.001, math.inf),
    "filter_levels_max": (1, 65_535),
    "work_per_turn_max": (1, math.inf),
    "routes_count_max": (1, math.inf),
}


def limit_faults(limits: Limits) -> list[tuple[str, str]]:
    """(key path, what was expected) of every limit that makes no sense."""
    found = []
    for name in limits.__struct_fields__:
        value = getattr(limits, name)
        default = getattr(Limits(), name)
        if isinstance(default, bool):
            if not isinstance(value, bool):
                found.append((f"limits.{name}", f"expected true or false, got {value!r}"))
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            found.append((f"limits.{name}", f"expected a number, got {value!r}"))
            continue
        least, most = RANGES.get(name, (0, math.inf))
        if not least <= value <= most:
            wanted = f"{least:,} or more" if most == math.inf else f"{least:,} to {most:,}"
            found.append((f"limits.{name}", f"expected {wanted}, got {value:,}"))
    if not found and limits.outbox_bytes_max < limits.outbox_bytes_high:
        found.append(
            ("limits.outbox_bytes_max", f"expected at least outbox_bytes_high ({limits.outbox_bytes_high:,}), got {limits.outbox_bytes_max:,}")
        )
    return found

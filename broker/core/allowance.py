"""Whose limits: a listener's clients may have others than the rest, and a user others again.

Links and sessions hold the `Allowance` of the listener they came in by, as they hold its `Access`; new limits are put into it
with `use`. A link has the `Limits` that came out for it at hand, so that a hot path pays one attribute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import msgspec

from broker.core.limits import Limits, outbox_mark

Number: TypeAlias = int | float


class LimitOverrides:
    """Some of the keys of [limits], to be laid over the others. Immutable; TypeError for a name that is none."""

    __slots__ = ("_changes",)

    def __init__(self, **changes: Number) -> None:
        unknown = sorted(changes.keys() - set(Limits.__struct_fields__))
        if unknown:
            raise TypeError(f"there is no limit of the name {unknown[0]!r}")
        self._changes = tuple(sorted(changes.items()))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the limits that are given here."""
        return tuple(name for name, _ in self._changes)

    def over(self, limits: Limits) -> Limits:
        """`limits` with these laid over them."""
        changes: dict[str, Number] = dict(self._changes)
        return msgspec.structs.replace(limits, **changes) if changes else limits

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LimitOverrides) and self._changes == other._changes

    def __hash__(self) -> int:
        return hash(self._changes)

    def __repr__(self) -> str:
        return f"LimitOverrides({', '.join(f'{name}={value!r}' for name, value in self._changes)})"


UserLimits: TypeAlias = Sequence[tuple[str, LimitOverrides]]
"""(user name, what differs for that user), each name once."""


class Allowance:
    """limits: of a client whose name nobody knows yet, or who has none of its own."""

    __slots__ = ("_of_users", "limits", "outbox_bytes_high")

    def __init__(self, limits: Limits, users: UserLimits = ()) -> None:
        self.use(limits, users)

    def use(self, limits: Limits, users: UserLimits = ()) -> None:
        """From now on. The caller says `Engine.set_limits` afterwards, which gives each link its new ones."""
        self.limits = limits
        self.outbox_bytes_high = outbox_mark(limits)
        self._of_users: Mapping[str, Limits] = {name: overrides.over(limits) for name, overrides in users}

    def of(self, username: str | None) -> Limits:
        if username is None or not self._of_users:
            return self.limits
        return self._of_users.get(username, self.limits)

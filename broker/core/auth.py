"""The question that CONNECT (and re-authentication) asks of the surroundings, and where the client's answers arrive."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.wire.packets import Connect


class AuthRequest:
    """Answered with `Engine.authenticated`; meanwhile `Engine.challenge` may ask the client for more, whose answers come in `answers`.

    method is None for a plain user name and password. `done` is set when an answer is no longer wanted.
    """

    __slots__ = (
        "answer_bytes", "answers", "asked_bytes", "challenged", "client_id", "connect", "data", "done", "method", "password", "reauthentication",
        "username",
    )  # fmt: skip

    def __init__(
        self, client_id: str, username: str | None, password: bytes | None, method: str | None, data: bytes | None, reauthentication: bool = False
    ) -> None:
        self.client_id = client_id
        self.username = username
        self.password = password
        self.method = method
        self.data = data
        self.reauthentication = reauthentication
        self.connect: Connect | None = None
        """What was asked for, for the core: while it is being decided."""
        self.answers: deque[bytes] = deque()
        self.challenged = False
        """It is the client's turn to say something."""
        self.done = False
        self.asked_bytes = 0
        """Of the CONNECT, or the AUTH, that is kept until it is answered: Will and password may be most of it."""
        self.answer_bytes = 0
        """Of the client's last answer."""

    def end(self) -> None:
        """No answer is wanted any more, so nothing is kept of what it was asked with: not for as long as its peer takes to close, either."""
        self.done = True
        self.password = self.data = self.connect = None
        self.answers.clear()

    def __repr__(self) -> str:
        return f"AuthRequest(client_id={self.client_id!r}, username={self.username!r}, method={self.method!r})"

"""Bridges: this broker as a client of another one, with topics carried out, in, or both ways (docs/decisions/0043-bridges.md).

A bridge is two clients of ours and two pumps between them. What waits while the other broker is away waits in a Session of this one,
as for any client; so its bounds, its overflow rule, its store and its counts are those of every Session, and nothing here queues.
"""

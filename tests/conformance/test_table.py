"""The lists and the tests against each other: no statement without a test, no test for a statement that is not there."""

from __future__ import annotations

from collections import defaultdict

from tests.conformance.statements import claims, load_statements


def test_lists_are_complete() -> None:
    statements = load_statements()
    assert sum(id.startswith("MQTT5-") for id in statements) == 251
    assert sum(id.startswith("MQTT311-") for id in statements) == 141
    assert {statement.side for statement in statements.values()} == {"server", "client", "both"}


def test_claims_name_statements() -> None:
    known = load_statements()
    wrong = [f"{claim.path.name}:{claim.line}: {id}" for claim in claims() for id in claim.ids if id not in known]
    assert not wrong


def test_every_statement_has_a_test() -> None:
    shown: defaultdict[str | None, set[str]] = defaultdict(set)
    for claim in claims():
        for id in claim.ids:
            shown[id].add(claim.side)
    missing = [f"{one.id} ({side})" for one in load_statements().values() for side in one.sides if side not in shown[one.id]]
    assert not missing, f"{len(missing)} without a test"


def test_nothing_that_is_tested_is_called_untestable() -> None:
    shown = {(id, claim.side) for claim in claims() for id in claim.ids}
    wrong = [
        one.id
        for one in load_statements().values()
        if one.untestable and not one.sides and any((one.id, side) in shown for side in ("server", "client"))
    ]
    assert not wrong

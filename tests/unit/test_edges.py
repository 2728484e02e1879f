"""Edge weights: +5 % of what an edge lacks where both items helped, -2 % of what it has where one was unused."""

from __future__ import annotations

import pytest

from sona_pg.learning.edges import EdgeUpdate, EdgeWeights, apply_updates, edge_between, edge_updates
from sona_pg.learning.outcome import OutcomeEvent
from sona_pg.types import TrajectoryStep

from .samples import acted, shown, trajectory

AB, AC, BC = ("a", "b"), ("a", "c"), ("b", "c")


def updates(*steps: TrajectoryStep, taught: dict[str, float] | None = None) -> dict[tuple[str, str], bool]:
    given = edge_updates(OutcomeEvent(trajectory([1.0], steps), taught={} if taught is None else taught))
    assert len({update.edge for update in given}) == len(given)
    return {update.edge: update.used for update in given}


def test_edge_has_no_direction() -> None:
    assert edge_between("b", "a") == edge_between("a", "b") == AB


def test_edge_gains_five_per_cent_of_what_it_lacks() -> None:
    assert apply_updates({}, [EdgeUpdate(AB, True)], 0.01) == {AB: pytest.approx(0.05)}
    assert apply_updates({AB: 0.6}, [EdgeUpdate(AB, True)], 0.01) == {AB: pytest.approx(0.6 + 0.05 * 0.4)}
    assert apply_updates({AB: 1.0}, [EdgeUpdate(AB, True)], 0.01) == {AB: 1.0}


def test_edge_loses_two_per_cent_of_what_it_has() -> None:
    assert apply_updates({AB: 0.5}, [EdgeUpdate(AB, False)], 0.01) == {AB: pytest.approx(0.49)}


def test_edge_that_is_not_there_stays_away_when_it_is_not_used() -> None:
    assert apply_updates({}, [EdgeUpdate(AB, False)], 0.01) == {}


def test_scale_is_the_unit_of_both() -> None:
    assert apply_updates({AB: 0.5}, [EdgeUpdate(AB, True)], 0.02) == {AB: pytest.approx(0.55)}
    assert apply_updates({AB: 0.5}, [EdgeUpdate(AB, False)], 0.02) == {AB: pytest.approx(0.48)}
    assert apply_updates({AB: 0.5}, [EdgeUpdate(AB, True)], 0.0) == {AB: 0.5}


def test_updates_are_applied_in_their_order() -> None:
    up, down = EdgeUpdate(AB, True), EdgeUpdate(AB, False)
    assert apply_updates({}, [up, down], 0.01) == {AB: pytest.approx(0.05 * 0.98)}
    assert apply_updates({}, [down, up], 0.01) == {AB: pytest.approx(0.05)}
    assert apply_updates({AB: 0.5}, [up, down], 0.01) == {AB: pytest.approx(0.525 * 0.98)}
    assert apply_updates({AB: 0.5}, [down, up], 0.01) == {AB: pytest.approx(0.49 + 0.05 * 0.51)}


def test_only_edges_that_change_are_given_and_what_was_given_stays() -> None:
    weights = {AB: 0.5, BC: 0.25}
    assert list(apply_updates(weights, [EdgeUpdate(AB, True)], 0.01)) == [AB]
    assert weights == {AB: 0.5, BC: 0.25}


@pytest.mark.parametrize("scale", [0.0, 0.01, 0.2])
def test_weights_stay_from_zero_to_one(scale: float) -> None:
    weights = {AB: 0.5}
    for used in [True] * 2000 + [False] * 2000:
        weights = apply_updates(weights, [EdgeUpdate(AB, used)], scale)
        assert 0 <= weights[AB] <= 1


def test_items_that_helped_are_tied_and_items_shown_beside_them_are_not() -> None:
    given = updates(shown("b", 1.0), shown("a", 0.5), shown("c", 0.0))
    assert given == {AB: True, BC: False, AC: False}


def test_item_that_was_judged_without_having_been_shown_ties_but_never_weakens() -> None:
    assert updates(shown("a", 1.0), shown("b", 1.0, position=None)) == {AB: True}
    assert updates(shown("a", 1.0), shown("b", 0.0, position=None)) == {}


def test_answer_in_which_nothing_helped_changes_no_edge() -> None:
    assert updates(shown("a", 0.0), shown("b", None)) == {}
    assert updates(acted([1.0], 1.0), acted([1.0], 0.0)) == {}


def test_item_that_helped_once_in_an_answer_helped() -> None:
    assert updates(shown("a", 1.0), shown("b", 0.0), shown("b", 1.0), shown("a", 1.0)) == {AB: True}


def test_later_revision_adds_only_the_pairs_that_are_new() -> None:
    steps = [shown("a", 1.0), shown("b", 1.0), shown("c", 1.0), shown("d", 0.0)]
    assert updates(*steps, taught={"a": 1.0, "b": 1.0}) == {AC: True, BC: True, ("c", "d"): False}
    assert updates(*steps, taught={"a": 1.0, "b": 1.0, "c": 1.0}) == {}
    assert updates(*steps[:2], steps[3], taught={"a": 1.0, "b": 0.0}) == {AB: True, ("b", "d"): False}


def test_weights_change_when_they_are_committed() -> None:
    edges = EdgeWeights()
    edges.update([EdgeUpdate(AB, True), EdgeUpdate(AB, True)])
    assert edges.weight("a", "b") == 0.0
    assert len(edges) == 0
    edges.commit()
    assert edges.weight("b", "a") == pytest.approx(0.05 + 0.05 * 0.95)
    assert len(edges) == 1
    edges.commit()
    assert edges.weight("a", "b") == pytest.approx(0.0975)
    edges.update([EdgeUpdate(AB, False)])
    edges.commit()
    assert edges.weight("a", "b") == pytest.approx(0.0975 * 0.98)


def test_scale_of_the_weights_is_a_setting() -> None:
    edges = EdgeWeights(0.1)
    edges.update([EdgeUpdate(AB, True)])
    edges.commit()
    assert edges.weight("a", "b") == pytest.approx(0.5)

"""The learned fusion's features: against their twins, and those against what the strategist learns with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sona_pg.errors import ConfigError, InvalidInput
from sona_pg.kernels import OutcomeNeighbours, fusion_features, reference
from sona_pg.learning.fusion import FEATURES
from sona_pg.learning.remembered import Remembered

from .fusion_by_items import Cosines, Neighbourhood, features
from .fusion_cases import BAD, COMPILED_AND_TWIN, CONFIG, INPUT_LAYOUTS, SIZES, Doubles
from .layouts import Array, bits

USUAL = {
    "neighbours": CONFIG.neighbours,
    "misses_near": CONFIG.misses_near,
    "vote_kernel": CONFIG.vote_kernel,
    "familiar_from": CONFIG.familiar_from,
    "familiar_width": CONFIG.familiar_width,
}


# ---- a world of remembered events ------------------------------------------------------------------------------------


def name(row: int) -> str:
    return f"i{row:04}"


def some_events(rng: np.random.Generator, m: int, count: int, nearest: float) -> list[Remembered]:
    """Events with items of a table of m and others, nearest first; some are equally near."""
    similarities = np.sort(np.round(rng.uniform(-0.4, nearest, count), 2))[::-1]
    return [
        Remembered(
            float(similarity),
            {name(row): float(rng.uniform(0.1, 1)) for row in rng.choice(m + 5, rng.integers(0, 4), replace=False)},
            [name(row) for row in rng.choice(m + 5, rng.integers(0, 6), replace=False)],
        )
        for similarity in similarities
    ]


def as_arrays(events: list[Remembered], m: int) -> tuple[Array, ...]:
    """The same events as rows of a table that holds the first m items."""

    def rows(items: list[str]) -> Array:
        return np.array([row if (row := int(item[1:])) < m else -1 for item in items], dtype=np.int64)

    def ends(sizes: list[int]) -> Array:
        return np.cumsum(sizes, dtype=np.int64)

    return (
        np.array([event.similarity for event in events], dtype=np.float64),
        ends([len(event.helped) for event in events]),
        rows([item for event in events for item in event.helped]),
        np.array([reward for event in events for reward in event.helped.values()], dtype=np.float64),
        ends([len(event.unhelpful) for event in events]),
        rows([item for event in events for item in event.unhelpful]),
    )


def unit_vector(rng: np.random.Generator) -> Doubles:
    vector = rng.standard_normal(24)
    return np.asarray(vector / np.linalg.norm(vector))


def make_case(rng: np.random.Generator, m: int, count: int = 20, nearest: float = 0.95) -> dict[str, Any]:
    """Arguments of `fusion_features` but the events, and these."""
    q, u = unit_vector(rng), unit_vector(rng)
    items = rng.standard_normal((m, 24))
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    return {
        "frozen": (items @ q).astype(np.float32),
        "adapted": (items @ u).astype(np.float32),
        "query_dot": float(q @ u),
        "rows": rng.permutation(m)[: (2 * m + 2) // 3].astype(np.int64),
        "counts": rng.integers(0, 4, m).astype(np.int64),
        "events": some_events(rng, m, count, nearest),
        "exact": (items, q, u),
    }


def call(case: dict[str, Any], kernel: str = "compiled", **changed: object) -> tuple[Doubles, float, float]:
    given = {key: value for key, value in {**case, **changed}.items() if key not in ("events", "exact")}
    arrays = as_arrays(case["events"], len(case["frozen"]))
    if kernel == "compiled":
        given.setdefault("near", OutcomeNeighbours(*arrays))  # type: ignore[arg-type]
        return fusion_features(**{**USUAL, **given})
    given.setdefault("near", reference.OutcomeNeighbours(*arrays))  # type: ignore[arg-type]
    return reference.fusion_features(**{**USUAL, **given})


def learned(case: dict[str, Any], without: frozenset[str] = frozenset()) -> tuple[Doubles, float, float]:
    """What the strategist makes of a case, as if the items of `without` had never been seen."""
    events = [event for event in case["events"] if not without & set(event.helped)]
    around = Neighbourhood(events[: CONFIG.neighbours], CONFIG)
    rows, g = case["rows"], around.gate
    frozen, adapted = case["frozen"][rows], case["adapted"][rows]
    norm = np.sqrt((1 - g) ** 2 + g**2 + 2 * g * (1 - g) * case["query_dot"])
    familiar = ((1 - g) * frozen.astype(np.float64) + g * adapted.astype(np.float64)) / norm
    names = [name(row) for row in rows]
    counts = [0 if item in without else count for item, count in zip(names, case["counts"][rows], strict=True)]
    best = float(frozen.max()) if len(rows) else 0.0
    # float64 in place of float32, so that what is compared is exact.
    cosines = Cosines(frozen, adapted.astype(np.float64), familiar)
    return features(names, cosines, around, counts, best), around.familiarity, around.gate


def assert_same(found: tuple[Doubles, float, float], expected: tuple[Doubles, float, float]) -> None:
    assert found[0].shape == expected[0].shape
    assert found[0].dtype == np.float64
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-12)
    assert found[1:] == pytest.approx(expected[1:], rel=0, abs=1e-15)


# ---- features --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("nearest", [0.95, 0.65, 0.3, -0.1])  # the ground is familiar, partly, not, and far
@COMPILED_AND_TWIN
def test_features_are_what_the_strategist_learns_with(
    kernel: str, nearest: float, m: int, isa: str, rng: np.random.Generator
) -> None:
    for count in (0, 1, 20):
        case = make_case(rng, m, count, nearest)
        found = call(case, kernel)
        assert found[0].shape == (len(case["rows"]), len(FEATURES))
        assert_same(found, learned(case))


@pytest.mark.parametrize("m", SIZES)
@COMPILED_AND_TWIN
def test_hidden_items_and_their_events_were_never_seen(kernel: str, m: int, rng: np.random.Generator) -> None:
    for share in (0.0, 0.1, 0.5, 1.0):
        case = make_case(rng, m, 30)
        hidden = (rng.random(m) < share).astype(np.uint8)
        without = frozenset(name(row) for row in np.flatnonzero(hidden))
        assert_same(call(case, kernel, hidden=hidden), learned(case, without))
        assert_same(call(case, kernel, hidden=hidden * 255), learned(case, without))


def test_familiar_cosine_is_that_of_the_query_between(rng: np.random.Generator) -> None:
    for nearest in (0.55, 0.6, 0.7, 0.79, 0.9):
        case = make_case(rng, 33, nearest=nearest)
        case["events"][:0] = [Remembered(nearest, {name(0): 1.0}, ())]
        table, _, gate = call(case)
        items, q, u = case["exact"]
        between = q + gate * (u - q)
        cosine = items[case["rows"]] @ (between / np.linalg.norm(between))
        np.testing.assert_allclose(table[:, 0] + table[:, 1], 20 * cosine, atol=2e-5)


def test_opposite_queries_have_no_direction_between(rng: np.random.Generator) -> None:
    case = make_case(rng, 9)
    case["events"] = [Remembered(0.75, {name(0): 1.0}, ())]
    halfway = {"query_dot": -1.0, "adapted": -case["frozen"], "familiar_from": 0.5, "familiar_width": 0.5}
    for query_dot in (-1.0, -1.0000002):
        table, _, gate = call(case, **{**halfway, "query_dot": query_dot})
        assert gate == 0.5
        np.testing.assert_allclose(table[:, 0] + table[:, 1], 0, atol=1e-12)


@COMPILED_AND_TWIN
def test_items_outside_the_table_have_votes_but_no_place(kernel: str, rng: np.random.Generator) -> None:
    case = make_case(rng, 7)
    case["rows"] = np.arange(7)
    case["events"] = [Remembered(1.0, {name(3): 1.0, name(8): 3.0}, (name(9), name(2)))]
    table, familiarity, gate = call(case, kernel)
    share = table[:, FEATURES.index("share of the vote")]
    assert share[3] == pytest.approx(0.25)
    assert not np.delete(share, 3).any()
    assert table[:, FEATURES.index("missed near .5")].nonzero()[0].tolist() == [2]
    assert (familiarity, gate) == (1.0, 1.0)


@COMPILED_AND_TWIN
def test_the_first_event_counts_even_at_a_similarity_of_zero_or_less(kernel: str, rng: np.random.Generator) -> None:
    case = make_case(rng, 3)
    case["rows"] = np.arange(3)
    # Rounding may put a nearer event second: the order holds, not the number.
    case["events"] = [
        Remembered(0.0, {name(0): 1.0}, (name(1),)),
        Remembered(0.9, {name(0): 1.0}, (name(1),)),
        Remembered(-0.5, {name(2): 1.0}, ()),
    ]
    table, familiarity, _ = call(case, kernel)
    assert familiarity == 0.0
    assert not table[:, [3, 4, 5, 11, 12]].any()


@pytest.mark.parametrize("neighbours", [0, 1, 3, 1000])
@pytest.mark.parametrize("misses_near", [0, 2, 1000])
def test_settings(neighbours: int, misses_near: int, rng: np.random.Generator) -> None:
    asked = {
        "neighbours": neighbours,
        "misses_near": misses_near,
        "vote_kernel": 1e-3,
        "familiar_from": 0.2,
        "familiar_width": 2.0,
    }
    case = make_case(rng, 17)
    hidden = (rng.random(17) < 0.2).astype(np.uint8)
    for flags in (None, hidden):
        assert_same(call(case, hidden=flags, **asked), call(case, "twin", hidden=flags, **asked))


@pytest.mark.parametrize("layout", INPUT_LAYOUTS)
def test_features_of_any_layout(layout: str, rng: np.random.Generator) -> None:
    case, change = make_case(rng, 17), INPUT_LAYOUTS[layout]
    case["hidden"] = (rng.random(17) < 0.2).astype(np.uint8)
    expected = call(case)
    near = OutcomeNeighbours(*map(change, as_arrays(case["events"], 17)))
    changed = {key: change(case[key]) for key in ("frozen", "adapted", "rows", "counts", "hidden")}
    found = call(case, near=near, **changed)
    assert bits(found[0]) == bits(expected[0])
    assert found[1:] == expected[1:]


def test_rows_may_repeat(rng: np.random.Generator) -> None:
    case = make_case(rng, 9)
    case["rows"] = np.array([4, 4, 0, 8, 4])
    assert_same(call(case), call(case, "twin"))


def test_bad_features_are_refused(isa: str, rng: np.random.Generator) -> None:
    case = make_case(rng, 17)
    for what in ("frozen", "adapted"):
        for bad in BAD:
            for place in (0, 8, 16):
                wrong = case[what].copy()
                wrong[place] = bad
                with pytest.raises(InvalidInput, match="a cosine is NaN or infinite"):
                    call(case, **{what: wrong})
    for bad in BAD:
        with pytest.raises(InvalidInput, match="a cosine is NaN or infinite"):
            call(case, query_dot=bad)
    for row in (-1, 17, 1 << 40, -(1 << 63)):
        with pytest.raises(InvalidInput, match=f"candidate {row} of a table of 17, expected 0 to 16"):
            call(case, rows=np.array([3, row]))
    with pytest.raises(InvalidInput, match="helped -1 times"):
        call(case, counts=np.full(17, -1))
    for what in ("adapted", "counts"):
        with pytest.raises(InvalidInput, match=f"{what} has 16 items, expected the table's 17"):
            call(case, **{what: case[what][:16]})
    with pytest.raises(InvalidInput, match="hidden has 18 items"):
        call(case, hidden=np.zeros(18, np.uint8))
    for what, dtype in (
        ("frozen", "float64"),
        ("adapted", "float16"),
        ("rows", "int32"),
        ("rows", "uint64"),
        ("counts", "float64"),
    ):
        with pytest.raises(InvalidInput, match=f"{what} is {dtype}, expected an array of"):
            call(case, **{what: case[what].astype(dtype)})
    for what in ("frozen", "rows", "counts"):
        with pytest.raises(InvalidInput, match=f"{what} is list"):
            call(case, **{what: case[what].tolist()})
        with pytest.raises(InvalidInput, match=f"{what} has shape .*expected 1 dimension$"):
            call(case, **{what: case[what][None]})
    with pytest.raises(InvalidInput, match="hidden is bool, expected an array of uint8"):
        call(case, hidden=np.zeros(17, bool))
    with pytest.raises(TypeError):
        call(case, near=None)


def test_bad_settings_are_refused(rng: np.random.Generator) -> None:
    case = make_case(rng, 9)
    for what in ("neighbours", "misses_near"):
        with pytest.raises(ConfigError, match="expected at least 0"):
            call(case, **{what: -1})
    for what in ("vote_kernel", "familiar_width"):
        for bad in (0.0, -1.0, *BAD):
            with pytest.raises(ConfigError, match="expected above 0"):
                call(case, **{what: bad})
    for bad in BAD:
        with pytest.raises(ConfigError, match="finite"):
            call(case, familiar_from=bad)


def test_votes_that_overflow_are_refused(rng: np.random.Generator) -> None:
    case = make_case(rng, 9)
    case["events"] = [Remembered(1e6, {name(0): 1.0}, ())]
    with pytest.raises(InvalidInput, match="the votes overflow"):
        call(case)


# ---- the events ------------------------------------------------------------------------------------------------------


def test_visible_events(rng: np.random.Generator) -> None:
    for m in SIZES:
        arrays = as_arrays(some_events(rng, m, 25, 0.9), m)
        near, twin = OutcomeNeighbours(*arrays), reference.OutcomeNeighbours(*arrays)  # type: ignore[arg-type]
        assert len(near) == 25
        for share in (None, 0.0, 0.1, 1.0):
            hidden = None if share is None else (rng.random(m) < share).astype(np.uint8)
            for neighbours in (0, 1, 12, 25, 1000):
                found = near.visible(hidden, neighbours)
                assert found.dtype == np.int64
                assert found.tolist() == twin.visible(hidden, neighbours).tolist()
                if hidden is None:
                    assert found.tolist() == list(range(min(neighbours, 25)))


def test_what_helped_in_events(rng: np.random.Generator) -> None:
    events = some_events(rng, 12, 9, 0.9)
    near = OutcomeNeighbours(*as_arrays(events, 10))
    for positions in ([], [0], [8, 2, 2], list(range(9))):
        found = near.helped(np.array(positions, dtype=np.int64), 10)
        helped = {item for at in positions for item in events[at].helped}
        assert [bool(flag) for flag in found] == [name(row) in helped for row in range(10)]
    for bad in (-1, 9):
        with pytest.raises(InvalidInput, match="event"):
            near.helped(np.array([bad]), 10)
    with pytest.raises(InvalidInput, match="table"):
        near.helped(np.arange(9), 0)


def test_events_are_held_as_they_were(rng: np.random.Generator) -> None:
    case = make_case(rng, 17)
    arrays = as_arrays(case["events"], 17)
    near = OutcomeNeighbours(*arrays)  # type: ignore[arg-type]
    before = call(case, near=near)
    fields = (
        near.similarities,
        near.help_ends,
        near.help_items,
        near.help_rewards,
        near.miss_ends,
        near.miss_items,
    )
    for array, field in zip(arrays, fields, strict=True):
        assert bits(array) == bits(field)
        array[...] = 99
        with pytest.raises(ValueError, match="read-only"):
            field[...] = 99
    with pytest.raises(AttributeError):
        near.help_items = arrays[2]  # type: ignore[assignment]
    assert bits(call(case, near=near)[0]) == bits(before[0])


def test_nothing_remembered() -> None:
    none, rows = np.zeros(0), np.zeros(0, np.int64)
    near = OutcomeNeighbours(none, rows, rows, none, rows, rows)
    assert len(near) == 0
    assert near.visible(None, 5).tolist() == near.visible(np.zeros(0, np.uint8), 5).tolist() == []
    table, familiarity, gate = fusion_features(
        np.zeros(0, np.float32), np.zeros(0, np.float32), 1.0, rows, near, rows, **USUAL
    )
    assert (table.shape, familiarity, gate) == ((0, 18), 0.0, 0.0)


def test_bad_events_are_refused() -> None:
    good: dict[str, Any] = {
        "similarities": np.array([0.9, 0.8]),
        "help_ends": np.array([1, 3]),
        "help_items": np.array([0, -1, 4]),
        "help_rewards": np.array([1.0, 0.5, 0.1]),
        "miss_ends": np.array([0, 2]),
        "miss_items": np.array([5, -1]),
    }
    near = OutcomeNeighbours(**good)

    def refused(message: str, **wrong: object) -> None:
        with pytest.raises(InvalidInput, match=message):
            OutcomeNeighbours(**{**good, **wrong})

    for bad in BAD:
        refused("similarity .*expected a finite cosine", similarities=np.array([0.9, bad]))
    for bad in (0.0, -1.0, *BAD):
        refused("reward .*expected a finite number above 0", help_rewards=np.array([1.0, bad, 1.0]))
    refused("3 helped with 2 rewards", help_rewards=np.ones(2))
    for what, size in (("help", 3), ("miss", 2)):
        refused(f"{what}_ends has 1 events, expected 2", **{f"{what}_ends": np.array([size])})
        refused(f"{what}_ends falls from 4 to {size}", **{f"{what}_ends": np.array([4, size])})
        refused(f"{what}_ends falls from 0 to -1", **{f"{what}_ends": np.array([-1, size])})
        refused(f"{what}_ends ends at {size + 1}", **{f"{what}_ends": np.array([1, size + 1])})
        refused(f"{what}_ends ends at 1", **{f"{what}_ends": np.array([0, 1])})
        refused(f"{what}_items holds -2", **{f"{what}_items": np.full(size, -2)})
        refused(f"{what}_ends is float64", **{f"{what}_ends": np.array([0.0, size])})
        refused(f"{what}_items is int32", **{f"{what}_items": np.zeros(size, np.int32)})
    refused("similarities is float32", similarities=np.zeros(2, np.float32))
    refused("similarities has shape", similarities=np.zeros((2, 1)))
    refused("help_rewards is NoneType", help_rewards=None)
    for m in (0, 5):
        with pytest.raises(InvalidInput, match=f"names item 5 of a table of {m}"):
            near.visible(np.zeros(m, np.uint8), 2)
    with pytest.raises(InvalidInput, match="names item 5 of a table of 5"):
        fusion_features(
            np.zeros(5, np.float32), np.zeros(5, np.float32), 1.0, np.arange(5), near, np.zeros(5, np.int64), **USUAL
        )
    assert near.visible(np.zeros(6, np.uint8), 2).tolist() == [0, 1]
    with pytest.raises(ConfigError, match="-1 neighbours"):
        near.visible(None, -1)
    with pytest.raises(InvalidInput, match="hidden is float64"):
        near.visible(np.zeros(6), 2)  # type: ignore[arg-type]

"""Why an answer was what it was: what answered and on which evidence, and what moved its items by how much."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import numpy as np
import pytest

from sona_pg.engine import Recall
from sona_pg.kernels.reference import fusion_features
from sona_pg.learning.remembered import Remembered, Surroundings
from sona_pg.store import spaces
from sona_pg.store.connection import Connection, connect
from sona_pg.store.reader import read
from sona_pg.store.strategy_settings import claim_settings
from sona_pg.store.why import Why, why

from .answered import LEARNED, _answered, _publish
from .command_line import sona
from .recurring import World


@pytest.fixture(scope="module")
def taught(url: str) -> Iterator[World]:
    """A space in which the fusion is proven, and which has gone on learning since it was published and answered."""
    world = World(url, f"why_{uuid.uuid4().hex[:8]}", control_share=0)
    world.teach(240)
    yield world
    world.engine.close()


@pytest.fixture(scope="module")
def told(taught: World) -> tuple[Recall, Why]:
    """An answer by a version that had learned all that there was, and why; asked when more was learned."""
    _publish(taught)
    found, id = _answered(taught)
    taught.teach(40)
    return found, taught.engine.why(id)


def test_it_says_what_answered_and_what_it_was_worth(taught: World, told: tuple[Recall, Why]) -> None:
    found, answer = told
    assert (answer.trajectory_id, answer.space) == (found.trajectory_id, taught.name)
    assert (answer.strategy, answer.arm, answer.propensity, answer.setting) == ("fusion", "learned", 1.0, "learned")
    assert (answer.version, answer.cause, answer.explained_by) == (found.answer.version, "a test", answer.version)
    assert answer.version > 0
    assert answer.published_at is not None
    assert answer.published_at < answer.answered_at <= answer.recorded_at
    assert answer.worth == 1.0
    assert answer.gain is not None
    assert answer.events == 240
    assert answer.notes == ()


def test_it_says_on_which_evidence(taught: World, told: tuple[Recall, Why]) -> None:
    _, answer = told
    turns = taught.rows(
        "SELECT reason, created_at, trajectory_id FROM sona.turns WHERE space = %(name)s AND after = 'fusion'"
        " AND region IS NULL ORDER BY ordinal"
    )
    assert (answer.reason.text, answer.reason.since, answer.reason.trajectory_id) == turns[-1]
    assert (answer.reason.kind, answer.reason.region) == ("turn", None)
    gains = {s.strategy: s for s in answer.strategies}
    assert set(gains) == {"frozen", *LEARNED}
    assert [s.gain for s in answer.strategies] == sorted((s.gain for s in answer.strategies), reverse=True)
    assert {s.events for s in answer.strategies} == {240}
    assert gains["fusion"].gain > gains["frozen"].gain == 0.0


def test_it_says_where_the_frozen_embedding_would_have_shown_the_items(taught: World, told: tuple[Recall, Why]) -> None:
    found, answer = told
    frozen = [str(row) for row in np.argsort(-(taught.items @ found.query), kind="stable")]
    assert [item.item_id for item in answer.items] == [item.item_id for item in found.items]
    for item, shown in zip(answer.items, found.items, strict=True):
        assert (item.place, item.score) == (shown.rank, pytest.approx(shown.score, abs=1e-7))
        place = 1 + frozen.index(item.item_id)
        assert item.frozen_place == (place if place <= 100 else None)
        assert item.moved == (place - shown.rank if place <= 100 else None)
        assert item.frozen == pytest.approx(float(taught.items[int(item.item_id)] @ found.query), abs=1e-6)
    assert [item.item_id for item in answer.dropped] == [
        item for item in frozen[:10] if item not in {shown.item_id for shown in found.items}
    ]
    assert {item.place for item in answer.dropped} == {None}
    assert [item.frozen_place for item in answer.dropped] == [1 + frozen.index(item.item_id) for item in answer.dropped]


def test_the_neighbours_are_those_that_were_remembered_by_then(taught: World, told: tuple[Recall, Why]) -> None:
    found, answer = told
    rows = taught.rows("SELECT trajectory_id, embedding::text, helped FROM sona.remembered_query"
                       " WHERE space_id = %(space)s AND ordinal < 240 ORDER BY ordinal")  # fmt: skip
    assert len(rows) == 240
    queries = np.array([json.loads(str(row[1])) for row in rows], dtype=np.float32)
    nearest = np.argsort(-(queries @ found.query), kind="stable")[:10]
    assert [near.trajectory_id for near in answer.neighbours] == [rows[n][0] for n in nearest]
    np.testing.assert_allclose(
        [near.similarity for near in answer.neighbours], (queries @ found.query)[nearest], atol=1e-6
    )
    assert [list(near.helped) for near in answer.neighbours] == [rows[n][2] for n in nearest]
    assert all(near.answered_at is not None and near.answered_at < answer.answered_at for near in answer.neighbours)
    assert taught.engine.why(answer.neighbours[0].trajectory_id).trajectory_id == answer.neighbours[0].trajectory_id


def test_the_parts_of_a_fusion_are_those_of_an_independent_computation(
    taught: World, told: tuple[Recall, Why], connection: Connection
) -> None:
    found, answer = told
    space, query = taught.engine.space, found.query.astype(np.float64)
    config = claim_settings(connection, space, None)
    rows = connection.execute(
        "SELECT down, up FROM sona.version_row WHERE space_id = %s AND version = %s AND tier = 'proven'",
        (space.space_id, answer.version),
        binary=True,
    ).fetchall()
    adapted = query + sum((query @ down) * up.astype(np.float64) for down, up in rows)
    adapted /= np.linalg.norm(adapted)
    version = connection.execute(
        "SELECT weights, unseen FROM sona.adapter_version WHERE space_id = %s AND version = %s",
        (space.space_id, answer.version),
    ).fetchone()
    assert version is not None
    memory = connection.execute(
        "SELECT embedding, helped, rewards, unhelpful FROM sona.remembered_query"
        " WHERE space_id = %s AND ordinal < 240 ORDER BY ordinal",
        (space.space_id,),
        binary=True,
    ).fetchall()
    events = [Remembered(float(e @ query), dict(zip(h, r, strict=True)), u) for e, h, r, u in memory]
    events.sort(key=lambda event: -event.similarity)
    times: dict[str, int] = {}
    for event in events:
        for item in event.helped:
            times[item] = times.get(item, 0) + 1
    nearest = [str(row) for row in np.argsort(-(taught.items @ query))[: config.candidates]]
    listed = {item for event in events[: config.neighbours] for item in event.helped}
    around = Surroundings(
        nearest, events[: config.neighbours], {i: taught.items[int(i)] for i in {*nearest, *listed}}, times
    )
    candidates = around.candidates(config.neighbours)
    table, _, gate = fusion_features(
        around.embeddings @ query,
        around.embeddings @ adapted,
        float(adapted @ query),
        candidates,
        around.near,
        around.times_helped,
        neighbours=config.neighbours,
        misses_near=config.misses_near,
        vote_kernel=config.vote_kernel,
        familiar_from=config.familiar_from,
        familiar_width=config.familiar_width,
    )
    weights, unseen = np.array(version[0]), version[1]
    share = gate + (1 - gate) * unseen
    by_adapter = dict(
        zip((around.items[row] for row in candidates), share * table[:, 1:3] @ weights[1:3] / 20, strict=True)
    )
    by_memory = dict(
        zip((around.items[row] for row in candidates), share * table[:, 3:] @ weights[3:] / 20, strict=True)
    )
    assert max(abs(part) for part in by_memory.values()) > 0.1
    assert max(abs(part) for part in by_adapter.values()) > 0.01
    assert {item.item_id for item in answer.items} <= set(by_memory)
    for item in (*answer.items, *answer.dropped):
        assert item.adapter == pytest.approx(by_adapter[item.item_id], abs=1e-6)
        assert item.memory == pytest.approx(by_memory[item.item_id], abs=1e-6)
        assert item.frozen is not None
        assert item.cosine == pytest.approx((1 - share + share * weights[0]) * item.frozen, abs=1e-6)
        if item.place is not None:
            # What was shown, with the score that it had then: nothing is left over.
            assert item.score == pytest.approx(
                item.cosine + by_adapter[item.item_id] + by_memory[item.item_id], abs=1e-6
            )
            assert item.rest == pytest.approx(0, abs=1e-6)


def test_it_says_which_neighbours_helped_an_item(taught: World, told: tuple[Recall, Why]) -> None:
    _, answer = told
    best = answer.items[0]
    assert best.item_id == str(taught.answers[0])
    helped = [near.trajectory_id for near in answer.neighbours if best.item_id in near.helped]
    assert list(best.helped_in[: len(helped)]) == helped
    assert len(helped) > 3
    missed = {item.item_id: item.missed_in for item in answer.items}
    for near in answer.neighbours:
        for item in set(near.unhelpful) & set(missed):
            assert near.trajectory_id in missed[item]


@pytest.mark.parametrize("strategy", ["frozen", *LEARNED])
def test_the_parts_of_every_strategy_add_up_to_what_was_shown(
    taught: World, told: tuple[Recall, Why], connection: Connection, strategy: str
) -> None:
    spaces.set_strategy(connection, taught.name, strategy)
    try:
        version = _publish(taught)
        found, id = _answered(taught, 3)
        taught.teach(10)
    finally:
        spaces.set_strategy(connection, taught.name, "learned")
        taught.engine.flush()
    answer = taught.engine.why(id)
    assert (answer.strategy, answer.setting, answer.version) == (strategy, strategy, version)
    assert answer.explained_by == (None if strategy in ("frozen", "boosted", "related") else version)
    assert (answer.reason.kind, answer.reason.text) == ("setting", f"the space was set to {strategy}")
    assert answer.reason.actor is not None
    assert answer.notes == ()
    adapter, memory = ([getattr(item, part) for item in answer.items] for part in ("adapter", "memory"))
    assert any(adapter) == (strategy not in ("frozen", "boosted", "related"))
    # Nothing has helped together here: the graph gives nothing, but for rounding.
    assert any(abs(part) > 1e-6 for part in memory) == (strategy in ("boosted", "fusion"))
    for item, shown in zip(answer.items, found.items, strict=True):
        assert item.score == pytest.approx(shown.score, abs=1e-7)
        assert item.rest == pytest.approx(0, abs=1e-6)
        if strategy != "fusion":
            assert item.cosine == item.frozen
    if strategy == "frozen":
        assert {item.moved for item in answer.items} == {0}
        assert answer.dropped == ()


def test_what_changes_later_does_not_change_why(
    taught: World, told: tuple[Recall, Why], connection: Connection
) -> None:
    found, answer = told
    for strategy in ("stake", "learned"):
        spaces.set_strategy(connection, taught.name, strategy)
        assert read(connection, why, found.trajectory_id) == answer
    taught.engine.flush()


def test_an_index_of_the_memory_finds_the_same_neighbours(
    taught: World, told: tuple[Recall, Why], connection: Connection
) -> None:
    found, answer = told
    connection.execute("SELECT sona.admit_queries(%s, 0)", (taught.name,))
    assert taught.rows("SELECT sona._queries_index(%(space)s) IS NOT NULL") == [(True,)]
    assert read(connection, why, found.trajectory_id) == answer
    # Most of what is near came later: what an index finds there is not enough.
    first = taught.rows("SELECT trajectory_id FROM sona.remembered_query WHERE space_id = %(space)s AND ordinal = 25")
    early = read(connection, why, uuid.UUID(str(first[0][0])))
    assert len(early.neighbours) == 10
    assert all(near.answered_at is not None and near.answered_at < early.answered_at for near in early.neighbours)


def test_it_writes_nothing(told: tuple[Recall, Why], url: str) -> None:
    with connect(url) as connection, connection.transaction():
        connection.execute("SET TRANSACTION READ ONLY")
        assert read(connection, why, told[0].trajectory_id) == told[1]


def test_the_command_prints_a_page_for_people_and_a_document_for_programs(
    taught: World, told: tuple[Recall, Why]
) -> None:
    found, answer = told
    page = sona("why", str(found.trajectory_id), url=taught.url)
    assert page.returncode == 0, page.stderr
    paragraph, *_ = page.stdout.split("\n\n")
    for part in (
        f"version {answer.version} (a test",
        "the learned arm",
        "worth 1.00",
        "nDCG@10 above frozen on 240 events",
    ):
        assert part in " ".join(paragraph.split())
    assert " ".join(answer.reason.text.split()) in " ".join(paragraph.split())
    best = answer.items[0]
    assert best.adapter is not None
    line = next(line for line in page.stdout.splitlines() if line.split()[:2] == ["1", best.item_id])
    assert line.split()[2:8] == [
        str(best.frozen_place), f"{best.moved:+d}", f"{best.score:.3f}", f"{best.cosine:.3f}", f"{best.adapter:+.3f}",
        f"{best.memory:+.3f}",
    ]  # fmt: skip
    assert str(answer.neighbours[0].trajectory_id) in page.stdout
    document = sona("why", str(found.trajectory_id), "--space", taught.name, "--json", url=taught.url)
    read = json.loads(document.stdout)
    assert read["reason"]["text"] == answer.reason.text
    assert [item["memory"] for item in read["items"]] == [item.memory for item in answer.items]
    assert read["neighbours"][0]["trajectory_id"] == str(answer.neighbours[0].trajectory_id)
    unknown = sona("why", str(uuid.uuid4()), url=taught.url)
    assert unknown.returncode == 1
    assert "there is no trajectory" in unknown.stderr
    assert sona("why", "nonsense", url=taught.url).returncode == 2

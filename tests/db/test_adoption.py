"""What the background loop makes is taken over by the strategist, in the order of the ledger, and nothing is lost."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from sona_pg import SonaEngine, SpaceConfig, StrategyConfig
from sona_pg.config import BackgroundConfig
from sona_pg.learning.strategist import Strategist
from sona_pg.loops.background import background_loop
from sona_pg.store.connection import Connection, connect
from sona_pg.store.strategist import strategist_transaction

from .cycles import run_cycle
from .own_spaces import connection as connection
from .vectors import unit

DIM, ITEMS, QUESTIONS = 16, 100, 6
_tables = itertools.count()

Vector = NDArray[np.float32]


class _World:
    """Questions apart from each other; what answers one is near it."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.rng = url, np.random.default_rng(0)
        self.items = unit(self.rng.standard_normal((ITEMS, DIM)))
        self.topics = self.items[:QUESTIONS]
        table = f"public.adoption_{next(_tables)}"
        with connect(url) as connection:
            connection.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, embedding vector)")
            connection.cursor().executemany(f"INSERT INTO {table} VALUES (%s, %s)", list(enumerate(self.items)))
        self.engine = SonaEngine.connect(
            url,
            space=name,
            dim=DIM,
            background=False,
            space_config=SpaceConfig(control_share=0.0),
            strategy=StrategyConfig(regions=8),
        )
        self.engine.set_items(table, "id", "embedding")

    def teach(self, events: int) -> None:
        for event in range(events):
            question = event % QUESTIONS
            query = unit(self.topics[question] + 0.02 * self.rng.standard_normal(DIM))
            self.engine.record(self.engine.recall(query), rewards={str(question): 1.0})
        self.engine.flush()

    def cycle(self) -> str:
        return run_cycle(self.url, self.engine.space.name, background_loop(BackgroundConfig(minimum=1))).state

    def strategist(self) -> Strategist:
        """As the database has it."""
        with connect(self.url) as connection, strategist_transaction(connection, self.engine.space) as transaction:
            assert transaction is not None
            state = transaction.state()
        assert state is not None
        return self.loaded(bytes(state))

    def loaded(self, state: bytes) -> Strategist:
        instant = self.engine.instant
        made = Strategist(instant.learner.pool, StrategyConfig(regions=8), instant.adapter_config)
        made.load_bytes(state)
        return made


@pytest.fixture
def world(module_url: str, connection: Connection, space_name: str) -> Iterator[_World]:
    made = _World(module_url, space_name)
    yield made
    made.engine.close()


def _regions(connection: Connection, world: _World) -> list[tuple[int, int, float, str, int | None]]:
    return connection.execute(
        "SELECT region, events, gain, verdict, pattern_id FROM sona.regions WHERE space = %s ORDER BY region",
        (world.engine.space.name,),
    ).fetchall()


def test_regions_become_patterns_and_what_is_known_of_them_stays(world: _World, connection: Connection) -> None:
    world.teach(120)
    before = world.strategist().to_bytes()
    known = _regions(connection, world)
    assert len(known) == QUESTIONS
    assert {pattern for *_, pattern in known} == {None}
    assert world.cycle() == "done"
    # Nothing new is in the ledger, and the patterns are taken over all the same.
    assert world.engine.evidence.advance() == 0
    found = _regions(connection, world)
    assert [row[:4] for row in found] == [row[:4] for row in known]
    patterns = dict(
        connection.execute(
            "SELECT p.pattern_id, p.centroid FROM sona.patterns v JOIN sona.pattern p USING (pattern_id)"
            " JOIN sona.space s ON s.space_id = p.space_id AND s.name = v.space WHERE v.space = %s",
            (world.engine.space.name,),
        ).fetchall()
    )
    assert sorted(pattern for *_, pattern in found if pattern is not None) == sorted(patterns)
    after = world.strategist()
    for row, region in zip(found, after.describe().regions, strict=True):
        assert region.pattern == row[4]
        assert float(np.dot(region.centroid, patterns[row[4]])) > 1 - 1e-5
    old = world.loaded(before)
    assert [(r.events, r.gain, r.verdict) for r in after.describe().regions] == [
        (r.events, r.gain, r.verdict) for r in old.describe().regions
    ]


def test_a_process_that_holds_a_copy_takes_patterns_over_and_goes_on_with_them(
    world: _World, connection: Connection, module_url: str
) -> None:
    world.teach(60)
    with SonaEngine.connect(module_url, space=world.engine.space.name, background=False) as other:
        assert world.cycle() == "done"
        other.evidence.advance()
        first = _regions(connection, world)
        assert None not in {pattern for *_, pattern in first}
        # The copy of this process is older: it must not write what it holds over that.
        world.teach(30)
        second = _regions(connection, world)
        assert [row[4] for row in second[: len(first)]] == [row[4] for row in first]
        assert sum(row[1] for row in second) == 90
        assert world.cycle() == "done"
        world.teach(6)
        assert sum(row[1] for row in _regions(connection, world)) == 96


def test_who_is_forgotten_takes_the_patterns_of_the_regions_along(world: _World, connection: Connection) -> None:
    world.teach(60)
    world.engine.record(world.topics[0], ["0"], rewards=[1.0], user_id="u")
    world.engine.flush()
    assert world.cycle() == "done"
    world.engine.evidence.advance()
    world.engine.forget("u")
    found = _regions(connection, world)
    assert sum(row[1] for row in found) == 60
    assert {pattern for *_, pattern in found} == {None}
    assert world.cycle() == "done"
    world.engine.evidence.advance()
    assert None not in {pattern for *_, pattern in _regions(connection, world)}

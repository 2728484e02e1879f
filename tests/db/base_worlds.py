"""A space whose answers are turned in a few planes, for the base of loop B to learn."""

from __future__ import annotations

import itertools
import uuid
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sona_pg import SonaEngine, SpaceConfig
from sona_pg.config import BackgroundConfig, BaseTrainingConfig, GateConfig
from sona_pg.learning import base_cycle
from sona_pg.learning.base_cycle import BaseConfig, Candidate, Hour
from sona_pg.learning.learner import Learner
from sona_pg.loops import base
from sona_pg.loops.background import background_loop
from sona_pg.loops.cycle import Loop
from sona_pg.store.connection import Connection, connect
from sona_pg.store.learning import read_state

from .cycles import run_cycle
from .own_spaces import connection as connection
from .vectors import unit

DIM, ITEMS = 24, 200
RANK = 6
LOOP = background_loop(
    BackgroundConfig(minimum=1),
    base=BaseConfig(
        training=BaseTrainingConfig(rank=RANK, reservoir=400),
        gate=GateConfig(withheld=0.2, losing_z=4.0),
    ),
)
_tables = itertools.count()

Vector = NDArray[np.float32]


class World:
    """What answers a query is the item it comes from, turned in the planes in which items differ most."""

    def __init__(self, url: str, name: str, seed: int = 0) -> None:
        self.url, self.rng = url, np.random.default_rng(seed)
        # What is withheld and what stays in a sample goes by ids: the same in every run of a test, whatever ran before.
        self._ids = np.random.default_rng([seed, zlib.crc32(name.rstrip("0123456789").encode())])
        self.items = unit(self.rng.standard_normal((ITEMS, DIM)) * ([3.0] * 8 + [1.0] * (DIM - 8)))
        self.moved = np.zeros(DIM)
        """What all queries have in common."""
        table = f"public.base_{next(_tables)}"
        with connect(url) as connection:
            connection.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, embedding vector)")
            connection.cursor().executemany(f"INSERT INTO {table} VALUES (%s, %s)", list(enumerate(self.items)))
        self.engine = SonaEngine.connect(
            url,
            space=name,
            dim=DIM,
            background=False,
            space_config=SpaceConfig(control_share=0.0, implicit_feedback=True, strategy="adapted"),
        )
        self.engine.set_items(table, "id", "embedding")

    def ask(self, item: int) -> Vector:
        query, x, y = self.items[item].copy(), self.items[item, 0:8:2], self.items[item, 1:8:2]
        query[0:8:2], query[1:8:2] = 0.4 * x - 0.9 * y, 0.9 * x + 0.4 * y
        return unit(query + 0.05 * self.rng.standard_normal(DIM) + self.moved)

    def teach(self, events: int, user: str | None = None, *, shuffled: bool = False) -> None:
        wanted = self.rng.integers(0, ITEMS // 2, events)
        helped = self.rng.permutation(wanted) if shuffled else wanted
        for item, answer in zip(wanted, helped, strict=True):
            id = uuid.UUID(bytes=self._ids.bytes(16), version=4)
            found = replace(self.engine.recall(self.ask(int(item))), trajectory_id=id)
            self.engine.record(found, rewards={str(answer): 1.0}, user_id=user)
        self.engine.flush()

    def quality(self, engine: SonaEngine | None = None) -> float:
        """Mean reciprocal rank over items that nobody asked for."""
        queries = np.stack([self.ask(item) for item in range(ITEMS // 2, ITEMS)])
        scores = unit((engine or self.engine).adapt(queries)) @ self.items.T
        own = scores[np.arange(len(queries)), np.arange(ITEMS // 2, ITEMS)]
        return float((1 / (scores >= own[:, np.newaxis]).sum(axis=1)).mean())

    def cycle(self, loop: Loop = LOOP) -> dict[str, Any]:
        """Facts of a cycle that is asked for."""
        found = run_cycle(self.url, self.engine.space.name, loop)
        assert found.state == "done", found.reason
        return found.facts

    def learner(self) -> Learner:
        """As the database has it."""
        own = self.engine.instant.learner
        made = own.anew(own.pool)
        with connect(self.url) as connection:
            state = read_state(connection, self.engine.space)
        assert state is not None
        made.load_bytes(state)
        return made


def _meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something in every cycle, after it has read and before it writes."""
    train = base_cycle.train_base

    def trained(*args: object, **kwargs: object) -> object:
        made = train(*args, **kwargs)  # type: ignore[arg-type]
        act()
        return made

    monkeypatch.setattr(base_cycle, "train_base", trained)


def _became(connection: Connection, world: World, learned: str, since: int = 0) -> list[uuid.UUID]:
    rows = connection.execute(
        "SELECT e.trajectory_id FROM sona.learning_event e JOIN sona.space s USING (space_id)"
        " WHERE s.name = %s AND e.learned = %s AND e.ordinal >= %s ORDER BY e.ordinal",
        (world.engine.space.name, learned, since),
    ).fetchall()
    return [id for (id,) in rows]


def _hours(monkeypatch: pytest.MonkeyPatch) -> list[Hour]:
    """What cycles begin with from now on."""
    hours: list[Hour] = []
    make = base.make_candidate

    def made(hour: Hour, *args: object, **kwargs: object) -> Candidate | None:
        hours.append(hour)
        return make(hour, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(base, "make_candidate", made)
    return hours

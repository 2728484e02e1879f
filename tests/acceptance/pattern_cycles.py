"""Chaos for the background loop: its workers are killed while outcomes are recorded. Every outcome is in the patterns
once, and a replay of the cycles gives the patterns that are stored; a replay of the ledger from the last base on gives
the learner that is stored.

``python -m tests.acceptance.pattern_cycles`` runs the full form and exits with 1 on a violation; the tests a short one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import numpy as np

from sona_pg.config import PatternConfig, StoreConfig, VerdictConfig
from sona_pg.learning.learner import Learner
from sona_pg.learning.outcome_shard import HeldShards, OutcomeShard
from sona_pg.learning.patterns import LearnedPattern
from sona_pg.learning.recommendation import recommending
from sona_pg.learning.resumed_bank import ResumedBank
from sona_pg.learning.verdicts import Verdict
from sona_pg.loops.background import BACKGROUND
from sona_pg.store import spaces
from sona_pg.store.database import Database
from sona_pg.store.learning import read_state
from sona_pg.store.ledger import TAUGHT, ledger_events
from sona_pg.store.pattern_reader import KnownOutcome, PatternReader
from sona_pg.store.patterns import PatternState
from sona_pg.store.versions import read_version
from sona_pg.worker import InstantWorker

from . import background_worker
from .audit import MANY
from .cycle_chaos import PATIENCE_SECONDS, CycleChaos, main

DIM = 24
MODELS = 7
SCORE_DELAY = 10
"""Trajectory n comes with a late score of trajectory n - SCORE_DELAY of the same space."""

ITEMS = np.random.default_rng(0).standard_normal((12, DIM)).astype(np.float32)
"""Three of them are shown, and the one that is nearest to the query has helped."""

NEW_TOPIC_EVERY = 25
"""After so many trajectories of a space they are about one topic more, so that there are always new patterns."""

_ALWAYS = {
    "the supports of the patterns and what waits are not the outcomes that were taken in": (
        "SELECT coalesce((SELECT sum(support) FROM sona.pattern p WHERE p.space_id = s.space_id), 0)"
        " + cardinality(s.waiting) = (SELECT count(*) FROM sona.answer_outcome o WHERE o.space_id = s.space_id"
        " AND o.ordinal < s.consumed) FROM sona.pattern_state s WHERE s.space_id = %(space)s"
    ),
    "what waits is no outcome that was taken in, or waits twice": (
        "SELECT cardinality(s.waiting) = (SELECT count(*) FROM sona.answer_outcome o WHERE o.space_id = s.space_id"
        " AND o.ordinal < s.consumed AND o.ordinal = ANY(s.waiting)) FROM sona.pattern_state s"
        " WHERE s.space_id = %(space)s"
    ),
    "a model was counted more or less often than it was used": (
        "SELECT NOT EXISTS (SELECT FROM"
        " (SELECT v.value, sum(v.support) AS times FROM sona.verdicts v JOIN sona.space x ON x.name = v.space"
        "  WHERE x.space_id = s.space_id AND v.parameter = 'model' GROUP BY 1) counted"
        " FULL JOIN (SELECT t.metadata -> 'parameters' -> 'model' AS value, count(*) AS times"
        "  FROM sona.answer_outcome o JOIN sona.trajectory t USING (space_id, trajectory_id)"
        "  WHERE o.space_id = s.space_id AND o.ordinal < s.consumed AND o.ordinal <> ALL(s.waiting)"
        "  GROUP BY 1) used USING (value)"
        " WHERE counted.times IS DISTINCT FROM used.times) FROM sona.pattern_state s WHERE s.space_id = %(space)s"
    ),
    "two patterns are one": (
        "SELECT NOT EXISTS (SELECT FROM sona.pattern p JOIN sona.pattern q USING (space_id)"
        " WHERE p.space_id = %(space)s AND p.pattern_id < q.pattern_id AND 1 - (p.centroid <=> q.centroid) > %(same)s)"
    ),
    "an id was given twice, or to a pattern that nobody made": (
        "SELECT NOT EXISTS (SELECT FROM (SELECT pattern_id, count(*) FILTER (WHERE event = 'created') AS made,"
        "  max(run_id) FILTER (WHERE event IN ('merged', 'pruned')) AS gone, max(run_id) AS last"
        "  FROM sona.pattern_history WHERE space_id = %(space)s GROUP BY 1) h"
        " FULL JOIN (SELECT pattern_id FROM sona.pattern WHERE space_id = %(space)s) p USING (pattern_id)"
        " WHERE h.made IS DISTINCT FROM 1 OR (gone IS NULL) <> (p.pattern_id IS NOT NULL) OR gone < last"
        " OR pattern_id > (SELECT last_id FROM sona.pattern_state WHERE space_id = %(space)s))"
    ),
    "the cycles have not taken in what they say": (
        "SELECT (SELECT coalesce(sum((facts ->> 'new')::bigint), 0) FROM sona.loop_run WHERE space_id = s.space_id"
        " AND loop = 'background')"
        " = (SELECT count(*) FROM sona.answer_outcome o WHERE o.space_id = s.space_id"
        " AND o.ordinal < s.consumed) FROM sona.pattern_state s WHERE s.space_id = %(space)s"
    ),
}
"""What must be true in every snapshot of a space, by what is wrong when it is not."""


class PatternChaos(CycleChaos):
    """Workers of the background loop are killed while outcomes are recorded and learned."""

    loop = BACKGROUND
    dim = DIM
    helpful = 1
    """Of the items that are shown, so many have helped: those that are nearest to the query."""

    def __init__(self, home: Path, seed: int) -> None:
        super().__init__(home, seed)
        self.bases = 0
        """Spaces that have a base by the end."""
        self._outcomes: dict[int, list[bool]] = {space_id: [] for space_id in self.spaces}
        self.names: dict[int, str] = dict(self._connection.execute("SELECT space_id, name FROM sona.space").fetchall())
        self.start([sys.executable, "-m", "sona_pg", "worker", "instant", "--poll-interval=0.01", f"--url={self.url}"])

    def command(self) -> list[str]:
        return [sys.executable, background_worker.__file__, self.url]

    def grow(self) -> None:
        """As an SQL client: a trajectory, and a late score of an earlier one; sometimes somebody asks for a cycle."""
        space_id = self._random.choice(self.spaces)
        self._record(space_id)
        if self._random.random() < 0.2:
            self._connection.execute("SELECT sona.run_cycle(%s, %s)", (self.names[space_id], self.loop.name))

    def _record(self, space_id: int) -> None:
        """The next trajectory of a space, with the late score that comes with it."""
        known, name = self._outcomes[space_id], self.names[space_id]
        number = len(known)
        random = np.random.default_rng((space_id, number))
        query = 0.05 * random.standard_normal(DIM)
        query[random.integers(min(1 + number // NEW_TOPIC_EVERY, DIM))] += 1.0
        has_outcome = number % 4 != 0
        shown = random.choice(len(ITEMS), 3, replace=False)
        best = shown[np.argsort(-(ITEMS[shown] @ query))[: self.helpful]]
        with self._connection.transaction():
            self._connection.execute(
                "SELECT sona.record(%s, %s, %s, %s, quality => %s, trajectory_id => %s, metadata => %s::jsonb,"
                " activations => %s::vector[])",
                (
                    name,
                    query.astype(np.float32),
                    [str(item) for item in shown],
                    [float(item in best) for item in shown] if has_outcome else None,
                    random.uniform(0.4, 1.0) if has_outcome else None,
                    _id(space_id, number),
                    f'{{"parameters": {{"model": {number % MODELS}}}}}',
                    [str(ITEMS[item].tolist()) for item in shown],
                ),
            )
            if number >= SCORE_DELAY and number % 3:
                self._connection.execute(
                    "SELECT sona.score(%s, %s)", (_id(space_id, number - SCORE_DELAY), random.uniform(0.4, 1.0))
                )
        known.append(has_outcome)
        if number >= SCORE_DELAY and number % 3:
            known[number - SCORE_DELAY] = True

    def drain(self) -> None:
        for space_id in self.spaces:
            # A late score of an outcome that was taken in counts from the next cycle on that has a new one.
            self._record(space_id)
            while not self._outcomes[space_id][-1]:
                self._record(space_id)
        worker = InstantWorker(Database(self.url, StoreConfig()))
        while worker.step() + worker.weigh():
            pass
        assert not worker.failing, f"the instant worker could not learn in {worker.failing}"
        worker.close()
        self.finish(BACKGROUND.name, background_worker.run)

    def finish(self, loop: str, work: Callable[..., None]) -> None:
        """Ask for a cycle in every space, and do what there is to do."""
        for name in self.names.values():
            self._connection.execute("SELECT sona.run_cycle(%s, %s)", (name, loop))
        # One that was interrupted goes before one that is asked for, and the server takes its time to let the dead go.
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._connection.execute(
            "SELECT FROM sona.loop_run WHERE finished_at IS NULL AND loop = %s", (loop,)
        ).fetchall():
            assert time.monotonic() < deadline, f"cycles are left after {PATIENCE_SECONDS} s"
            work(self.url, once=True)

    def wrong_now(self, space_id: int) -> Iterator[str]:
        key = {"space": space_id, "same": PatternConfig().merge_threshold + 1e-6}
        with self.snapshot():
            for wrong, check in _ALWAYS.items():
                if self._connection.execute(check, key).fetchall() not in ([(True,)], []):  # no row before a cycle
                    yield f"space {space_id}: {wrong}"

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """A transaction in which all that is read is as of one moment."""
        with self._connection.transaction():
            self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield

    def wrong(self, space_id: int) -> Iterator[str]:
        yield from self.wrong_now(space_id)
        recorded = {_id(space_id, number) for number, known in enumerate(self._outcomes[space_id]) if known}
        rows = self._connection.execute(
            "SELECT o.trajectory_id FROM sona.answer_outcome o JOIN sona.pattern_state s USING (space_id)"
            " WHERE s.space_id = %s AND o.ordinal < s.consumed",
            (space_id,),
        )
        taken_in = {id for (id,) in rows}
        if recorded != taken_in:
            yield f"space {space_id}: {len(recorded - taken_in)} outcomes are lost, {len(taken_in - recorded)} made up"
        unfinished = self._connection.execute(
            "SELECT state, reason FROM sona.loop_run WHERE space_id = %s AND state NOT IN ('done', 'skipped')",
            (space_id,),
        )
        for state, reason in unfinished.fetchall():
            yield f"space {space_id}: a cycle is {state}, expected all of them done or skipped: {reason}"
        yield from (f"space {space_id}: {wrong}" for wrong in self._differences(space_id))
        yield from (f"space {space_id}: {wrong}" for wrong in self._learned_otherwise(space_id))

    def _learned_otherwise(self, space_id: int) -> Iterator[str]:
        """Compare the learner with a replay of the ledger from the last base on, in which nobody died."""
        with self.snapshot():
            space = spaces.get_space(self._connection, self.names[space_id])
            instant, adapter = spaces.claim_settings(self._connection, space, None, None)
            first, learners = 0, []
            row = self._connection.execute(
                "SELECT v.version, v.ordinal FROM sona.base_state b"
                " JOIN sona.adapter_version v USING (space_id, version) WHERE b.space_id = %s",
                (space_id,),
            ).fetchone()
            states = [None, read_state(self._connection, space)]
            if row is not None:
                states[0], first = read_version(self._connection, space, row[0]), row[1]
                self.bases += 1
            for state in states:
                learners.append(Learner(DIM, adapter=adapter, instant=instant, space=space.config))
                if state is not None:
                    learners[-1].load_bytes(state)
            replayed, stored = learners
            for entry in ledger_events(self._connection, space, first, MANY):
                if entry.learned in TAUGHT and entry.event is not None:
                    replayed.learn(entry.event)
        if replayed.events != stored.events:
            yield f"the learner has learned {stored.events} events, in a replay {replayed.events}"
        parts = stored.adapter.state()
        for name, part in replayed.adapter.state().items():
            if not np.array_equal(part, parts[name]):
                yield f"the learner's {name} is not what a replay gives"

    def _differences(self, space_id: int) -> Iterator[str]:
        """Compare what is stored with a replay of the cycles, in their order, in which nobody died."""
        with self.snapshot():
            reader = PatternReader(self._connection, spaces.get_space(self._connection, self.names[space_id]))
            state = reader.state(MANY, recommending(VerdictConfig()))
            stored = reader.patterns()
            everything = replace(state, consumed=0, waiting=frozenset())
            parts = reader.parts(everything, MANY, MANY)
            outcomes = [one for part in parts for one in reader.outcomes(everything, part)]
            cycles = [
                new
                for (new,) in self._connection.execute(
                    "SELECT (facts ->> 'new')::bigint FROM sona.loop_run WHERE space_id = %s AND state = 'done'"
                    " AND loop = 'background' ORDER BY run_id",
                    (space_id,),
                )
            ]
        patterns, waiting = replayed(outcomes, cycles, state)
        if waiting != state.waiting:
            yield f"{sorted(state.waiting)} wait, in a replay {sorted(waiting)}"
        if patterns.keys() != stored.keys():
            yield f"there are patterns {sorted(stored)}, in a replay {sorted(patterns)}"
        for id in patterns.keys() & stored.keys():
            if _facts(patterns[id]) != _facts(stored[id]):
                yield f"pattern {id} is {_facts(stored[id])}, in a replay {_facts(patterns[id])}"

    def report(self) -> str:
        """With what was counted."""
        ((patterns, support, waiting, cycles),) = self._connection.execute(
            "SELECT count(*), sum(support), (SELECT sum(cardinality(waiting)) FROM sona.pattern_state),"
            " (SELECT count(*) FROM sona.loop_run WHERE state = 'done') FROM sona.pattern"
        ).fetchall()
        recorded = sum(sum(known) for known in self._outcomes.values())
        return (
            f"{super().report()}\n{recorded} outcomes were recorded: {support} are counted in {patterns} patterns,"
            f" {waiting} wait, after {cycles} cycles; {self.bases} of {len(self.spaces)} spaces have a base"
        )


def replayed(
    outcomes: list[KnownOutcome], cycles: list[int], state: PatternState
) -> tuple[dict[int, LearnedPattern], frozenset[int]]:
    """Patterns, and entries that wait, after cycles that took in so many new outcomes each."""
    config = PatternConfig(embedding_dim=DIM, max_trajectories=max(1, len(outcomes)))
    patterns: dict[int, LearnedPattern] = {}
    verdicts: dict[int, dict[str, Verdict]] = {}
    waiting: frozenset[int] = frozenset()
    last_id = consumed = 0
    for new in cycles:
        bank = ResumedBank(patterns, verdicts, last_id, config, VerdictConfig())
        shard = OutcomeShard(DIM, consumed + new, VerdictConfig())
        for place, outcome in enumerate(outcomes[: consumed + new]):
            if place >= consumed or outcome.ordinal in waiting:
                shard.add_outcome(*outcome)
            else:
                shard.add_counted(outcome.query, outcome.quality)
        advance = bank.advance(HeldShards([shard]), state.now)
        for id in (*advance.merged, *advance.pruned):
            patterns.pop(id)
            verdicts.pop(id, None)
        patterns.update({pattern.id: pattern for pattern in (*advance.created, *advance.changed)})
        for id, known in advance.verdicts.items():
            verdicts.setdefault(id, {}).update(known)
        waiting = frozenset(advance.waiting)
        last_id, consumed = advance.last_id, consumed + new
    return patterns, waiting


def _facts(pattern: LearnedPattern) -> tuple[object, ...]:
    """What does not depend on when a cycle ran."""
    return (
        pattern.support,
        pattern.cluster_size,
        round(pattern.avg_quality, 6),
        [round(float(x), 3) + 0.0 for x in pattern.centroid],
    )


def _id(space_id: int, number: int) -> UUID:
    return UUID(int=(space_id << 64) + number)


if __name__ == "__main__":
    main(PatternChaos, at_step=8, at_random=16, cuts=8, stops=8)

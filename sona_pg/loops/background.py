"""Loop B: what happened becomes patterns, and verdicts on the parameters that were used in each.

A cycle clusters the newest outcomes, matches the clusters to the patterns that there are, and takes in every outcome
once: what no cycle has counted is told by its place in the ledger, and by the few that wait for a pattern.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sona_pg.config import BACKGROUND_SCHEDULE, BackgroundConfig, PatternConfig, VerdictConfig
from sona_pg.errors import InvalidInput
from sona_pg.learning.base_cycle import BaseConfig
from sona_pg.learning.recommendation import recommending
from sona_pg.learning.resumed_bank import Advance, ResumedBank
from sona_pg.loops.base import BasePhase
from sona_pg.loops.cycle import Cycle, Loop, Phase, Skipped
from sona_pg.store.connection import Connection
from sona_pg.store.indexes import index_by_size
from sona_pg.store.patterns import PatternState, pattern_reader, write_advance
from sona_pg.store.runs import Facts

NAME = "background"


@dataclass(frozen=True, slots=True)
class _Found:
    """What a cycle begins with; without a bank where there is too little."""

    state: PatternState
    new: int
    bank: ResumedBank | None = None
    ordinals: Sequence[int] = ()
    without_direction: int = 0
    unusable: int = 0


@dataclass(frozen=True, slots=True)
class _Made:
    """What it has come to."""

    found: _Found
    advance: Advance
    waiting: Sequence[int]


class _Patterns:
    """The phase that keeps patterns and verdicts."""

    def __init__(
        self, config: BackgroundConfig, patterns: PatternConfig, verdicts: VerdictConfig, base: BasePhase
    ) -> None:
        self._config, self._patterns, self._verdicts, self._base = config, patterns, verdicts, base

    def read(self, connection: Connection, cycle: Cycle) -> _Found:
        with pattern_reader(connection, cycle.space) as reader:
            state = reader.state(cycle.run.ordinal, recommending(self._verdicts))
            new = reader.new_outcomes(state, self._config.minimum)
            is_enough = new >= self._config.minimum or state.is_stale
        if not is_enough and not self._base.must_release(connection, cycle):
            return _Found(state, new)
        with pattern_reader(connection, cycle.space) as reader:
            state = reader.state(cycle.run.ordinal, recommending(self._verdicts))
            room = max(self._config.max_vector_bytes // (4 * cycle.space.dim), 1)
            most = min(self._config.max_trajectories, room)
            bank = ResumedBank(
                reader.patterns(),
                reader.verdicts(),
                state.last_id,
                replace(self._patterns, embedding_dim=cycle.space.dim, max_trajectories=most),
                self._verdicts,
            )
            ordinals: list[int] = []
            new = without_direction = unusable = 0
            for outcome in reader.outcomes(state, most):
                is_new = outcome.ordinal >= state.consumed
                new += is_new
                try:
                    if not is_new and outcome.ordinal not in state.waiting:
                        bank.add_counted(outcome.query, outcome.quality)
                    elif not bank.add_outcome(*outcome[1:]):
                        unusable += 1
                except InvalidInput:
                    without_direction += is_new
                    continue
                ordinals.append(outcome.ordinal)
                if len(ordinals) % 1000 == 0:
                    cycle.check_stop()
        return _Found(state, new, bank, ordinals, without_direction, unusable)

    def compute(self, found: _Found, cycle: Cycle) -> _Made:
        if found.bank is None:
            raise Skipped(f"{found.new} of {self._config.minimum} new trajectories with an outcome")
        cycle.check_stop()
        advance = found.bank.advance(found.state.now, recommend_anew=found.state.is_stale)
        return _Made(found, advance, [found.ordinals[int(place)] for place in found.bank.uncounted()])

    def write(self, connection: Connection, made: _Made, cycle: Cycle) -> Facts:
        found, advance = made.found, made.advance
        write_advance(connection, cycle.run, found.state, advance, made.waiting, recommending(self._verdicts))
        assert found.bank is not None
        return {
            "trajectories": len(found.ordinals),
            "new": found.new,
            "waiting": len(made.waiting),
            "without_direction": found.without_direction,
            "unusable_parameters": found.unusable,
            "patterns": found.bank.stats().patterns,
            "created": len(advance.created),
            "changed": len(advance.changed),
            "merged": len(advance.merged),
            "pruned": len(advance.pruned),
        }


class _Index:
    """The phase that makes the index of a space in which there are too many patterns to be searched exactly."""

    def read(self, connection: Connection, cycle: Cycle) -> None:
        """Nothing: whether it is needed is seen where it is made."""

    def compute(self, found: None, cycle: Cycle) -> None:
        """Nothing."""

    def write(self, connection: Connection, made: None, cycle: Cycle) -> Facts:
        return {"indexed": index_by_size(connection, cycle.space, cycle.config, "patterns")}


def background_loop(
    config: BackgroundConfig | None = None,
    patterns: PatternConfig | None = None,
    verdicts: VerdictConfig | None = None,
    base: BaseConfig | None = None,
) -> Loop:
    """The loop with settings; the dimension is that of the space, and how much is kept says the first."""
    index, publishing = _Index(), BasePhase(base or BaseConfig())
    bank = _Patterns(config or BackgroundConfig(), patterns or PatternConfig(), verdicts or VerdictConfig(), publishing)
    phases = (
        Phase("patterns", bank.read, bank.compute, bank.write),
        Phase("index", index.read, index.compute, index.write),
        Phase("base", publishing.read, publishing.compute, publishing.write),
    )
    return Loop(NAME, BACKGROUND_SCHEDULE, phases)


BACKGROUND = background_loop()

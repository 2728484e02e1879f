"""Loop B: what happened becomes patterns, and verdicts on the parameters that were used in each.

A cycle clusters the newest outcomes, matches the clusters to the patterns that there are, and takes in every outcome
once: what no cycle has counted is told by its place in the ledger, and by the few that wait for a pattern.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace

from sona_pg.config import BACKGROUND_SCHEDULE, BackgroundConfig, PatternConfig, ShardConfig, VerdictConfig
from sona_pg.config.checks import said_once
from sona_pg.learning.base_cycle import BaseConfig
from sona_pg.learning.recommendation import recommending
from sona_pg.learning.resumed_bank import Advance, ResumedBank
from sona_pg.loops.base import BasePhase
from sona_pg.loops.cycle import Cycle, Loop, Phase, Skipped
from sona_pg.loops.shards import Shards, opened_shards
from sona_pg.store.connection import Connection
from sona_pg.store.indexes import index_by_size
from sona_pg.store.pattern_reader import pattern_reader
from sona_pg.store.patterns import PatternState, write_advance
from sona_pg.store.runs import Facts

NAME = "background"


@dataclass(frozen=True, slots=True)
class _Found:
    """What a cycle begins with; without a bank where there is too little."""

    state: PatternState
    new: int
    bank: ResumedBank | None = None
    shards: Shards | None = None
    closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


@dataclass(frozen=True, slots=True)
class _Made:
    """What it has come to."""

    found: _Found
    advance: Advance


class _Patterns:
    """The phase that keeps patterns and verdicts."""

    def __init__(
        self,
        config: BackgroundConfig,
        patterns: PatternConfig,
        verdicts: VerdictConfig,
        shards: ShardConfig,
        base: BasePhase,
    ) -> None:
        self._config, self._patterns, self._verdicts = config, patterns, verdicts
        self._shards, self._base = shards, base

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
                replace(self._patterns, embedding_dim=cycle.space.dim),
                self._verdicts,
            )
            parts = reader.parts(state, most, self._config.shard_rows)
            closing = contextlib.ExitStack()
            shards = closing.enter_context(opened_shards(reader, state, parts, self._verdicts, cycle, self._shards))
        return _Found(state, sum(one.new for one in shards.loaded), bank, shards, closing)

    def compute(self, found: _Found, cycle: Cycle) -> _Made:
        if found.bank is None or found.shards is None:
            is_judged = found.state.is_judged or not found.new
            what = "new trajectories with an outcome" if is_judged else "new trajectories, none of them judged"
            raise Skipped(f"{found.new} of {self._config.minimum} {what}")
        with found.closing:
            cycle.check_stop()
            state = found.state
            return _Made(found, found.bank.advance(found.shards.outcomes, state.now, recommend_anew=state.is_stale))

    def write(self, connection: Connection, made: _Made, cycle: Cycle) -> Facts:
        found, advance = made.found, made.advance
        write_advance(connection, cycle.run, found.state, advance, recommending(self._verdicts))
        assert found.bank is not None
        assert found.shards is not None
        loaded = found.shards.loaded
        return {
            "trajectories": sum(one.kept for one in loaded),
            "shards": len(loaded),
            "computed": found.shards.where,
            "new": found.new,
            "waiting": len(advance.waiting),
            "without_direction": sum(one.without_direction for one in loaded),
            "unusable_parameters": sum(one.unusable for one in loaded),
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
    shards: ShardConfig | None = None,
) -> Loop:
    """The loop with settings; the dimension is that of the space.

    Raises
    ------
    ConfigError
        If the first two say different things of `max_trajectories`, which is one setting.
    """
    config, patterns = config or BackgroundConfig(), patterns or PatternConfig()
    most = said_once(
        ("max_trajectories of the loop", config.max_trajectories, BackgroundConfig().max_trajectories),
        ("that of its patterns", patterns.max_trajectories, PatternConfig().max_trajectories),
    )
    assert isinstance(most, int)
    index, publishing = _Index(), BasePhase(base or BaseConfig())
    bank = _Patterns(
        replace(config, max_trajectories=most),
        patterns,
        verdicts or VerdictConfig(),
        shards or ShardConfig(),
        publishing,
    )
    phases = (
        Phase("patterns", bank.read, bank.compute, bank.write),
        Phase("index", index.read, index.compute, index.write),
        Phase("base", publishing.read, publishing.compute, publishing.write),
    )
    return Loop(NAME, BACKGROUND_SCHEDULE, phases)


BACKGROUND = background_loop()

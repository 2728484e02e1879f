"""Loop C in memory: consolidation, dreams and measures as in Postgres, for applications that have arrays alone."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg.config import DeepLoopConfig, DreamConfig, TransferConfig
from sona_pg.errors import ConfigError, InvalidInput, LearningError, MemoryGraphError
from sona_pg.learning.consolidation import Compression
from sona_pg.learning.dream_engine import DreamEngine, as_events
from sona_pg.learning.dream_evidence import DreamEvidence
from sona_pg.learning.ewc import EwcPlusPlus
from sona_pg.learning.hierarchy import FIRST_CONCEPT, pattern_hierarchy
from sona_pg.learning.integration import as_finite, check_nodes
from sona_pg.learning.judged_dreams import JudgedDream
from sona_pg.learning.memory_archive import (
    MERGED,
    OF_LITTLE_VALUE,
    Archived,
    ArchivedEdge,
    ArchivedNode,
    ArchivedPattern,
    ArchiveEntry,
    EdgeBefore,
    MemoryArchive,
    NodeBefore,
)
from sona_pg.learning.patterns import LearnedPattern
from sona_pg.learning.reasoning_bank import ReasoningBank
from sona_pg.learning.system_integration import system_integration
from sona_pg.loops.deep_config import DeepConfig
from sona_pg.types import as_seconds

DONE = "done"


@dataclass(frozen=True, slots=True, eq=False)
class DeepResult:
    """What a cycle has done.

    Parameters
    ----------
    phases
        By phase, in order, ``done``, or ``skipped: …`` with the reason; a phase that was skipped has changed nothing.
    dreams_generated, dreams_integrated
        Dreams, and those of them that could connect what they have brought together.
    patterns_strengthened
        Patterns of the bank that near duplicates became part of.
    patterns_merged, patterns_pruned
        Patterns of the bank that became part of another, and those that went since nothing speaks for them.
    concepts, levels
        Patterns of patterns, and how many levels of them there are.
    nodes_merged, nodes_archived
        Memory nodes that became part of another, and those that went since nothing speaks for them.
    edges_strengthened, edges_decayed, edges_pruned, edges_created
        Edges that gained weight, that lost some, that went since they were weak, and that dreams have made.
    edges_withdrawn
        Edges by earlier dreams that went, since dreams do not help any more.
    tasks_consolidated
        Tasks of the EWC that became one.
    phi, phi_by_chance
        Integration of the series that was given, in nats, and the largest of series without relations between nodes;
        see `SystemIntegration`. None where it was not measured.
    elapsed_seconds
        How long it took.
    dreams
        All dreams, with what was decided of them and why.
    evidence
        Whether dreams help in this graph; None where nothing was dreamt.
    compression
        How much smaller the memory graph became; None where it was not consolidated.
    """

    phases: Mapping[str, str]
    dreams_generated: int = 0
    dreams_integrated: int = 0
    patterns_strengthened: int = 0
    patterns_merged: int = 0
    patterns_pruned: int = 0
    concepts: int = 0
    levels: int = 0
    nodes_merged: int = 0
    nodes_archived: int = 0
    edges_strengthened: int = 0
    edges_decayed: int = 0
    edges_pruned: int = 0
    edges_created: int = 0
    edges_withdrawn: int = 0
    tasks_consolidated: int = 0
    phi: float | None = None
    phi_by_chance: float | None = None
    elapsed_seconds: float = 0.0
    dreams: Sequence[JudgedDream] = ()
    evidence: DreamEvidence | None = None
    compression: Compression | None = field(default=None, repr=False)


class _Skipped(Exception):
    """A phase has nothing to do, or no time to do it: with the reason."""


@dataclass(frozen=True, slots=True)
class _Cycle:
    """What a phase knows of its cycle: when it is, in seconds since the epoch, when it ends, and what was given."""

    now: float
    deadline: float
    seconds: float
    series: NDArray[np.float64] | None
    events: list[list[int]] | None

    def check_time(self) -> None:
        """Give up, if the time is over.

        Raises
        ------
        _Skipped
        """
        if time.monotonic() >= self.deadline:
            raise _Skipped(f"{self.seconds:g} seconds are over")


class _Phase(Protocol):
    def __call__(self, cycle: _Cycle, result: DeepResult, /) -> DeepResult: ...


class DeepLoop:
    """Memory is put in order and dreamt over, cycle by cycle, without a database.

    A cycle consolidates the engine's graph and the bank, makes patterns of patterns, dreams, makes one task of those of
    the EWC, and measures how much a series of activations is one system. What it removes is in an archive. What the
    parts are is the application's business: the engine's nodes and edges, the bank's trajectories and the EWC's tasks
    come from outside.

    Parameters
    ----------
    config
        How much a cycle does.
    engine
        The graph; one without nodes if None.
    ewc, bank
        What is consolidated besides; nothing if None.
    settings
        Of the parts; its `dreams` make the engine that is not given.

    Raises
    ------
    ConfigError
        If `config` and `settings.loop`, or the engine's settings and `settings.dreams`, contradict each other, or a
        setting is given that only the loop in Postgres has a use for.

    Examples
    --------
    >>> from sona_pg.learning.memory_graph import MemoryNode
    >>> loop = DeepLoop(DeepLoopConfig(dreams_per_cycle=20))
    >>> for id in range(3):
    ...     loop.dream_engine().add_memory_node(MemoryNode(id, [1.0, id, 0.0], kind="episode"))
    >>> loop.dream_engine().add_edge(0, 1, 0.5)
    >>> result = loop.run_cycle(now=0.0)
    >>> result.dreams_generated, result.dreams_integrated, result.phases["ewc"]
    (20, 0, 'skipped: there is no EWC')
    """

    def __init__(
        self,
        config: DeepLoopConfig | None = None,
        *,
        engine: DreamEngine | None = None,
        ewc: EwcPlusPlus | None = None,
        bank: ReasoningBank | None = None,
        settings: DeepConfig | None = None,
    ) -> None:
        given = DeepConfig() if settings is None else settings
        if config is not None:
            _check_same(given.loop, config, DeepLoopConfig(), "settings.loop is not config")
            given = replace(given, loop=config)
        if engine is not None:
            _check_same(given.dreams, engine.config, DreamConfig(), "settings.dreams is not what the engine has")
            given = replace(given, dreams=engine.config)
        _refuse_settings_of_postgres(given)
        self.settings = given
        self._engine = DreamEngine(given.dreams) if engine is None else engine
        self._ewc, self._bank = ewc, bank
        self._hierarchy: tuple[LearnedPattern, ...] = ()
        self._last_concept = FIRST_CONCEPT
        self._archive = MemoryArchive()
        self._dreams_are_out = False

    @property
    def config(self) -> DeepLoopConfig:
        """How much a cycle does."""
        return self.settings.loop

    def dream_engine(self) -> DreamEngine:
        """The engine whose graph is dreamt over."""
        return self._engine

    def hierarchy(self) -> tuple[LearnedPattern, ...]:
        """Patterns of patterns, level by level, as the last cycle made them of those of the bank.

        Their ids hold from cycle to cycle, and are not among those of the bank.
        """
        return self._hierarchy

    # ---- the cycle ---------------------------------------------------------------------------------------------------

    def run_cycle(
        self,
        *,
        now: float | None = None,
        series: ArrayLike | None = None,
        events: Iterable[Iterable[int]] | None = None,
    ) -> DeepResult:
        """Run all phases. A phase is done as a whole, or has changed nothing, and says why.

        No phase, and no judgement of a dream, begins after `DeepLoopConfig.max_cycle_seconds`.

        Parameters
        ----------
        now
            Seconds since the epoch; the clock's without.
        series
            (steps, nodes), at most 15 nodes: activations over time, whose integration is measured.
        events
            Where the edges come from events: for each, the ids of the nodes that were used together. Whole events are
            then held out to see whether dreams help; see `dreams_help`. A node that was merged counts as what it became
            part of, and an id that is no node is left out.

        Raises
        ------
        InvalidInput
            If `now` is no time, the series cannot be measured, or an event has something else than ids; nothing was
            changed.
        """
        began = time.monotonic()
        at = as_seconds(time.time() if now is None else now)
        activity = None if series is None else as_finite(series, 2, "the series")
        if activity is not None:
            check_nodes(activity.shape[1])
        seconds = self.config.max_cycle_seconds
        cycle = _Cycle(at, began + seconds, seconds, activity, None if events is None else as_events(events))
        phases: dict[str, str] = {}
        result = DeepResult(phases)
        self._archive.begin_cycle()
        for name, phase in self._phases().items():
            try:
                cycle.check_time()
                result = phase(cycle, result)
                phases[name] = DONE
            except _Skipped as skipped:
                phases[name] = f"skipped: {skipped}"
        return replace(result, elapsed_seconds=time.monotonic() - began)

    def _phases(self) -> dict[str, _Phase]:
        return {
            "consolidate": self._consolidate,
            "patterns": self._consolidate_patterns,
            "hierarchy": self._build_hierarchy,
            "dream": self._dream,
            "ewc": self._consolidate_tasks,
            "integration": self._measure,
        }

    def _consolidate(self, cycle: _Cycle, result: DeepResult, /) -> DeepResult:
        self._archive.drop_before(cycle.now - self.config.keep_archive_seconds)
        if not self._engine.node_count:
            raise _Skipped("there are no memory nodes")
        done = self._engine.consolidate(cycle.now, self.settings.consolidation)
        self._archive.keep(done.removed, cycle.now)
        return replace(
            result,
            nodes_merged=len(done.plan.merged),
            nodes_archived=len(done.plan.archived),
            edges_strengthened=len(done.plan.strengthened),
            edges_decayed=len(done.plan.decayed),
            edges_pruned=len(done.plan.pruned),
            compression=done.compression,
        )

    def _consolidate_patterns(self, cycle: _Cycle, result: DeepResult, /) -> DeepResult:
        bank = self._patterns_of_bank()
        before = {pattern.id: pattern for pattern in bank.patterns}
        verdicts = {id: bank.verdicts(id) for id in before}
        merged = bank.consolidate_patterns(now=cycle.now)
        # What was merged into is another one than before: what of that is pruned goes to the archive as it is now.
        before |= {pattern.id: pattern for pattern in bank.patterns}
        verdicts |= {id: bank.verdicts(id) for id in set(merged.values())}
        pruned = bank.prune_patterns(now=cycle.now)
        self._archive.keep(
            [ArchivedPattern(before[id], verdicts[id], MERGED, into) for id, into in merged.items()], cycle.now
        )
        self._archive.keep([ArchivedPattern(before[id], verdicts[id], OF_LITTLE_VALUE) for id in pruned], cycle.now)
        return replace(
            result,
            patterns_strengthened=len(set(merged.values())),
            patterns_merged=len(merged),
            patterns_pruned=len(pruned),
        )

    def _build_hierarchy(self, cycle: _Cycle, result: DeepResult, /) -> DeepResult:
        bank = self._patterns_of_bank()
        own = [pattern for pattern in bank.patterns if pattern.abstraction_level == 0]
        found = pattern_hierarchy(
            [*own, *self._hierarchy],
            next_id=self._last_concept + 1,
            now=cycle.now,
            config=self.settings.hierarchy,
            pattern_config=bank.config,
        )
        self._hierarchy = found.patterns
        self._last_concept = max(self._last_concept, *found.created, 0)
        return replace(
            result,
            concepts=len(found.patterns),
            levels=max((concept.abstraction_level for concept in found.patterns), default=0),
        )

    def _patterns_of_bank(self) -> ReasoningBank:
        if self._bank is None:
            raise _Skipped("there is no reasoning bank")
        if not self._bank.patterns and not self._hierarchy:
            raise _Skipped("the bank has no patterns")
        return self._bank

    def _dream(self, cycle: _Cycle, result: DeepResult, /) -> DeepResult:
        if not self.config.dreams_per_cycle:
            raise _Skipped("no dreams are asked for")
        if self._engine.node_count < 2:
            raise _Skipped(f"a dream needs two memory nodes, there are {self._engine.node_count}")
        settings = self.settings
        try:
            count = self.config.dreams_of(self._engine.node_count)
            night = self._engine.judged_dreams(
                count,
                settings.evidence,
                settings.phi,
                events=self._as_merged(cycle.events),
                check_stop=cycle.check_time,
            )
        except (MemoryGraphError, LearningError) as error:
            # Anchors without embeddings; φ without a ridge of nodes that are alike.
            raise _Skipped(str(error)) from error
        made = self._engine.integrate_dreams(night.integrated, at=cycle.now)
        # What earlier dreams have made rests on the same evidence.
        self._dreams_are_out = not night.evidence.confirmed
        withdrawn = self._engine.withdraw_creative_edges() if self._dreams_are_out else ()
        self._archive.keep(withdrawn, cycle.now)
        return replace(
            result,
            dreams_generated=len(night.dreams),
            dreams_integrated=len(night.integrated),
            edges_created=len(made),
            edges_withdrawn=len(withdrawn),
            dreams=night.dreams,
            evidence=night.evidence,
        )

    def _as_merged(self, events: list[list[int]] | None) -> list[list[int]] | None:
        """Events with nodes that were merged as what they became part of."""
        if events is None:
            return None
        here = {node.id for node in self._engine.nodes}
        into = {}
        for entry in self._archive.entries:
            if isinstance(entry.content, ArchivedNode) and entry.content.into is not None:
                into[entry.content.node.id] = entry.content.into

        def became(id: int) -> int:
            # A node that came back is itself again, and what it became part of before may have been merged into it.
            passed = {id}
            while id not in here and id in into and into[id] not in passed:
                id = into[id]
                passed.add(id)
            return id

        return [[became(id) for id in event] for event in events]

    def _consolidate_tasks(self, cycle: _Cycle, result: DeepResult, /) -> DeepResult:
        if self._ewc is None:
            raise _Skipped("there is no EWC")
        tasks = self._ewc.task_count
        if tasks < 2:
            raise _Skipped(f"the EWC remembers {tasks} tasks, there is nothing to join")
        try:
            self._ewc.consolidate_all_tasks()
        except LearningError as error:
            raise _Skipped(str(error)) from error
        return replace(result, tasks_consolidated=tasks)

    def _measure(self, cycle: _Cycle, result: DeepResult, /) -> DeepResult:
        if cycle.series is None:
            raise _Skipped("no series of activations was given")
        found = system_integration(cycle.series, self.settings.phi)
        if found.value is None:
            raise _Skipped(str(found.reason))
        return replace(result, phi=found.value, phi_by_chance=found.null)

    # ---- the archive -------------------------------------------------------------------------------------------------

    def archive(self) -> tuple[ArchiveEntry, ...]:
        """What cycles have removed and can be restored, the oldest first."""
        return self._archive.entries

    def restore(self, ids: Iterable[int] | None = None) -> int:
        """Bring back what was removed, as it was; how many entries.

        What was merged comes back with all merges of that cycle and since, and is not merged again: what stands gives
        back what it has taken in, and keeps what it has gained since. What is there again meanwhile stays as it is, and
        its entry goes. What was removed twice comes back as it was the last time. An edge whose node is neither here
        nor restored with it stays in the archive; so do edges by dreams, while these do not help.

        Parameters
        ----------
        ids
            Of entries of the archive; all if None.

        Raises
        ------
        InvalidInput
            If there is no such entry, or one is an edge by dreams, which do not help; nothing was restored.
        """
        out = [] if ids is None else [entry.id for entry in self._archive.named(ids) if self._is_out(entry)]
        if out:
            raise InvalidInput(
                f"entry {out[0]} is an edge by dreams, and dreams do not help here: leave it out until a cycle has "
                "found that they do"
            )
        restored = 0
        for entry in self._archive.with_merges(ids):
            if self._is_out(entry):
                continue
            try:
                is_back = self._put_back(entry.content)
            except MemoryGraphError:
                continue
            restored += is_back
            if is_back or not isinstance(entry.content, NodeBefore | EdgeBefore):
                self._archive.drop(entry)
        return restored

    def _is_out(self, entry: ArchiveEntry) -> bool:
        """Whether it is an edge by dreams, which come back by new evidence alone."""
        content = entry.content
        return self._dreams_are_out and isinstance(content, ArchivedEdge) and content.is_creative

    def _put_back(self, content: Archived) -> bool:
        if isinstance(content, ArchivedNode):
            return self._engine.restore_node(content)
        if isinstance(content, ArchivedEdge):
            return self._engine.restore_edge(content)
        if isinstance(content, NodeBefore):
            return self._engine.restore_node_before(content)
        if isinstance(content, EdgeBefore):
            return self._engine.restore_edge_before(content)
        assert self._bank is not None
        return self._bank.put_back(content.pattern, content.verdicts)


def _check_same(given: object, other: object, default: object, what: str) -> None:
    if given not in (default, other):
        raise ConfigError(f"{what}: set it in one place, found {given} and {other}")


_OF_POSTGRES = (
    "max_vector_bytes", "pattern_items", "system_patterns", "system_queries", "transfer_patterns", "keep_dreams",
    "keep_dreams_each",
)  # fmt: skip
"""Settings of `DeepLoopConfig` that say how much of the database is read and kept."""


def _refuse_settings_of_postgres(settings: DeepConfig) -> None:
    default = {field.name: field.default for field in fields(DeepLoopConfig)}
    useless = [name for name in _OF_POSTGRES if getattr(settings.loop, name) != default[name]]
    if settings.transfer != TransferConfig():
        useless.append("transfer")
    if useless:
        raise ConfigError(f"{useless[0]} has no effect on a loop in memory, only on the one in Postgres: leave it out")

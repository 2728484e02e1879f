"""Loop C in memory: what a cycle does, what it says of what it did not do, and what it refuses."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.dreams import rewired_graph
from sona_pg import (
    BackgroundLoop,
    BackgroundLoopConfig,
    ConsolidationConfig,
    DeepConfig,
    DeepLoop,
    DeepLoopConfig,
    DreamConfig,
    DreamEngine,
    EwcPlusPlus,
    InstantLoop,
    InstantLoopConfig,
    MemoryNode,
    PatternConfig,
    ReasoningBank,
    TrajectoryBuilder,
    TransferConfig,
)
from sona_pg.errors import ConfigError, InvalidInput
from sona_pg.learning.hierarchy import FIRST_CONCEPT, pattern_hierarchy
from sona_pg.learning.judged_dreams import dream_night
from sona_pg.learning.system_integration import system_integration
from sona_pg.loops import deep_loop
from sona_pg.types import QueryTrajectory

from .deep_loops import BRIEF, FEW, QUICK, bank_of
from .ewcs import learned
from .memories import DAY, DIM, topical
from .samples import bits, trajectory, unit_rows
from .systems import activations, pair_among

PHASES = ["consolidate", "patterns", "hierarchy", "dream", "ewc", "integration"]


def state_of(loop: DeepLoop, bank: ReasoningBank | None = None, ewc: EwcPlusPlus | None = None) -> list[object]:
    engine = loop.dream_engine()
    nodes, edges = engine.columns(0.0)
    state: list[object] = [bits(getattr(part, name)) for part in (nodes, edges) for name in part.__slots__]
    state += [[node.id for node in engine.nodes], engine.creative_edges, [concept.id for concept in loop.hierarchy()]]
    if bank is not None:
        state.append(repr(bank.export()))
    if ewc is not None:
        state += [bits(part) for part in ewc.state().values()]
    return state


# ---- a cycle ---------------------------------------------------------------------------------------------------------


def test_a_cycle_does_everything() -> None:
    engine, bank, ewc = topical(), bank_of(), learned(tasks=3)
    stiffness = ewc.stiffness
    loop = DeepLoop(engine=engine, ewc=ewc, bank=bank, settings=QUICK)
    result = loop.run_cycle(now=7 * DAY, series=activations(pair_among(4), 400))
    assert dict(result.phases) == dict.fromkeys(PHASES, "done")
    assert list(result.phases) == PHASES
    assert result.dreams_generated == len(result.dreams) == 50
    assert 0 < result.dreams_integrated == sum(judged.is_integrated for judged in result.dreams) < 50
    assert result.edges_created == len(engine.creative_edges) > 0
    assert result.evidence is not None
    assert result.evidence.confirmed
    # Dreams connect what belongs together.
    together = [edge.a // 10 == edge.b // 10 for edge in engine.creative_edges]
    assert np.mean(together) > 0.9
    assert result.edges_decayed + result.edges_strengthened == engine.edge_count
    assert (result.tasks_consolidated, ewc.task_count) == (3, 1)
    assert ewc.stiffness == pytest.approx(stiffness)
    assert (result.concepts, result.levels) == (len(loop.hierarchy()), loop.hierarchy()[-1].abstraction_level)
    assert result.concepts >= 2
    assert result.phi is not None
    assert result.phi_by_chance is not None
    assert result.phi > result.phi_by_chance
    assert result.compression is not None
    assert result.elapsed_seconds > 0


def test_dreams_are_judged_and_integrated_as_in_postgres() -> None:
    """By the functions that the loop in Postgres calls, of the same graph and settings."""
    engine, other = topical(), topical()
    loop = DeepLoop(engine=engine, settings=QUICK)
    now = 7 * DAY
    result = loop.run_cycle(now=now)
    other.consolidate(now, loop.settings.consolidation)
    night = dream_night(other.graph, 50, other.config, QUICK.evidence, QUICK.phi)
    assert [(j.dream.nodes, j.phi, j.level, j.refusal) for j in result.dreams] == [
        (j.dream.nodes, j.phi, j.level, j.refusal) for j in night.dreams
    ]
    assert result.evidence == night.evidence
    other.integrate_dreams(night.integrated, at=now)
    assert engine.creative_edges == other.creative_edges


def test_where_dreams_do_not_help_they_stay_out_and_it_says_so() -> None:
    topic = topical()
    graph = rewired_graph(topic.graph, 1)
    engine = DreamEngine()
    for node in topic.nodes:
        engine.add_memory_node(node)
    for a, b, weight in zip(*(part.tolist() for part in graph.edges()), strict=True):
        engine.add_edge(a, b, weight, at=0.0)
    result = DeepLoop(engine=engine, settings=QUICK).run_cycle(now=7 * DAY)
    assert result.evidence is not None
    assert not result.evidence.confirmed
    assert result.dreams_generated == 50
    assert (result.dreams_integrated, result.edges_created, engine.creative_edges) == (0, 0, [])
    assert all(
        "dreams have not shown" in judged.refusal or "integration is" in judged.refusal for judged in result.dreams
    )


def of_random_events(n: int = 120, count: int = 150) -> tuple[DreamEngine, list[list[int]]]:
    """Items used together at random, three at a time: their edges are triangles, and say nothing."""
    random = np.random.default_rng(2)
    engine = DreamEngine()
    for id in range(n):
        engine.add_memory_node(
            MemoryNode(id, random.standard_normal(DIM), timestamp=0.0, access_count=3, created=0.0, kind="item")
        )
    events = [random.choice(n, 3, replace=False).tolist() for _ in range(count)]
    for event in events:
        for a, b in itertools.combinations(event, 2):
            engine.add_edge(a, b, 0.5, at=0.0)
    return engine, events


def test_whole_events_are_held_out_where_they_are_given() -> None:
    confirmed = []
    for given in (False, True):
        engine, events = of_random_events()
        result = DeepLoop(engine=engine, settings=QUICK).run_cycle(now=DAY, events=events if given else None)
        assert result.evidence is not None
        confirmed.append(result.evidence.confirmed)
    assert confirmed == [True, False]
    assert (result.dreams_integrated, result.dreams_generated) == (0, 50)


def test_events_speak_of_what_their_nodes_became_part_of() -> None:
    events = [[topic * 10 + i, topic * 10 + i + 1] for topic in range(12) for i in range(9)]
    twins = topical()
    for node in twins.nodes[:10]:
        twins.add_memory_node(replace(node, id=1000 + node.id, access_count=0))
    as_twins = [[1000 + id if id < 10 else id for id in event] for event in events]
    loop = DeepLoop(engine=twins, settings=QUICK)
    asked: list[list[list[int]]] = []
    judge = twins.judged_dreams

    def judged(*given: object, **named: object) -> object:
        asked.append(named["events"])  # type: ignore[arg-type]
        return judge(*given, **named)  # type: ignore[arg-type]

    twins.judged_dreams = judged  # type: ignore[assignment,method-assign]
    result = loop.run_cycle(now=DAY, events=[*as_twins, [5, 7, 99_999]])
    assert result.nodes_merged == 10
    assert asked == [[*events, [5, 7, 99_999]]]
    assert result.evidence is not None
    # What came back is itself again.
    loop.restore()
    loop.settings = replace(loop.settings, consolidation=ConsolidationConfig(merge_threshold=1.0))
    loop.run_cycle(now=DAY, events=as_twins)
    assert asked[1] == as_twins


@pytest.mark.parametrize("events", [5, [5], [["a"]], [[True]], [[0.5]], [None], "ab"])
def test_what_is_no_event_is_refused_before_anything_is_done(events: object) -> None:
    engine = topical()
    loop = DeepLoop(engine=engine, settings=QUICK)
    before = state_of(loop)
    with pytest.raises(InvalidInput, match="event"):
        loop.run_cycle(now=7 * DAY, events=events)  # type: ignore[arg-type]
    assert state_of(loop) == before


def test_the_threshold_of_phi_is_honoured() -> None:
    integrated = [
        DeepLoop(replace(FEW, phi_threshold=threshold), engine=topical(), settings=BRIEF)
        .run_cycle(now=0.0)
        .dreams_integrated
        for threshold in (0.0, 0.3, 0.9)
    ]
    assert integrated[0] == 50
    assert integrated[0] > integrated[1] > integrated[2]


def test_the_same_memory_gives_the_same_cycles() -> None:
    states = []
    for _ in range(2):
        bank, ewc = bank_of(), learned(tasks=2)
        loop = DeepLoop(engine=topical(), bank=bank, ewc=ewc, settings=QUICK)
        dreams = [judged.dream for week in (1, 2, 3) for judged in loop.run_cycle(now=week * 7 * DAY).dreams]
        assert [dream.id for dream in dreams] == list(range(150))
        states.append((state_of(loop, bank, ewc), [(dream.nodes, dream.quality) for dream in dreams]))
    assert states[0] == states[1]


def test_twice_at_one_instant_everything_but_dreams_stays() -> None:
    bank, ewc = bank_of(), learned(tasks=2)
    loop = DeepLoop(replace(FEW, dreams_per_cycle=0), engine=topical(), bank=bank, ewc=ewc, settings=BRIEF)
    first = loop.run_cycle(now=100 * DAY)
    assert first.edges_decayed > 0
    state = state_of(loop, bank, ewc)
    again = loop.run_cycle(now=100 * DAY)
    assert (again.edges_decayed, again.edges_strengthened, again.edges_pruned, again.nodes_archived) == (0, 0, 0, 0)
    assert again.phases["ewc"] == "skipped: the EWC remembers 1 tasks, there is nothing to join"
    assert again.phases["dream"] == "skipped: no dreams are asked for"
    assert state_of(loop, bank, ewc) == state


# ---- nothing to do, or no time ---------------------------------------------------------------------------------------


def test_an_empty_loop_says_what_is_missing() -> None:
    loop = DeepLoop(DeepLoopConfig())
    result = loop.run_cycle()
    assert dict(result.phases) == {
        "consolidate": "skipped: there are no memory nodes",
        "patterns": "skipped: there is no reasoning bank",
        "hierarchy": "skipped: there is no reasoning bank",
        "dream": "skipped: a dream needs two memory nodes, there are 0",
        "ewc": "skipped: there is no EWC",
        "integration": "skipped: no series of activations was given",
    }
    assert (result.dreams_generated, result.patterns_pruned, result.phi, result.evidence) == (0, 0, None, None)
    assert loop.archive() == ()
    assert loop.restore() == 0
    assert loop.hierarchy() == ()


def test_one_node_is_kept_and_not_dreamt_over() -> None:
    loop = DeepLoop()
    loop.dream_engine().add_memory_node(MemoryNode(1))
    result = loop.run_cycle()
    assert result.phases["consolidate"] == "done"
    assert result.phases["dream"] == "skipped: a dream needs two memory nodes, there are 1"
    assert loop.dream_engine().node_count == 1


def test_nodes_without_embeddings_and_edges_are_dreamt_over_and_nothing_comes_of_it() -> None:
    loop = DeepLoop(settings=QUICK)
    for id in range(5):
        loop.dream_engine().add_memory_node(MemoryNode(id))
    result = loop.run_cycle()
    assert result.phases["dream"] == "done"
    assert (result.dreams_generated, result.dreams_integrated) == (50, 0)
    assert {judged.refusal for judged in result.dreams} == {"fewer than two of its nodes have an embedding"}
    anchored = DeepLoop(engine=DreamEngine(DreamConfig(start="anchors")), settings=QUICK)
    for id in range(5):
        anchored.dream_engine().add_memory_node(MemoryNode(id))
    assert "no node has an embedding" in anchored.run_cycle().phases["dream"]


def test_a_bank_without_patterns_or_with_few() -> None:
    bank = ReasoningBank(PatternConfig(embedding_dim=DIM))
    loop = DeepLoop(bank=bank)
    assert loop.run_cycle(now=0.0).phases["patterns"] == "skipped: the bank has no patterns"
    few = DeepLoop(bank=bank_of(topics=3)).run_cycle(now=0.0)
    assert (few.phases["hierarchy"], few.concepts, few.levels) == ("done", 0, 0)


def test_a_series_that_is_too_short_is_said_and_one_that_is_none_refused() -> None:
    loop = DeepLoop(engine=topical(), settings=QUICK)
    before = state_of(loop)
    for series in ([[np.nan, 1.0]], [1.0], "series", np.zeros((9, 16)), [[1.0], [1.0, 2.0]]):
        with pytest.raises(InvalidInput):
            loop.run_cycle(now=0.0, series=series)  # type: ignore[arg-type]
    for now in (float("nan"), "now", True, 1e300):
        with pytest.raises(InvalidInput):
            loop.run_cycle(now=now)  # type: ignore[arg-type]
    assert state_of(loop) == before
    short = loop.run_cycle(now=0.0, series=np.ones((3, 2)))
    assert short.phases["integration"].startswith("skipped: the series has 3 steps")
    series = activations(pair_among(5), 200)
    found = loop.run_cycle(now=0.0, series=series)
    expected = system_integration(series, QUICK.phi)
    assert (found.phi, found.phi_by_chance) == (expected.value, expected.null)


def test_a_deadline_of_zero_leaves_everything_to_the_next_cycle() -> None:
    bank, ewc = bank_of(quality=0.05), learned(tasks=2)
    loop = DeepLoop(replace(FEW, max_cycle_seconds=0.0), engine=topical(), bank=bank, ewc=ewc, settings=BRIEF)
    before = state_of(loop, bank, ewc)
    result = loop.run_cycle(now=1e9, series=np.ones((30, 2)))
    assert dict(result.phases) == dict.fromkeys(PHASES, "skipped: 0 seconds are over")
    assert state_of(loop, bank, ewc) == before


def test_the_deadline_is_looked_at_between_units_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by a second whenever somebody looks."""
    clock = itertools.count()
    monkeypatch.setattr(deep_loop.time, "monotonic", lambda: float(next(clock)))
    engine = topical()
    loop = DeepLoop(replace(FEW, max_cycle_seconds=20.0), engine=engine, settings=BRIEF)
    result = loop.run_cycle(now=0.0)
    assert result.phases["consolidate"] == "done"
    # In the midst of fifty dreams: it has left nothing, and they are dreamt again.
    assert result.phases["dream"] == "skipped: 20 seconds are over"
    assert result.phases["ewc"] == "skipped: 20 seconds are over"
    assert (result.dreams_generated, engine.creative_edges) == (0, [])
    assert next(clock) < 30
    longer = DeepLoop(replace(FEW, max_cycle_seconds=1000.0), engine=engine, settings=BRIEF).run_cycle(now=0.0)
    assert longer.phases["dream"] == "done"
    assert longer.dreams[0].dream.id == 0


# ---- hierarchy -------------------------------------------------------------------------------------------------------


def test_the_hierarchy_holds_from_cycle_to_cycle_and_stays_out_of_the_bank() -> None:
    bank = bank_of(topics=16)
    loop = DeepLoop(bank=bank)
    loop.run_cycle(now=0.0)
    first = loop.hierarchy()
    assert {concept.abstraction_level for concept in first} >= {1}
    assert all(concept.id > FIRST_CONCEPT for concept in first)
    assert {child for c in first if c.abstraction_level == 1 for child in c.children} == {p.id for p in bank.patterns}
    assert all(pattern.abstraction_level == 0 for pattern in bank.patterns)
    for id in range(40):
        bank.add_trajectory(trajectory(unit_rows(np.random.default_rng(id).standard_normal((1, DIM)))[0], (), 0.5, id))
    bank.extract_patterns(now=1.0)
    loop.run_cycle(now=1.0)
    second = loop.hierarchy()
    assert {c.id for c in first if c.abstraction_level == 1} & {c.id for c in second}
    expected = pattern_hierarchy(
        [*bank.patterns, *first], next_id=max(c.id for c in first) + 1, now=1.0, pattern_config=bank.config
    )
    assert [(c.id, c.children) for c in second] == [(c.id, c.children) for c in expected.patterns]


# ---- settings --------------------------------------------------------------------------------------------------------


def test_settings_that_contradict_each_other_are_refused() -> None:
    given = DeepConfig(loop=DeepLoopConfig(dreams_per_cycle=3), dreams=DreamConfig(seed=4))
    assert DeepLoop(settings=given).config.dreams_per_cycle == 3
    assert DeepLoop(settings=given).dream_engine().config.seed == 4
    assert DeepLoop(given.loop, settings=given, engine=DreamEngine(DreamConfig(seed=4))).settings == given
    with pytest.raises(ConfigError, match=r"settings\.loop"):
        DeepLoop(DeepLoopConfig(dreams_per_cycle=4), settings=given)
    with pytest.raises(ConfigError, match=r"settings\.dreams"):
        DeepLoop(settings=given, engine=DreamEngine())
    thresholds = DeepLoop(DeepLoopConfig(phi_threshold=0.1, consolidation_threshold=0.2)).settings
    assert (thresholds.phi.threshold, thresholds.consolidation.threshold) == (0.1, 0.2)


@pytest.mark.parametrize(
    "settings",
    [
        *(
            DeepConfig(loop=DeepLoopConfig(**{name: value}))  # type: ignore[arg-type]
            for name, value in {
                "max_vector_bytes": 1 << 20,
                "pattern_items": 3,
                "system_patterns": 3,
                "system_queries": 30,
                "transfer_patterns": 3,
                "keep_dreams": 1,
                "keep_dreams_each": 3,
            }.items()
        ),
        DeepConfig(transfer=TransferConfig(min_similarity=0.75)),
    ],
)
def test_settings_that_only_postgres_has_a_use_for_are_refused(settings: DeepConfig) -> None:
    with pytest.raises(ConfigError, match="has no effect on a loop in memory"):
        DeepLoop(settings=settings)


# ---- the loops together ----------------------------------------------------------------------------------------------


def test_the_example_of_the_reference_works() -> None:
    """ "Learning Loop Integration", with trajectories of two topics."""

    def create_trajectory(id: int) -> QueryTrajectory:
        builder = TrajectoryBuilder(id, np.eye(256, dtype=np.float32)[id % 2])
        builder.add_step(np.eye(256, dtype=np.float32)[2 + id % 2], reward=1.0)
        builder.add_step(np.eye(256, dtype=np.float32)[4 + id % 2], reward=0.0)
        return builder.build(0.8)

    instant = InstantLoop(256, InstantLoopConfig())
    background = BackgroundLoop(BackgroundLoopConfig(), 256)
    deep = DeepLoop(DeepLoopConfig(), bank=background.reasoning_bank())

    for id in range(120):
        instant.on_inference(create_trajectory(id))
    instant.flush_updates()

    trajectories = instant.drain_trajectories()
    assert len(trajectories) >= 100
    assert background.run_cycle(trajectories).patterns_extracted == 2

    result = deep.run_cycle()
    assert result.dreams_integrated == 0
    # Both loops look at the same clock: a pattern of a minute ago is not an old one.
    assert len(background.reasoning_bank().patterns) == 2
    assert all(pattern.total_weight > 59 for pattern in background.reasoning_bank().patterns)

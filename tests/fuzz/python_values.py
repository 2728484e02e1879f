"""Arguments for the public Python of sona_pg: good ones by parameter, hostile ones by what the parameter takes.

What takes a value from outside (a number, a text, an array, an id, JSON, a setting) is given anything at all. What
takes an object of sona_pg is given one that was made from hostile parts: another kind is for the type checker.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

import sona_pg
from sona_pg import InstantLoopConfig, LoraConfig, QueryAdapterConfig, SignalConfig, SpaceConfig, StoreConfig
from sona_pg.config import BoundaryConfig, EvidenceConfig, EwcConfig, PatternConfig, StrategyConfig, VerdictConfig
from sona_pg.kernels import LowRank
from sona_pg.learning.edges import EdgeUpdate
from sona_pg.types import Answer, Score, SignalMetadata

from .anything import (
    DIM,
    Any_,
    anything,
    arrays,
    good_recalls,
    good_signals,
    good_trajectories,
    hostile_answers,
    hostile_recalls,
    hostile_signals,
    hostile_trajectories,
    ids,
    item_ids,
    json_values,
    numbers,
    rewards,
    texts,
    typed_arrays,
    typed_trajectories,
    vectors,
)
from .objects import _state_of, adapter, background, bank, base, boundary, ewc, micro

_tasks = st.builds(
    sona_pg.TaskMemory,
    typed_arrays,
    typed_arrays,
    st.integers(-1, 9),
    st.one_of(st.none(), st.floats()),
    st.one_of(st.just("exact"), texts),
    st.floats(),
)
_ewcs = {
    "config": st.sampled_from((EwcConfig(param_count=DIM), EwcConfig(DIM, sparsity=0.1, project_gradients=True))),
    "theta": st.one_of(st.none(), vectors),
    "boundary": st.sampled_from((None, BoundaryConfig(warm_up=2))),
    "embedding_dim": st.sampled_from((None, DIM)),
}


def _damaged_export() -> Any_:
    """An export, of which a part is missing or replaced, anywhere in it."""

    def damaged(place: str, key: str, part: object, gone: bool) -> dict[str, Any]:
        exported: Any = bank().export()
        inner = exported if place == "top" else exported["patterns"][0]
        if place == "arm":
            inner = exported["verdicts"]["1"][0]["arms"][0]
        name = sorted(inner)[len(key) % len(inner)]
        inner[name] = part
        if gone:
            del inner[name]
        return exported  # type: ignore[no-any-return]

    return st.builds(damaged, st.sampled_from(("top", "pattern", "arm")), texts, json_values, st.booleans())


_banks = {
    "config": st.sampled_from((None, PatternConfig(k_clusters=3))),
    "verdict_config": st.sampled_from((None, VerdictConfig(max_values=2))),
}
edge_updates = st.lists(st.builds(EdgeUpdate, st.tuples(item_ids, item_ids), st.booleans()), max_size=3)
settings_of = {
    "config": st.just(None),
    "adapter": st.sampled_from((None, QueryAdapterConfig(rank=2))),
    "instant": st.sampled_from((None, InstantLoopConfig())),
    "signal": st.sampled_from((None, SignalConfig(max_gradient_norm=1))),
    "store": st.sampled_from((None, StoreConfig(prepare_statements=False))),
    "space_config": st.sampled_from((None, SpaceConfig(), SpaceConfig(strategy="fusion", examination=(1.0, 0.5)))),
    "evidence": st.sampled_from((None, EvidenceConfig(batch=3))),
}
_unit = st.lists(st.just([1.0, 0.0, 0.0, 0.0]), min_size=2, max_size=2).map(
    lambda r: [np.array(x, dtype=np.float32) for x in r]
)

GOOD: dict[str, Any_] = {
    "a": item_ids,
    "b": item_ids,
    "activations": vectors,
    "answer": st.just(Answer()),
    "answered": st.one_of(vectors, good_recalls),
    "attention_weights": vectors,
    "baseline": st.just(0.5),
    "capacity": st.integers(1, 9),
    "dim": st.just(DIM),
    "embedder": st.just(None),
    "embedding": vectors,
    "embedding_column": st.just("embedding"),
    "factor": st.just(0.1),
    "filter": st.sampled_from((None, {}, {"id": 1}, {"id": [1, 2]}, {"id": {"gte": 1, "ne": None}})),
    "filter_columns": st.sampled_from(((), ("id",))),
    "final_quality": rewards,
    "gradient": vectors,
    "gradients": vectors,
    "lambda_": st.just(30.0),
    "theta": vectors,
    "loss": st.one_of(st.none(), numbers),
    "vector": vectors,
    "gradient_estimate": vectors,
    "hidden_dim": st.just(DIM),
    "id": ids,
    "id_column": st.just("id"),
    "item_id": item_ids,
    "item_ids": st.lists(item_ids, min_size=2, max_size=2),
    "items": _unit,
    "k": st.integers(1, 20),
    "latency_us": st.just(0),
    "layer_idx": st.sampled_from((0, 1)),
    "learning_rate": st.just(0.01),
    "limit": st.just(5),
    "metadata": st.just(None),
    "model_weights": st.builds(lambda: np.eye(DIM)),
    "name": st.just("reward"),
    "out": st.builds(lambda: np.zeros(DIM, dtype=np.float32)),
    "position": st.just(1),
    "quality": st.just(0.5),
    "quality_score": st.just(0.5),
    "queries": st.lists(vectors, max_size=3),
    "query": vectors,
    "query_embedding": vectors,
    "rank": st.sampled_from((1, 2)),
    "reward": rewards,
    "rewards": st.lists(rewards, min_size=2, max_size=2),
    "scale": st.just(0.01),
    "score_id": st.none(),
    "seed": st.just(1),
    "session_id": st.none(),
    "skip": st.just(np.zeros(0, dtype=np.int64)),
    "space": st.just("fuzz python"),
    "targets": st.just([1.0, 0.0]),
    "trajectory_id": st.uuids(),
    "up_only": st.just(False),
    "updates": edge_updates,
    "user_id": st.none(),
    "value": rewards,
    "weight": st.just(1.0),
    "weights": st.just(np.ones((2, DIM), dtype=np.float32)),
    "x": vectors,
    "step": st.just(np.ones((2, DIM), dtype=np.float32)),
    "arm": st.just("learned"),
    "reason": st.just("a reason"),
    "version": st.just(1),
    "strategy": st.just("adapted"),
    "propensity": st.just(1.0),
    "steps": st.just(()),
    "step_count": st.just(1),
    "has_advantage": st.booleans(),
    "timestamp": st.just(0.0),
    "accept_lost": st.booleans(),
    "wait": st.booleans(),
    **settings_of,
}
"""By parameter; settings of configs are good at their defaults."""

ANSWER = uuid.UUID(int=7)
"""An answer that the engine has recorded, which can be asked why."""

_batch: dict[str, Any_] = {
    **{name: st.just(np.ones((3, DIM), dtype=np.float32)) for name in ("x", "gradient")},
    "out": st.builds(lambda: np.zeros((2, DIM), dtype=np.float32)),
}

_background: dict[str, Any_] = {
    "config": st.sampled_from((None, sona_pg.BackgroundLoopConfig(min_trajectories=1))),
    "items": st.none(),
    "patterns": st.sampled_from((None, PatternConfig(k_clusters=3))),
    "verdicts": st.sampled_from((None, VerdictConfig(max_values=2))),
    "base": st.none(),
    "space": settings_of["space_config"],
}
_lora = {"config": st.sampled_from((None, LoraConfig(rank=1, num_layers=2, train_down=True)))}
_no_paths = st.one_of(
    st.sampled_from(("", "/", "\0", "/nonexistent/base", "\ud800", b"base", None)), numbers, arrays, st.just(Path("/"))
)
"""What no file can be written to: another text would be one in the working directory."""

GOOD_OF: dict[str, dict[str, Any_]] = {
    "BackgroundLoop.__init__": _background,
    "BackgroundLoop.is_due": {"waiting": st.just(3), "now": st.just(1.0)},
    "BackgroundLoop.run_cycle": {
        "trajectories": st.lists(good_trajectories, min_size=1, max_size=3),
        "now": st.sampled_from((None, 1.0)),
    },
    "BaseLoRA.__init__": {
        **_lora,
        "rank": st.sampled_from((None, 1, 2)),
        "num_layers": st.sampled_from((None, 1, 3)),
        "items": st.just(np.eye(DIM, dtype=np.float32)),
    },
    "BaseLoRA.from_bytes": {"data": st.builds(lambda: base().to_bytes())},
    "BaseLoRA.load": {"path": st.just("/nonexistent/base")},
    "BaseLoRA.load_state": {"state": st.builds(lambda: base().state())},
    "BaseLoRA.save": {"path": st.just("/dev/null/base")},
    "BaseLoRA.set_alpha": {"alpha": st.just(2.0)},
    "EdgeWeights.__init__": {"scale": st.sampled_from((None, 0.01))},
    "EwcPlusPlus.__init__": _ewcs,
    "EwcPlusPlus.load_state": {"state": st.builds(lambda: ewc().state())},
    "EwcPlusPlus.proximal_step": {"step": st.one_of(st.just(0.1), vectors.map(np.abs))},
    "EwcPlusPlus.remember": {"task": st.builds(lambda: ewc().tasks[0])},
    "InstantLoop.__init__": {"space": settings_of["space_config"], "pool": st.none(), "store": st.none()},
    "InstantLoop.on_inference": {"trajectory": good_trajectories},
    "InstantLoop.publish": {"cause": texts},
    "InstantLoop.on_score": {"score": st.builds(Score, st.uuids(), st.just(1.0), item_ids, st.just("reward"), texts)},
    "LearningSignal.__init__": {"metadata": st.just(SignalMetadata())},
    "LearningSignal.from_trajectory": {"trajectory": good_trajectories},
    "MicroLoRA.accumulate_gradient": {"signal": good_signals},
    "MicroLoRA.backward": {"out": st.builds(lambda: np.zeros((2, DIM), dtype=np.float32))},
    "MicroLoRA.backward_batch": _batch,
    "MicroLoRA.fisher_batch": _batch,
    "MicroLoRA.forward_batch": {
        "x": st.just(np.ones((3, DIM), dtype=np.float32)),
        "out": st.builds(lambda: np.zeros((3, DIM), dtype=np.float32)),
    },
    "MicroLoRA.load_state": {"state": st.builds(lambda: micro().state())},
    "QueryAdapter.__init__": {"items": st.just(np.eye(DIM, dtype=np.float32))},
    "QueryAdapter.learn": {"pool": st.just(np.eye(DIM, dtype=np.float32))},
    "QueryAdapter.load_state": {"state": st.builds(lambda: adapter().state())},
    "QueryAdapter.stand_on": {"base": st.sampled_from((base().layers[0], base().layers[1]))},
    "ReasoningBank.__init__": _banks,
    "ReasoningBank.add_trajectory": {
        "trajectory": good_trajectories,
        "parameters": st.sampled_from((None, {"a": 1, "b": "x"})),
        "precision": st.sampled_from((None, 0.5)),
        "recall": st.sampled_from((None, 0.5)),
    },
    "ReasoningBank.add_trajectories": {"trajectories": st.lists(good_trajectories, max_size=3)},
    "ReasoningBank.attach_text": {"id": st.just(1), **dict.fromkeys(("title", "description", "content"), texts)},
    "ReasoningBank.consolidate_patterns": {"now": st.just(1.0)},
    "ReasoningBank.extract_patterns": {"now": st.just(1.0)},
    "ReasoningBank.get_pattern": {"id": st.just(1)},
    "ReasoningBank.get_verdict": {"id": st.just(1)},
    "ReasoningBank.import_": {"exported": st.builds(lambda: bank().export()), "now": st.just(1.0)},
    "ReasoningBank.optimized_params": {
        "query": vectors,
        "k": st.integers(0, 9),
        "defaults": st.sampled_from((None, {"a": 1, "z": None})),
    },
    "ReasoningBank.prune_patterns": {"now": st.sampled_from((1.0, 1e12))},
    "Recall.__init__": {"items": st.just(())},
    "SonaEngine.connect": {
        "url": st.none(),
        "home": st.none(),
        "background": st.just(False),
        "strategy": st.sampled_from((None, StrategyConfig())),
        "responder": st.none(),
        "text_column": st.none(),
    },
    "SonaEngine.forget": {"user_id": texts},
    "SonaEngine.load": {
        "path": st.just("/nonexistent/space"),
        "url": st.none(),
        "home": st.none(),
        "background": st.just(False),
        "responder": st.none(),
        "text_column": st.none(),
    },
    "SonaEngine.optimized_params": {"defaults": st.sampled_from((None, {"a": 1, "z": None}))},
    "SonaEngine.save": {"path": st.just("/dev/null/space")},
    "SonaEngine.set_items": {"items": st.just("public.fuzz_python")},
    "SonaEngine.why": {"trajectory_id": st.sampled_from((ANSWER, uuid.UUID(int=1)))},
    "SignalMetadata.__init__": {
        "explicit_feedback": st.one_of(st.none(), st.floats(0, 1)),
        "model_tier": st.one_of(st.none(), texts),
    },
    "TaskBoundary.__init__": {"config": _ewcs["boundary"]},
    "TaskBoundary.load_state": {"state": st.builds(lambda: boundary().state())},
    "TrajectoryBuffer.drain_into": {"target": st.one_of(st.builds(list), st.builds(deque))},
    "InstantLoop.on_inferences": {"trajectories": st.lists(good_trajectories, max_size=3), "wait": st.booleans()},
    "SonaEngine.record_batch": {
        "queries": st.builds(lambda n: np.ones((2, n)), st.just(DIM)),
        "item_ids": st.sampled_from((None, [["1", "2"], ["3", "4"]], [None, ["1"]])),
        "rewards": st.sampled_from((None, [[1.0, 0.0], [None, 0.5]], np.ones((2, 2)), [{"1": 1.0}, None])),
        "qualities": st.sampled_from((None, [0.5, None], np.ones(2))),
        "latencies_us": st.sampled_from((None, [0, 5])),
        "user_ids": st.sampled_from((None, ["ann", None])),
        "session_ids": st.sampled_from((None, ["s", None])),
        "metadata": st.sampled_from((None, [None, {"a": 1}])),
        "trajectory_ids": st.one_of(st.none(), st.lists(st.uuids(), min_size=2, max_size=2)),
        "wait": st.booleans(),
    },
    "TrajectoryBuffer.record": {"trajectory": good_trajectories},
    "TrajectoryBuffer.record_from": {"trajectories": st.lists(good_trajectories, max_size=3), "start": st.just(0)},
    "TrajectoryBuffer.refuse": {"count": st.just(1)},
}

HOSTILE_OF: dict[str, dict[str, Any_]] = {
    "BackgroundLoop.__init__": _background,
    "BaseLoRA.__init__": _lora,
    "BaseLoRA.from_bytes": {
        "data": st.one_of(
            st.binary(max_size=99),
            st.builds(
                lambda at, bit: bytes(b ^ (bit * (i == at)) for i, b in enumerate(base().to_bytes())),
                st.integers(0, 3000),
                st.integers(0, 255),
            ),
        )
    },
    "BaseLoRA.load": {"path": st.one_of(_no_paths, texts)},
    "BaseLoRA.load_state": {"state": _state_of(base)},
    "BaseLoRA.save": {"path": _no_paths},
    "InstantLoop.__init__": {
        name: GOOD_OF["InstantLoop.__init__"].get(name, GOOD.get(name, st.none()))
        for name in ("config", "adapter", "signal", "space", "pool", "store")
    },
    "EwcPlusPlus.__init__": {**_ewcs, "theta": st.one_of(typed_arrays, arrays), "embedding_dim": numbers},
    "EwcPlusPlus.load_state": {"state": _state_of(ewc)},
    "EwcPlusPlus.remember": {"task": _tasks},
    "InstantLoop.on_inference": {"trajectory": st.one_of(hostile_trajectories, typed_trajectories, anything)},
    "InstantLoop.on_inferences": {
        "trajectories": st.one_of(st.lists(st.one_of(typed_trajectories, anything), max_size=3), anything),
    },
    "InstantLoop.on_score": {"score": st.builds(Score, anything, anything, anything, anything, anything)},
    "LearningSignal.from_trajectory": {
        "trajectory": typed_trajectories,
        "baseline": st.floats(),
        "config": st.just(SignalConfig(max_gradient_norm=1e-6)),
    },
    "MicroLoRA.__init__": {"signal": settings_of["signal"]},
    "MicroLoRA.accumulate_gradient": {"signal": hostile_signals},
    "MicroLoRA.load_state": {"state": _state_of(micro)},
    "QueryAdapter.__init__": {"config": st.sampled_from((QueryAdapterConfig(rank=5), QueryAdapterConfig(rank=4)))},
    "QueryAdapter.load_state": {"state": _state_of(adapter)},
    "QueryAdapter.stand_on": {"base": st.sampled_from((LowRank(DIM, 1), LowRank(DIM + 1, 1)))},
    "ReasoningBank.__init__": _banks,
    "ReasoningBank.add_trajectory": {"trajectory": st.one_of(typed_trajectories, anything)},
    "ReasoningBank.import_": {"exported": st.one_of(_damaged_export(), anything)},
    "SonaEngine.connect": {
        "url": st.sampled_from(
            ("", "x", "host=/nonexistent", "postgresql://[", "postgresql:///x?nonsense=1", "\0", "a=b=c")
        ),
        "home": st.none(),
        "background": st.just(False),
        "strategy": st.sampled_from((None, StrategyConfig(), StrategyConfig(stake_rank=1))),
        **{name: settings_of[name] for name in ("instant", "adapter", "evidence", "store", "space_config")},
    },
    "SonaEngine.load": {
        "path": st.one_of(_no_paths, texts),
        "url": st.none(),
        "home": st.none(),
        "background": st.just(False),
        **{name: settings_of[name] for name in ("evidence", "store")},
    },
    "SonaEngine.save": {"path": _no_paths},
    "SonaEngine.record": {
        "answered": st.one_of(hostile_recalls, hostile_trajectories, typed_trajectories, good_trajectories, anything)
    },
    "SonaEngine.record_batch": {
        "queries": st.one_of(st.lists(st.one_of(vectors, arrays), max_size=2), typed_arrays, anything),
        "item_ids": st.one_of(st.lists(st.lists(anything, max_size=2), min_size=2, max_size=2), anything),
        "rewards": st.one_of(
            st.lists(st.one_of(st.lists(anything, min_size=2, max_size=2), anything), min_size=2, max_size=2),
            typed_arrays,
            anything,
        ),
        **{
            name: st.one_of(st.lists(anything, min_size=2, max_size=2), anything)
            for name in ("qualities", "latencies_us", "user_ids", "session_ids", "metadata", "trajectory_ids")
        },
    },
    "TaskBoundary.__init__": {"config": _ewcs["boundary"]},
    "TaskBoundary.load_state": {"state": _state_of(boundary)},
    "TrajectoryBuffer.drain_into": GOOD_OF["TrajectoryBuffer.drain_into"],
    "TrajectoryBuilder.build": {"answer": hostile_answers},
}
"""Where not anything at all is hostile, but something of a kind."""

MAKERS: dict[str, Callable[[], Any]] = {
    "BackgroundLoop": background,
    "BaseLoRA": base,
    "EdgeWeights": sona_pg.EdgeWeights,
    "EwcPlusPlus": ewc,
    "InstantLoop": lambda: sona_pg.InstantLoop(DIM),
    "MicroLoRA": micro,
    "QueryAdapter": adapter,
    "ReasoningBank": bank,
    "TaskBoundary": boundary,
    "TrajectoryBuffer": lambda: sona_pg.TrajectoryBuffer(2),
    "TrajectoryBuilder": lambda: sona_pg.TrajectoryBuilder(1, np.ones(DIM)),
}
"""A fresh object for every call of a method; the engine is one, and outlives all calls."""


def _learn_on(loop: sona_pg.InstantLoop) -> list[Any]:
    loop.flush_updates()
    return [loop.learner.adapter.trained.weights, loop.micro_lora.weights]


def _commit(edges: sona_pg.EdgeWeights) -> list[Any]:
    edges.commit()
    return [np.array(list(edges._weights.values()), dtype=np.float64)]


NUMBERS_OF: dict[str, Callable[[Any], list[Any]]] = {
    "BaseLoRA": lambda base: list(base.state().values()),
    "EdgeWeights": _commit,
    "EwcPlusPlus": lambda ewc: [*ewc.state().values(), ewc.stiffness, ewc.pull],
    "InstantLoop": _learn_on,
    "MicroLoRA": lambda lora: list(lora.state().values()),
    "QueryAdapter": lambda adapter: list(adapter.state().values()),
    "ReasoningBank": lambda bank: [p.centroid for p in bank.extract_patterns(now=2.0)],
    "TaskBoundary": lambda boundary: list(boundary.state().values()),
    "TrajectoryBuilder": lambda builder: (
        [s.activations for s in builder._steps] + [s.attention_weights for s in builder._steps]
    ),
}
"""What of an object must stay finite, whatever was refused or taken; having learned what it was given."""

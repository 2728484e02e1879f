"""The adapters against the same in NumPy, and against a call that does nothing."""

from __future__ import annotations

from itertools import count

import numpy as np

from benchmarks.harness import Row, compare
from sona_pg.config import QueryAdapterConfig
from sona_pg.kernels import LowRank, empty_call, empty_call_views, reference
from sona_pg.learning.base_lora import LoRALayer
from sona_pg.learning.lora import MicroLoRA
from sona_pg.learning.merging import merge
from sona_pg.learning.query_adapter import QueryAdapter
from sona_pg.learning.serving import Serving
from sona_pg.types import FloatVector, LearningSignal

DIM = 384


def run(*, quick: bool) -> list[Row]:
    """Forward and update of the adapters, batches of the base LoRA, and maps put together."""
    rounds = 50 if quick else 300
    random = np.random.default_rng(0)
    return [*_micro(random, rounds), *_adapter(random, rounds), *_base(random, rounds), _merging(random, rounds)]


def _micro(random: np.random.Generator, rounds: int) -> list[Row]:
    lora = MicroLoRA(DIM, 2)
    lora.load(random.standard_normal((4, DIM)) * 0.05)
    weights = lora.weights.copy()
    down, up = np.ascontiguousarray(weights[:2].T), weights[2:].copy()
    scale = np.float32(lora.scale)
    x = random.standard_normal(DIM, dtype=np.float32)
    out = np.zeros(DIM, dtype=np.float32)

    def numpy_forward() -> None:
        out.__iadd__(scale * ((x @ down) @ up))

    def python_empty(x: FloatVector, out: FloatVector) -> None:
        pass

    params: dict[str, int | float | str] = {"d": DIM, "rank": 2}
    rows = [
        compare("micro forward", params, lambda: lora.forward(x, out), name, rival, rounds=rounds, inner=2000)
        for name, rival in (
            ("NumPy", numpy_forward),
            ("empty compiled call, typed views", lambda: empty_call_views(x, out)),
            ("empty compiled call, untyped", lambda: empty_call(x, out)),
            ("empty Python call", lambda: python_empty(x, out)),
        )
    ]
    block = random.standard_normal((256, DIM), dtype=np.float32)
    sink = np.zeros_like(block)

    def numpy_batch() -> None:
        sink.__iadd__(scale * ((block @ down) @ up))

    rows.append(
        compare(
            "micro forward, batch",
            {**params, "n": 256},
            lambda: lora.forward_batch(block, sink),
            "NumPy",
            numpy_batch,
            rounds=rounds,
            inner=20,
        )
    )

    gradient = random.standard_normal(DIM, dtype=np.float32) * np.float32(0.01)
    signal = LearningSignal.with_gradient(x, gradient, 0.8)
    accumulated = np.zeros_like(weights)

    def update() -> None:
        lora.accumulate_gradient(signal)
        lora.apply_accumulated(1e-9)

    def numpy_update() -> None:
        accumulated.__iadd__(0.3 * reference.backward(weights, float(scale), x, gradient))
        weights.__iadd__(np.float32(1e-9) * accumulated)
        accumulated.fill(0)

    rows.append(compare("micro update", params, update, "NumPy", numpy_update, rounds=rounds, inner=200))
    return rows


def _base(random: np.random.Generator, rounds: int) -> list[Row]:
    found = []
    for dim, rank, n in ((384, 8, 1), (384, 8, 256), (384, 8, 4096), (384, 16, 256), (1536, 16, 256)):
        layer = LoRALayer(dim, rank, train_down=True)
        layer.set_parameters(random.standard_normal(2 * rank * dim) * 0.05)
        weights = layer.weights.copy()
        x, g, sink = (random.standard_normal((n, dim), dtype=np.float32) for _ in range(3))
        out = np.zeros((2 * rank, dim), dtype=np.float32)
        for name, ours, rival in (
            (
                "base forward, batch",
                lambda layer=layer, x=x, sink=sink: layer.forward_batch(x, sink),
                lambda w=weights, rank=rank, x=x, sink=sink: sink.__iadd__((x @ w[:rank].T) @ w[rank:]),
            ),
            (
                "base gradient, batch",
                lambda layer=layer, x=x, g=g, out=out: layer.backward_batch(x, g, out),
                lambda w=weights, x=x, g=g, out=out: out.__iadd__(reference.backward_batch(w, 1.0, x, g)),
            ),
            (
                "base Fisher, batch",
                lambda layer=layer, x=x, g=g, out=out: layer.fisher_batch(x, g, out),
                lambda w=weights, x=x, g=g, out=out: out.__iadd__(reference.fisher_batch(w, 1.0, x, g)),
            ),
        ):
            params: dict[str, int | float | str] = {"d": dim, "rank": rank, "n": n}
            inner = max(1, 2000 // n)
            found.append(compare(name, params, ours, "NumPy", rival, rounds=rounds // 2, inner=inner))
    return found


def _merging(random: np.random.Generator, rounds: int) -> Row:
    """Base, adapter and micro-LoRA as one map, against the singular values of the dense matrix."""
    maps = []
    for rank in (16, 8, 2):
        low_rank = LowRank(DIM, rank)
        low_rank.load(random.standard_normal((2 * rank, DIM)) * 0.05)
        maps.append(low_rank)

    def dense() -> None:
        total = sum(m.weights[: m.rank].T.astype(np.float64) @ m.weights[m.rank :] for m in maps)
        np.linalg.svd(total)

    params: dict[str, int | float | str] = {"d": DIM, "ranks": "16+8+2", "to": 16}
    return compare("merge", params, lambda: merge(maps, 16), "dense SVD", dense, rounds=max(5, rounds // 30), inner=1)


def _adapter(random: np.random.Generator, rounds: int) -> list[Row]:
    config = QueryAdapterConfig(learning_rate=1e-6)
    judged = 13
    pool = random.standard_normal((4096, DIM), dtype=np.float32)
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)
    adapter = QueryAdapter(DIM, config, items=pool)
    x = pool[0] + np.float32(0.5) * pool[1]
    items, skip = [pool[i] for i in range(judged)], np.arange(judged, dtype=np.int64)
    targets = [1.0] + [0.0] * (judged - 1)
    seeds = count()
    state = reference.ListwiseState(
        adapter.trained.weights.copy(),
        np.zeros((2 * adapter.rank, DIM), dtype=np.float32),
        np.zeros((2 * adapter.rank, DIM), dtype=np.float32),
        adapter.served.weights.copy(),
    )

    def update() -> None:
        adapter.learn(x, list(items), targets, pool=pool, skip=skip, seed=next(seeds))

    draw = np.random.default_rng(1)

    def numpy_update() -> None:
        rows = draw.integers(0, len(pool), config.negatives)
        candidates = np.concatenate([np.stack(items), pool[rows]])
        target = np.zeros(len(candidates), dtype=np.float32)
        target[0] = 1
        reference.listwise_step(
            state,
            x,
            candidates,
            target,
            scale=1.0,
            temperature=config.temperature,
            learning_rate=config.learning_rate,
            beta1=config.beta1,
            beta2=config.beta2,
            epsilon=config.epsilon,
            average=config.average_decay,
        )

    params: dict[str, int | float | str] = {"d": DIM, "rank": config.rank, "candidates": judged + config.negatives}
    serving = Serving.frozen([adapter.served])
    down = np.ascontiguousarray(adapter.served.weights[: config.rank].T)
    up = adapter.served.weights[config.rank :].copy()
    update()
    serving = Serving.frozen([adapter.served])
    return [
        compare("adapter update", params, update, "NumPy", numpy_update, rounds=rounds, inner=20),
        compare(
            "adapt",
            {"d": DIM, "rank": config.rank},
            lambda: serving.adapt(x),
            "NumPy",
            lambda: x + (x @ down) @ up,
            rounds=rounds,
            inner=500,
        ),
    ]

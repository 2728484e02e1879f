"""Objects of sona_pg that have learned something, for hostile calls."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

import sona_pg
from sona_pg import QueryAdapterConfig
from sona_pg.config import BoundaryConfig, EwcConfig, PatternConfig
from sona_pg.types import LearningSignal, QueryTrajectory

from .anything import DIM, Any_, arrays


def _state_of(kind: Callable[[], Any]) -> Any_:
    """A state, of which a part is missing or replaced."""
    parts = sorted(kind().state())
    return st.builds(
        lambda name, part, gone: {k: v for k, v in {**kind().state(), name: part}.items() if k != gone},
        st.sampled_from(parts),
        arrays.filter(lambda a: isinstance(a, np.ndarray)),
        st.sampled_from((*parts, None)),
    )


def micro() -> sona_pg.MicroLoRA:
    """One that has something to apply."""
    made = sona_pg.MicroLoRA(DIM, 1)
    made.accumulate_gradient(LearningSignal.with_gradient([1.0] * DIM, [1.0, 0.0, 0.0, 0.0], 1.0))
    return made


def base() -> sona_pg.BaseLoRA:
    """One that is not zero."""
    made = sona_pg.BaseLoRA(DIM, 2, 2)
    made.layers[1].set_parameters(np.ones(2 * DIM))
    return made


def background() -> sona_pg.BackgroundLoop:
    """One that has seen nothing, and takes in anything."""
    return sona_pg.BackgroundLoop(sona_pg.BackgroundLoopConfig(min_trajectories=1), DIM)


def adapter() -> sona_pg.QueryAdapter:
    """A fresh one."""
    return sona_pg.QueryAdapter(DIM, QueryAdapterConfig(rank=2))


def bank() -> sona_pg.ReasoningBank:
    """One with a pattern, and a verdict on a parameter."""
    made = sona_pg.ReasoningBank(PatternConfig(embedding_dim=DIM, min_cluster_size=1, k_clusters=3))
    for i in range(8):
        trajectory = QueryTrajectory(uuid.UUID(int=i), np.eye(DIM, dtype=np.float32)[i % 2], (), i / 8)
        made.add_trajectory(trajectory, parameters={"a": i % 3, "b": "xy"[i % 2]})
    made.extract_patterns(now=1.0)
    return made


def ewc() -> sona_pg.EwcPlusPlus:
    """One that remembers a task, and has a Fisher of the next."""
    made = sona_pg.EwcPlusPlus(EwcConfig(param_count=DIM), boundary=BoundaryConfig(warm_up=2))
    for k in range(2):
        made.update_fisher(np.eye(DIM))
        if not k:
            made.start_new_task(np.ones(DIM), 0.5)
    return made


def boundary() -> sona_pg.TaskBoundary:
    """One past its warm-up."""
    made = sona_pg.TaskBoundary(DIM, BoundaryConfig(warm_up=2))
    for k in range(4):
        made.observe(np.full(DIM, k % 3))
    return made

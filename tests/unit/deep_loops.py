"""Banks and settings for loop C in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sona_pg import DeepConfig, DeepLoopConfig, DreamEvidenceConfig, PatternConfig, PhiConfig, ReasoningBank

from .memories import DIM
from .samples import trajectory

FEW = DeepLoopConfig(dreams_per_node=0.0)
BRIEF = DeepConfig(evidence=DreamEvidenceConfig(repeats=3), phi=PhiConfig(random_paths=100, shuffles=3))
QUICK = replace(BRIEF, loop=FEW)


def bank_of(topics: int = 16, each: int = 6, quality: float = 0.8) -> ReasoningBank:
    random = np.random.default_rng(5)
    bank = ReasoningBank(PatternConfig(embedding_dim=DIM, k_clusters=topics, min_cluster_size=2))
    centres = random.standard_normal((topics, DIM))
    for id in range(topics * each):
        bank.add_trajectory(trajectory(centres[id % topics] + 0.1 * random.standard_normal(DIM), (), quality, id))
    bank.extract_patterns(now=0.0)
    return bank

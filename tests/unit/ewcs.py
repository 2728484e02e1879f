"""EWC++ with tasks behind it, for the tests of several files."""

from __future__ import annotations

import numpy as np

from sona_pg.config import EwcConfig
from sona_pg.learning.ewc import EwcPlusPlus


def make(p: int = 3, **settings: object) -> EwcPlusPlus:
    return EwcPlusPlus(EwcConfig(param_count=p, **settings))  # type: ignore[arg-type]


def learned(p: int = 3, tasks: int = 2, seed: int = 0, **settings: object) -> EwcPlusPlus:
    """Has tasks behind it, one in hand, and has looked at some vectors."""
    ewc, random = make(p, **settings), np.random.default_rng(seed)
    for task in range(tasks + 1):
        ewc.update_fisher(random.standard_normal((5, p)))
        if task < tasks:
            ewc.start_new_task(random.standard_normal(p).astype(np.float32), None if task % 2 else 0.5)
    for _ in range(40):
        ewc.detect_task_boundary(random.standard_normal(p))
    return ewc

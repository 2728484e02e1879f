"""How many inputs are tried: few and always the same ones in `make test`, many and new ones with SONA_FUZZ=full."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from hypothesis import HealthCheck, Phase, seed, settings

FULL = os.environ.get("SONA_FUZZ") == "full"
SEED = int(os.environ.get("SONA_FUZZ_SEED", time.time_ns() % 1_000_000_000))
"""Of the full form; printed, so that a run can be repeated."""

executed: Counter[str] = Counter()
"""Inputs that were really given to an entry."""

refused: Counter[tuple[str, str]] = Counter()
"""Refusals by entry and kind of error."""

_Test = TypeVar("_Test", bound=Callable[..., None])


def tries(short: int, full: int) -> Callable[[_Test], _Test]:
    """So many examples in the short and in the full form."""
    # Hypothesis counts what it does while shrinking as well: the counts above say what was executed.
    common = settings(
        max_examples=full if FULL else short,
        derandomize=not FULL,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )
    return lambda test: seed(SEED)(common(test)) if FULL else common(test)

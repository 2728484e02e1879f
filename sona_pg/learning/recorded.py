"""What an application records of an answer beside its items: its quality, what was used for it, what was fed back."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sona_pg.config import MAX_ID_BYTES, VerdictConfig
from sona_pg.errors import InvalidInput
from sona_pg.learning.verdicts import canonical
from sona_pg.types import UNKNOWN, Json, QueryTrajectory, finite_or_none

PARAMETERS = "parameters"
"""Key in a trajectory's metadata under which an application records what parameters it used, by name."""

STRATEGY = "strategy"
"""The strategy that answered is a parameter, too, of this name."""

Used = tuple[tuple[str, Json], ...]
"""Parameters by name."""

FedBack = tuple[float | None, float | None]
"""Precision and recall, 0 to 1."""

NOTHING: FedBack = (None, None)


def used_parameters(given: object, strategy: str, config: VerdictConfig) -> tuple[Used, int]:
    """What was used, the strategy included; and how many values were left out: too long, or parameters too many.

    Raises
    ------
    InvalidInput
        If a parameter is no JSON, or has no name.
    """
    if given is None:
        given = {}
    if not isinstance(given, Mapping):
        raise InvalidInput(f"parameters are {type(given).__name__}, expected values by name")
    used: dict[str, Json] = {}
    skipped = 0
    if strategy != UNKNOWN:
        used[STRATEGY] = strategy
    for name, value in given.items():
        if not isinstance(name, str):
            raise InvalidInput(f"a parameter is called {name!r}, expected a text")
        is_long = (
            len(canonical(value).encode()) > config.max_value_bytes
            or len(name.encode(errors="surrogatepass")) > MAX_ID_BYTES
        )
        if is_long or (name not in used and len(used) >= config.max_parameters):
            skipped += 1
        else:
            used[name] = value
    return tuple(used.items()), skipped


def fed_back(precision: object, recall: object) -> FedBack:
    """Precision and recall.

    Raises
    ------
    InvalidInput
        If one is neither None nor from 0 to 1.
    """
    found = _share_or_none(precision, "precision"), _share_or_none(recall, "recall")
    return NOTHING if found == NOTHING else found  # one for all


def quality_of(trajectory: QueryTrajectory) -> float | None:
    """The final quality, else the mean reward of the steps that have one, else None."""
    if trajectory.final_quality is not None:
        return finite_or_none(trajectory.final_quality, "final quality")
    rewards = [finite_or_none(step.reward, "reward") for step in trajectory.steps]
    known = [reward for reward in rewards if reward is not None]
    return finite_or_none(math.fsum(known) / len(known), "mean reward") if known else None


def _share_or_none(value: object, what: str) -> float | None:
    number = finite_or_none(value, what)  # type: ignore[arg-type]
    if number is not None and not 0 <= number <= 1:
        raise InvalidInput(f"{what} is {number!r}, expected 0 to 1")
    return number

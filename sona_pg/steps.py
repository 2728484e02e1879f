"""Named moments of the loops at which a test may kill the process; in production each costs one comparison.

``SONA_TEST_KILL_AT=flush.after_scores:3`` ends the process by SIGKILL when it reaches that step for the third time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping

from sona_pg.errors import ConfigError

ENV_KILL_AT = "SONA_TEST_KILL_AT"

FLUSH = (
    "flush.before_lock",
    "flush.after_lock",
    "flush.after_state",
    "flush.after_trajectories",
    "flush.after_scores",
    "flush.after_pending",
    "flush.after_edges",
    "flush.after_learner",
    "flush.after_ledger",
    "flush.before_commit",
    "flush.after_commit",
)
"""Of the learning transaction, in order. After the commit: it is durable, and the process does not know yet."""

EVIDENCE = (
    "evidence.before_lock",
    "evidence.after_lock",
    "evidence.after_entries",
    "evidence.after_events",
    "evidence.after_state",
    "evidence.before_commit",
    "evidence.after_commit",
)
"""Of the strategist's transaction, in order."""

FORGET = (
    "forget.after_replay",
    "forget.after_lock",
    "forget.after_rows",
    "forget.after_ledger",
    "forget.after_learner",
    "forget.before_commit",
    "forget.after_commit",
)
"""Of the transaction that forgets a user, in order."""

EMBEDDER = (
    "embedder.after_prepare",
    "embedder.after_queries",
    "embedder.after_embedding",
    "embedder.after_entries",
    "embedder.after_relearning",
    "embedder.after_lock",
    "embedder.after_copy",
    "embedder.before_commit",
    "embedder.after_commit",
)
"""Of a change of the embedder, in order; after_queries and after_entries are reached once for each batch."""

CYCLE = (
    "cycle.after_claim",
    "cycle.after_read",
    "cycle.after_compute",
    "cycle.after_fence",
    "cycle.after_write",
    "cycle.after_commit",
    "cycle.before_finish",
    "cycle.after_finish",
)
"""Of a cycle, in order; those from after_read to after_commit are reached once for each of its phases."""

MIGRATE = ("migrate.after_revision", "migrate.before_commit")
"""Of a migration; the first is reached once for each revision."""

STEPS: Mapping[str, tuple[str, ...]] = {
    "instant": FLUSH,
    "evidence": EVIDENCE,
    "forget": FORGET,
    "embedder": EMBEDDER,
    "cycle": CYCLE,
    "migrate": MIGRATE,
}
"""The steps of every loop, and of what people start: the chaos test kills at each of the loops'."""


def _killer(aim: str | None) -> Callable[[str], None] | None:
    """What kills at the step that `aim` names."""
    if not aim:
        return None
    step, _, count = aim.partition(":")
    if step not in {name for names in STEPS.values() for name in names} or not (count or "1").isdecimal():
        raise ConfigError(f"{ENV_KILL_AT} is {aim!r}, expected a step of sona_pg.steps, as in flush.after_scores:3")
    left = int(count or "1")

    def kill(name: str) -> None:
        nonlocal left
        left -= name == step
        if name == step and left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return kill


_act = _killer(os.environ.get(ENV_KILL_AT))


def reached(name: str) -> None:
    """Say that a step is reached."""
    if _act is not None:
        _act(name)

"""Answers with their outcomes, by versions that are published one after another."""

from __future__ import annotations

import uuid

from sona_pg.engine import Recall

from .recurring import World

LEARNED = ("adapted", "familiar", "boosted", "stake", "fusion", "related")


def _publish(world: World, cause: str = "a test") -> int:
    """Publish what the space has learned, as a flush does when enough was, and let its engine know."""
    row = world.rows(f"SELECT sona._publish(%(space)s, '{cause}')")[0]
    world.rows("UPDATE sona.learner SET revision = revision + 1 WHERE space_id = %(space)s RETURNING revision")
    world.engine.flush()
    return int(str(row[0]))


def _answered(world: World, question: int = 0) -> tuple[Recall, uuid.UUID]:
    """An answer with its outcome, learned."""
    found = world.engine.recall(world.ask(question))
    id = world.engine.record(found, rewards={str(world.answers[question]): 1.0})
    world.engine.flush()
    return found, id

"""Judged lists: what one answer teaches about items, to be learned again; and a bounded sample of all of them."""

from __future__ import annotations

import heapq
import math
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from sona_pg.ids import learning_seed
from sona_pg.kernels import unit
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.outcome import OutcomeEvent, judged_items
from sona_pg.types import FloatVector

Resolve = Callable[[str], FloatVector | None]
"""Gives the embedding of an item by its id, if it is known."""


@dataclass(frozen=True, slots=True, eq=False)
class JudgedList:
    """A query, the items that were judged for it, and how much each helped.

    Parameters
    ----------
    key
        Trajectory and revision; randomness is keyed by it.
    query
        (dim,), as it was asked.
    item_ids, items
        Ids and unit embeddings (dim,) of the judged items that have one.
    targets
        How much each helped, 0 if it did not.
    shown
        Whether each was part of the answer; else somebody marked it as helpful.
    """

    key: tuple[uuid.UUID, int]
    query: FloatVector
    item_ids: tuple[str, ...]
    items: tuple[FloatVector, ...]
    targets: tuple[float, ...]
    shown: tuple[bool, ...]

    @property
    def seed(self) -> int:
        """64 bits that depend on the key alone."""
        return learning_seed(*self.key)

    @property
    def teaches(self) -> bool:
        """Whether an item that helped has a known embedding."""
        return any(target > 0 for target in self.targets)


def judged_list(
    event: OutcomeEvent,
    pool: ItemPool,
    *,
    implicit_feedback: bool,
    max_marked: int,
    resolve: Resolve | None = None,
) -> JudgedList | None:
    """The judged list of an event; None when nothing in it newly helped.

    Parameters
    ----------
    pool
        Embeddings of items; a view of its rows is kept, not a copy.
    implicit_feedback, max_marked
        See `sona_pg.learning.outcome.judged_items`.
    resolve
        Embeddings of items that are neither in the event nor in the pool.
    """
    query = event.trajectory.query_embedding
    ids: list[str] = []
    items: list[FloatVector] = []
    targets: list[float] = []
    shown: list[bool] = []
    judged = judged_items(event, implicit_feedback=implicit_feedback, max_marked=max_marked)
    for item in judged:
        row = pool.row(item.item_id)
        embedding: FloatVector | None = None
        if item.activations.size:
            embedding = unit(item.activations)
        elif row is not None:
            embedding = pool.embeddings[row]
        elif resolve is not None and (found := resolve(item.item_id)) is not None and found.size == query.size:
            embedding = unit(found)
        if embedding is not None:
            ids.append(item.item_id)
            items.append(embedding)
            targets.append(item.target)
            shown.append(item.was_shown)
    return JudgedList(event.key, query, tuple(ids), tuple(items), tuple(targets), tuple(shown)) if judged else None


def reservoir_sample(ids: Iterable[uuid.UUID], size: int) -> list[uuid.UUID]:
    """A uniform sample of trajectories: those with the smallest hashes, at most `size`, in the order of these.

    It depends on the set of ids alone, not on their order or on restarts; and a sample of samples is the one of all.
    """
    return heapq.nsmallest(size, ids, key=reservoir_key)


def reservoir_key(trajectory_id: uuid.UUID) -> tuple[int, int]:
    """By what a reservoir is sorted: the hash, and the id where two are the same."""
    return reservoir_hash(trajectory_id), trajectory_id.int


def reservoir_hash(trajectory_id: uuid.UUID) -> int:
    """64 bits that look random for every kind of id (splitmix64's finaliser; Steele et al. 2014)."""
    value = learning_seed(trajectory_id)
    value = (value ^ (value >> 30)) * 0xBF58_476D_1CE4_E5B9 & 0xFFFF_FFFF_FFFF_FFFF
    value = (value ^ (value >> 27)) * 0x94D0_49BB_1331_11EB & 0xFFFF_FFFF_FFFF_FFFF
    return value ^ (value >> 31)


def helpful_items(lists: Iterable[JudgedList], most: int, dim: int) -> ItemPool:
    """The items that helped in any of these lists: the negatives of a base.

    That an item which never helped anywhere did not help here says nothing: it may be the answer to what nobody asked
    yet. As a negative it is pushed away from all queries, and is not found when somebody does ask.

    Parameters
    ----------
    most
        How many are kept, a sample by the hash of the first list in which each helped.
    """
    return _sampled_items(lists, most, dim, least=0.0)


def shown_items(lists: Iterable[JudgedList], most: int, dim: int) -> ItemPool:
    """The items of these lists, helpful or not, of which `most` are kept as `helpful_items` does."""
    return _sampled_items(lists, most, dim, least=-math.inf)


def _sampled_items(lists: Iterable[JudgedList], most: int, dim: int, *, least: float) -> ItemPool:
    found: dict[str, tuple[int, FloatVector]] = {}
    for judged in lists:
        hashed = reservoir_hash(judged.key[0])
        for id, item, target in zip(judged.item_ids, judged.items, judged.targets, strict=True):
            if target > least and (id not in found or hashed < found[id][0]):
                found[id] = hashed, item
    kept = sorted(found, key=lambda id: (found[id][0], id))[:most]
    return ItemPool(kept, np.stack([found[id][1] for id in kept])) if kept else ItemPool.empty(dim)

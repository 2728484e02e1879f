"""Domains one after the other: what is learned of the later ones, and what is forgotten of the earlier ones.

An adapter per domain, as spaces have them, against one that all domains share, with and without protection.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import DistillationConfig, EwcConfig, QueryAdapterConfig
from sona_pg.errors import ConfigError, DimensionMismatch
from sona_pg.evaluation.collection import Collection
from sona_pg.evaluation.feedback import SPACE, Feedback
from sona_pg.evaluation.metrics import ndcg_at_10, rank_documents
from sona_pg.evaluation.protocol import Progress, Stream
from sona_pg.evaluation.splits import SplitKind, make_split
from sona_pg.kernels import LowRank
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.judged_list import judged_list
from sona_pg.learning.lora import orthonormal_rows
from sona_pg.learning.outcome import OutcomeEvent
from sona_pg.learning.serving import Serving
from sona_pg.learning.shared_adapter import SharedAdapter
from sona_pg.types import Json

SEPARATE, SEQUENTIAL, DISTILLED, CONSOLIDATED = "adapter per space", "shared", "shared, distillation", "shared, EWC++"

Gains = NDArray[np.float64]
"""(domains, domains): nDCG@10 of domain j after domain i was learned, less that of the frozen embedding."""


@dataclass(frozen=True, slots=True)
class Continual:
    """One way to learn domains in sequence, in one seed.

    Parameters
    ----------
    frozen
        nDCG@10 of each domain before anything was learned.
    gains
        See `Gains`.
    """

    frozen: tuple[float, ...]
    gains: Gains

    @property
    def acc(self) -> float:
        """Mean nDCG@10 over domains at the end."""
        return float(np.mean(self.frozen)) + self.gain

    @property
    def gain(self) -> float:
        """Mean gain over domains at the end."""
        return float(self.gains[-1].mean())

    @property
    def bwt(self) -> float:
        """Backward transfer: what later domains did to earlier ones (Lopez-Paz & Ranzato 2017)."""
        earlier = range(len(self.gains) - 1)
        return float(np.mean([self.gains[-1, j] - self.gains[j, j] for j in earlier]))

    @property
    def fwt(self) -> float:
        """Forward transfer: what earlier domains did to a domain that was not learned yet."""
        return float(np.mean([self.gains[j - 1, j] for j in range(1, len(self.gains))]))

    @property
    def forgetting(self) -> float:
        """Mean over earlier domains of the best since each was learned, less the last; 0 or more."""
        earlier = range(len(self.gains) - 1)
        return float(np.mean([self.gains[j:, j].max() - self.gains[-1, j] for j in earlier]))


@dataclass(frozen=True, slots=True)
class ContinualReport:
    """What domains in sequence did, over all seeds.

    Parameters
    ----------
    domains
        Names, in order.
    methods
        A result for each seed, by name.
    """

    domains: tuple[str, ...]
    methods: dict[str, tuple[Continual, ...]]

    def mean(self, method: str, figure: Callable[[Continual], float]) -> float:
        """Over seeds."""
        return statistics.fmean(figure(run) for run in self.methods[method])

    def share(self, method: str) -> float | None:
        """The gain as a share of the unprotected shared adapter's; None where that has none."""
        sequential = self.mean(SEQUENTIAL, lambda run: run.gain)
        return self.mean(method, lambda run: run.gain) / sequential if sequential > 0 else None


def evaluate_continual(
    collections: Sequence[Collection],
    *,
    seeds: int,
    split_kind: SplitKind = SplitKind.RANDOM,
    feedback: Feedback = Feedback.FULL,
    recipe: QueryAdapterConfig | None = None,
    distillation: DistillationConfig | None = None,
    ewc: EwcConfig | None = None,
    progress: Progress | None = None,
) -> ContinualReport:
    """Learn the stream of each collection after that of the one before, and measure all of them after each.

    Parameters
    ----------
    collections
        At least two, of one dimension.
    seeds
        How many; seed s is split s of every collection.
    split_kind, feedback
        As in `sona_pg.evaluation.evaluate_collection`.
    recipe, distillation, ewc
        Settings.
    progress
        Is told how many streams are learned, and how many there are.

    Raises
    ------
    ConfigError
        If there are fewer than two collections, or no seed.
    DimensionMismatch
        If the collections differ in dimension: one adapter cannot be shared.
    """
    if len(collections) < 2:
        raise ConfigError(f"{len(collections)} collection given, expected at least two: learn one after the other")
    if seeds < 1:
        raise ConfigError(f"seeds is {seeds}, expected at least 1")
    dim = collections[0].docs.shape[1]
    for collection in collections[1:]:
        if collection.docs.shape[1] != dim:
            raise DimensionMismatch(
                dim, collection.docs.shape[1], f"embeddings of {collection.name}, to share an adapter"
            )
    distillation = DistillationConfig() if distillation is None else distillation
    protections: dict[str, tuple[DistillationConfig | None, EwcConfig | None]] = {
        SEQUENTIAL: (None, None),
        DISTILLED: (distillation, None),
        CONSOLIDATED: (None, EwcConfig() if ewc is None else ewc),
    }
    found: dict[str, list[Continual]] = {name: [] for name in (SEPARATE, *protections)}
    total, done = seeds * len(found) * len(collections), 0
    for seed in range(seeds):
        domains = [_Domain(collection, split_kind, seed, feedback) for collection in collections]
        frozen = tuple(domain.ndcg(None) for domain in domains)
        for name, runs in found.items():
            keeps, consolidates = protections.get(name, (None, None))
            gains = np.zeros((len(domains), len(domains)))
            adapter: SharedAdapter | None = None
            for place, domain in enumerate(domains):
                if adapter is None or name == SEPARATE:
                    adapter = SharedAdapter(
                        dim, recipe, items=domain.pool.embeddings, distillation=keeps, ewc=consolidates, seed=seed
                    )
                domain.learn(adapter, ends=place < len(domains) - 1)
                for column, other in enumerate(domains):
                    # A space is answered by its own adapter, and others do not change it.
                    if name == SEPARATE and column != place:
                        gains[place, column] = gains[place - 1, column] if column < place else 0.0
                    else:
                        gains[place, column] = other.ndcg(adapter.served) - frozen[column]
                done += 1
                if progress is not None:
                    progress(done, total)
            runs.append(Continual(frozen, gains))
    return ContinualReport(tuple(c.name for c in collections), {name: tuple(runs) for name, runs in found.items()})


def rotated(collection: Collection, seed: int = 0) -> Collection:
    """The same questions in another space: documents and queries turned by one seeded orthogonal matrix.

    Nothing changes for who starts from the frozen embedding; what was learned elsewhere is of no use.
    """
    turn = orthonormal_rows(collection.docs.shape[1], collection.docs.shape[1], seed)
    return Collection(
        f"{collection.name} rotated",
        collection.doc_ids,
        np.ascontiguousarray(collection.docs @ turn),
        np.ascontiguousarray(collection.queries @ turn),
        collection.relevant,
    )


def continual_json(report: ContinualReport, config: dict[str, Json]) -> dict[str, Json]:
    """The report as JSON: figures as fractions, 0.038 is 3.8 points; matrices are means over seeds."""
    frozen = np.mean([run.frozen for run in next(iter(report.methods.values()))], axis=0)
    methods: dict[str, Json] = {}
    for name, runs in report.methods.items():
        gains = np.mean([run.gains for run in runs], axis=0)
        methods[name] = {
            "acc": report.mean(name, lambda run: run.acc),
            "gain": report.mean(name, lambda run: run.gain),
            "bwt": report.mean(name, lambda run: run.bwt),
            "fwt": report.mean(name, lambda run: run.fwt),
            "forgetting": report.mean(name, lambda run: run.forgetting),
            "forgetting_by_seed": [run.forgetting for run in runs],
            "share_of_shared_gain": report.share(name),
            "gains": [[float(value) for value in row] for row in gains],
        }
    return {
        "domains": [
            {"name": name, "frozen_ndcg10": float(value)} for name, value in zip(report.domains, frozen, strict=True)
        ],
        "methods": methods,
        "config": config,
    }


class _Domain:
    """A collection, its stream and its held-out queries."""

    def __init__(self, collection: Collection, kind: SplitKind, seed: int, feedback: Feedback) -> None:
        self._collection = collection
        split = make_split(collection, kind, seed)
        self._events = len(split.stream)
        self._stream = Stream(collection, split, feedback)
        self._held_out = collection.queries[list(split.held_out)]
        self._relevant = [collection.relevant[query] for query in split.held_out]
        self.pool = ItemPool(collection.doc_ids, collection.docs)

    def learn(self, adapter: SharedAdapter, *, ends: bool) -> None:
        """Every event once, each answered by what is served then."""
        lists, skips = [], []
        for event in range(self._events):
            asked = Serving([adapter.served]).adapt(self._stream.query(event))
            shown = rank_documents(asked[np.newaxis], self._collection.unit_docs)[0]
            judged = judged_list(
                OutcomeEvent(self._stream.trajectory(event, shown)),
                self.pool,
                implicit_feedback=SPACE.implicit_feedback,
                max_marked=adapter.recipe.max_marked,
            )
            if judged is not None and judged.teaches:
                lists.append(judged)
                skips.append(self.pool.rows(judged.item_ids))
                adapter.learn(judged, self.pool.embeddings, skips[-1])
        if ends:
            adapter.end_domain(lists, self.pool.embeddings, skips)

    def ndcg(self, served: LowRank | None) -> float:
        """Mean nDCG@10 of the held-out queries."""
        asked = self._held_out if served is None else Serving([served]).adapt(self._held_out)
        return float(ndcg_at_10(rank_documents(asked, self._collection.unit_docs), self._relevant).mean())

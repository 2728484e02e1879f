"""One adapter for several domains, one after the other: what it answered in earlier ones is held while it learns.

An adapter per space forgets nothing of the others by construction, and gains more. This is for where one must do.
"""

from __future__ import annotations

import copy

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg.config import DistillationConfig, EwcConfig, QueryAdapterConfig
from sona_pg.errors import LearningError, SonaError
from sona_pg.kernels import LowRank, draw
from sona_pg.learning.arrays import as_matrix, normalized_rows
from sona_pg.learning.ewc import EwcPlusPlus
from sona_pg.learning.held_outputs import HeldOutputs
from sona_pg.learning.judged_list import JudgedList
from sona_pg.learning.query_adapter import initial_directions

FloatMatrix = NDArray[np.float32]


class SharedAdapter:
    """``adapt(x) = x + (x A) B``, trained on judged lists as `QueryAdapter` is, with what protects earlier domains.

    *Distillation* (Li & Hoiem 2017): of every earlier domain some queries are remembered, with what the adapter added
    to them when the domain ended. ``μ Σ_domains mean ½ |(x A) B - then|²`` is part of the loss. It protects outputs,
    whatever the factors A and B that give them.

    *EWC++*: a penalty on the factors, by their Fisher information on the remembered lists; its proximal step follows
    each of Adam's, with that coordinate's step size.

    Parameters
    ----------
    dim
        Dimension of queries and items.
    recipe
        Of the query adapter.
    items
        Sample of the items (n, dim) of the first domain, for the initial directions.
    distillation, ewc
        Protections; none of those that are not given.
    seed
        Of what is remembered, and of the queries by which a step is held.
    """

    def __init__(
        self,
        dim: int,
        recipe: QueryAdapterConfig | None = None,
        *,
        items: ArrayLike,
        distillation: DistillationConfig | None = None,
        ewc: EwcConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.recipe = QueryAdapterConfig.for_dim(dim) if recipe is None else recipe
        rank = self.recipe.rank
        self._distillation = distillation
        self._random = np.random.Generator(np.random.PCG64(seed))
        weights = np.vstack([initial_directions(as_matrix(items, dim, "items"), rank), np.zeros((rank, dim))])
        self._trained, self.served = LowRank(dim, rank), LowRank(dim, rank)
        self._trained.load(weights)
        self.served.load(weights)
        self._moment1, self._moment2 = (np.zeros((2 * rank, dim), dtype=np.float32) for _ in range(2))
        self._steps = 0
        self._held: HeldOutputs | None = None
        self._ewc = None if ewc is None else EwcPlusPlus(ewc, self._trained.weights.reshape(-1))

    def learn(self, judged: JudgedList, pool: FloatMatrix, skip: NDArray[np.int64]) -> float:
        """One step on one judged list; the loss before it, in nats.

        Parameters
        ----------
        pool, skip
            Unit rows (n, dim) to draw negatives from, and those that must not be drawn.

        Raises
        ------
        LearningError
            If the list teaches nothing or the loss is not finite; nothing was changed.
        """
        c, trained = self.recipe, self._trained
        gradient, loss = self._gradient(trained, judged, pool, skip)
        if self._held is not None:
            self._held.add_gradient(trained, self._random, gradient)
        if not np.isfinite(gradient).all():
            raise LearningError("the loss or its gradient is out of range: the weights have run away")
        self._steps += 1
        t = self._steps
        self._moment1 += np.float32(1 - c.beta1) * (gradient - self._moment1)
        self._moment2 += np.float32(1 - c.beta2) * (gradient * gradient - self._moment2)
        root = np.sqrt(self._moment2 / np.float32(1 - c.beta2**t)) + np.float32(c.epsilon)
        trained.weights[...] -= np.float32(c.learning_rate / (1 - c.beta1**t)) * self._moment1 / root
        if self._ewc is not None:
            self._ewc.proximal_step(trained.weights, np.float32(c.learning_rate) / root)
        average = min(c.average_decay, (1 + t) / (10 + t))
        self.served.weights[...] += np.float32(1 - average) * (trained.weights - self.served.weights)
        trained.refresh()
        self.served.refresh()
        return loss

    def end_domain(self, lists: list[JudgedList], pool: FloatMatrix, skips: list[NDArray[np.int64]]) -> None:
        """Remember a domain before the next one begins.

        Parameters
        ----------
        lists, skips
            Of the domain; of so many as are remembered the queries are kept, drawn at random. Those that teach nothing
            are left out.
        pool
            Its items.

        Raises
        ------
        LearningError
            If a loss is not finite, or the Fisher information leaves the range of float32; nothing was changed.
        """
        pairs = [(j, s) for j, s in zip(lists, skips, strict=True) if j.teaches and j.query.any()]
        if not pairs:
            return
        most = DistillationConfig().queries if self._distillation is None else self._distillation.queries
        random = copy.deepcopy(self._random)
        chosen = [pairs[number] for number in random.permutation(len(pairs))[:most]]
        if self._ewc is not None:
            self._consolidate(self._ewc, chosen, pool)
        if self._distillation is not None:
            queries = normalized_rows(np.stack([judged.query for judged, _ in chosen]))
            then = np.zeros_like(queries)
            self.served.forward_batch(queries, then)
            held, c = self._held, self._distillation
            counts = [len(queries)]
            if held is not None:
                queries, then = np.vstack([held.queries, queries]), np.vstack([held.outputs, then])
                counts = [*held.counts, *counts]
            self._held = HeldOutputs(queries, then, counts, c.weight, c.batch)
        self._random = random

    def _consolidate(
        self, ewc: EwcPlusPlus, pairs: list[tuple[JudgedList, NDArray[np.int64]]], pool: FloatMatrix
    ) -> None:
        """Remember where the domain is served from, and what it needs there: all of it, or nothing."""
        gradients = [self._gradient(self.served, judged, pool, skip)[0].ravel() for judged, skip in pairs]
        before = ewc.state()
        try:
            for gradient in gradients:
                ewc.update_fisher(gradient)
            ewc.start_new_task(self.served.weights.reshape(-1))
        except SonaError:
            ewc.load_state(before)
            raise

    def _gradient(
        self, low_rank: LowRank, judged: JudgedList, pool: FloatMatrix, skip: NDArray[np.int64]
    ) -> tuple[FloatMatrix, float]:
        """Of the listwise loss under a map, as `sona_pg.kernels.ListwiseTrainer` takes it."""
        if not judged.teaches:
            raise LearningError("nothing in the list helped: there is nothing to learn")
        c = self.recipe
        drawn = draw(judged.seed, len(pool), c.negatives, skip)
        candidates = np.vstack([np.stack(judged.items), pool[drawn]])
        targets = np.zeros(len(candidates), dtype=np.float32)
        targets[: len(judged.targets)] = judged.targets
        targets /= targets.sum()
        adapted = judged.query.copy()
        low_rank.forward(judged.query, adapted)
        norm = np.float32(np.linalg.norm(adapted))
        if not norm > 0:
            raise LearningError("the query is the zero vector: it has no direction")
        adapted /= norm
        scores = candidates @ adapted / np.float32(c.temperature)
        scores -= scores.max()
        likely = np.exp(scores)
        total = likely.sum()
        at_output = ((likely / total - targets) / np.float32(c.temperature)) @ candidates
        at_output = (at_output - (at_output @ adapted) * adapted) / norm
        gradient = np.zeros_like(low_rank.weights)
        low_rank.backward(judged.query, at_output, gradient)
        return gradient, float(np.log(total) - targets @ scores)

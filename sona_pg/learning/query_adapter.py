"""The query adapter: a low-rank map of queries, trained by one listwise step per judged answer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg.config import MAX_DIM, QueryAdapterConfig
from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput, LearningError, SonaError
from sona_pg.kernels import ListwiseTrainer, LowRank, as_vector
from sona_pg.learning.arrays import as_matrix, check_parts
from sona_pg.learning.lora import checked_seed, orthonormal_rows
from sona_pg.learning.merging import composed
from sona_pg.types import FloatVector

FloatMatrix = NDArray[np.float32]

BASE = "base"
"""Part of the state that is there where there is a base."""

_NO_POOL: FloatMatrix = np.zeros((0, 0), dtype=np.float32)
_NO_ROWS: NDArray[np.int64] = np.zeros(0, dtype=np.int64)


_ROWS = 256
"""Rows that are taken together where another copy of all would take too much memory."""


def initial_directions(items: ArrayLike, rank: int, seed: int = 0) -> FloatMatrix:
    """The directions that the adapter reads a query by, before anything was learned.

    The mean direction of the items, then their principal directions orthogonal to it, as unit rows (rank, dim). Random
    orthonormal rows fill up where the items span fewer.

    Parameters
    ----------
    items
        (n, dim), may be empty.
    """
    block = as_matrix(items, -1, "items").astype(np.float64)
    n, dim = block.shape
    if n == 0:
        return orthonormal_rows(rank, dim, seed)
    mean = block.mean(axis=0)
    # In place, and a part at a time: of a whole sample in double precision there is one copy and no more.
    spread = block
    spread -= mean
    # The smaller of the two Gram matrices has the same non-zero spectrum.
    wide = n < dim
    length = float(np.linalg.norm(mean))
    found: list[NDArray[np.float64]] = []
    if length > 1e-6:
        found.append(mean / length)
        along = spread @ found[0]
        for start in range(0, n, _ROWS):
            spread[start : start + _ROWS] -= np.outer(along[start : start + _ROWS], found[0])
    values, vectors = np.linalg.eigh(spread @ spread.T if wide else spread.T @ spread)
    for index in np.argsort(values)[::-1][: rank - len(found)]:
        if values[index] <= 1e-9 * max(float(values[-1]), 1e-12):
            break
        direction = spread.T @ vectors[:, index] if wide else vectors[:, index]
        direction = direction / np.linalg.norm(direction)
        # An eigenvector's sign is arbitrary: fix it, so that every machine starts from the same rows.
        found.append(direction * np.sign(direction[np.argmax(np.abs(direction))]))
    if len(found) < rank:
        extra = orthonormal_rows(rank, dim, seed).astype(np.float64)
        q, _ = np.linalg.qr(np.vstack([*found, *extra]).T)
        found.extend(q.T[len(found) : rank])
    return np.ascontiguousarray(found[:rank], dtype=np.float32)


class QueryAdapter:
    """``adapt(x) = x + (x A) B``, A and B trained, the moving average of the weights served.

    A fresh adapter returns its input, bit for bit. One optimiser step per judged list: listwise softmax over cosines
    to the shown, the marked and some random items, back-propagated through the normalisation of the adapted query.

    It may stand on a base, a map that is constant while it learns: then it learns what that leaves to be learned,
    ``adapt(x) = y + (y A) B`` with ``y = x + (x A_b) B_b``.

    Parameters
    ----------
    dim
        Dimension of queries and items.
    config
        The recipe.
    items
        Sample of the items (n, dim), for the initial directions; random orthonormal ones without.
    seed
        Of those.
    """

    def __init__(
        self, dim: int, config: QueryAdapterConfig | None = None, *, items: ArrayLike | None = None, seed: int = 0
    ) -> None:
        if not isinstance(dim, int) or dim is True or not 1 <= dim <= MAX_DIM:
            raise ConfigError(f"dimension is {dim!r}, expected a whole number from 1 to {MAX_DIM}")
        self.config = QueryAdapterConfig.for_dim(dim) if config is None else config
        rank = self.config.rank
        if rank > dim:
            raise ConfigError(f"rank {rank} exceeds the dimension {dim}: choose a rank of at most {dim}")
        c = self.config
        self._trainer = ListwiseTrainer(
            LowRank(dim, rank), LowRank(dim, rank), c.temperature, c.beta1, c.beta2, c.epsilon
        )
        sample = as_matrix(np.zeros((0, dim)) if items is None else items, dim, "items")
        down = initial_directions(sample, rank, checked_seed(seed))
        weights = np.vstack([down, np.zeros((rank, dim), dtype=np.float32)])
        self.trained.load(weights)
        self.served.load(weights)
        self.base: LowRank | None = None
        """What it stands on; None while that is nothing."""

    def stand_on(self, base: LowRank) -> None:
        """Learn on top of a base from now on; the map itself stays. A base that is zero is none.

        Raises
        ------
        DimensionMismatch
            If it is of another dimension.
        """
        if base.dim != self.dim:
            raise DimensionMismatch(self.dim, base.dim, "the base")
        self.base = None if base.is_zero else base

    @property
    def map(self) -> LowRank:
        """What answers as one map of the input, base included: a copy where there is one, else `served` itself."""
        base, own = self.base, self.served
        if base is None:
            return own
        r, rank, then = base.rank, own.rank, composed(base, own).weights
        joint, first = LowRank(self.dim, r + rank), _scaled(base)
        joint.load(np.vstack([first[:r], then[:rank], first[r:], then[rank:]]))
        return joint

    @property
    def dim(self) -> int:
        """Dimension of queries and items."""
        return self.trained.dim

    @property
    def rank(self) -> int:
        """Rank of the map."""
        return self.trained.rank

    @property
    def trained(self) -> LowRank:
        """The map that is trained."""
        return self._trainer.trained

    @property
    def served(self) -> LowRank:
        """The map that answers: the moving average of the trained one."""
        return self._trainer.served

    @property
    def steps(self) -> int:
        """How many lists were learned."""
        return self._trainer.steps

    @property
    def param_count(self) -> int:
        """How many weights are trained."""
        return self.trained.weights.size

    @property
    def nbytes(self) -> int:
        """Memory of weights, averages and moments, bytes."""
        return 4 * self.trained.weights.nbytes + (0 if self.base is None else self.base.weights.nbytes)

    def adapt(self, x: ArrayLike) -> FloatMatrix | FloatVector:
        """The adapted query (dim,), or queries (n, dim); see `sona_pg.learning.serving.Serving`."""
        from sona_pg.learning.serving import Serving

        return Serving([self.map]).adapt(x)

    def learn(
        self,
        query: ArrayLike,
        items: list[FloatVector],
        targets: list[float],
        *,
        pool: FloatMatrix = _NO_POOL,
        skip: NDArray[np.int64] = _NO_ROWS,
        seed: int = 0,
    ) -> float:
        """One step on one judged list.

        Parameters
        ----------
        query
            (dim,).
        items, targets
            Unit vectors (dim,) that were judged and how much each helped, at least one above 0.
        pool, skip
            Unit rows (n, dim) to draw negatives from, and those that must not be drawn.
        seed
            Of the draw.

        Returns
        -------
        float
            The loss before the step, in nats.

        Raises
        ------
        LearningError
            If the input is not valid or the loss not finite; nothing was changed.
        """
        if self.base is not None:
            given = as_vector(query, self.dim, "query")
            query = given.copy()
            self.base.forward(given, query)
        t = self.steps + 1
        average = min(self.config.average_decay, (1 + t) / (10 + t))
        try:
            return self._trainer.step(
                query, items, targets, pool, skip, seed, self.config.negatives, self.config.learning_rate, average
            )
        except SonaError:
            raise
        except (TypeError, ValueError, OverflowError, BufferError) as cause:
            raise InvalidInput(
                f"an argument is not of the type that it must have ({cause}): nothing changed"
            ) from cause

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Everything that a continuation needs, as arrays."""
        return {
            "trained": self.trained.weights,
            "served": self.served.weights,
            "moment1": self._trainer.moment1,
            "moment2": self._trainer.moment2,
            "steps": np.array(self.steps, dtype=np.int64),
            **({} if self.base is None else {BASE: _scaled(self.base)}),
        }

    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Continue from what `state` gave; bit for bit.

        Raises
        ------
        LearningError
            If a part is missing, of another shape, or not finite; nothing was changed.
        """
        blocks = {
            "trained": self.trained.weights,
            "served": self.served.weights,
            "moment1": self._trainer.moment1,
            "moment2": self._trainer.moment2,
        }
        base = None
        if BASE in state:
            base = _base(state[BASE], self.dim)
        check_parts("adapter", state, {name: part for name, part in self.state().items() if name != BASE})
        self.base = base
        for name, block in blocks.items():
            block[...] = state[name]
        self.trained.refresh()
        self.served.refresh()
        self._trainer.steps = int(state["steps"])


def _scaled(base: LowRank) -> FloatMatrix:
    """The weights (2 rank, dim) of the same map with scale 1."""
    weights: FloatMatrix = base.weights.copy()
    weights[base.rank :] *= np.float32(base.scale)
    return weights


def _base(weights: NDArray[np.generic], dim: int) -> LowRank:
    shape = weights.shape
    if weights.dtype != np.float32 or len(shape) != 2 or shape[0] % 2 or not shape[0] or shape[1] != dim:
        raise LearningError(
            f"the base of the adapter's state is {weights.dtype} {shape}, expected float32 (2 rank, {dim}): it is "
            "damaged, or belongs to another space"
        )
    base = LowRank(dim, shape[0] // 2)
    try:
        base.load(weights)
    except InvalidInput as cause:
        raise LearningError("the base of the adapter's state is not finite: it is damaged") from cause
    return base

"""The gate for dreams: whether one holds together better than random paths through the same space do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg.config import PhiConfig
from sona_pg.errors import InvalidInput
from sona_pg.learning.integration import Integration, as_finite, dream_integration, dream_integrations

Doubles = NDArray[np.float64]

REFERENCE = 0.3
"""Threshold that asks for no more and no less than the quantile of random paths."""

_ROUNDING = 1e-6
"""Values of φ that differ by less may be the same: it is the root of a difference of logarithms."""


@runtime_checkable
class Dreamt(Protocol):
    """What has been dreamt."""

    @property
    def nodes(self) -> Sequence[int]:
        """Places of the nodes, in the order of the path."""


class PhiEvaluator:
    """φ of dreams, and the level from which they may leave something behind.

    Absolute levels mean nothing across embeddings: of random paths through isotropic vectors 4 % reach 0.3 in 64
    dimensions, and none in 384. So the threshold is read on the scale of a space whose random paths reach 0.3 at the
    quantile, in information: ``I(level) = I(quantile of random paths) · I(threshold) / I(0.3)`` with
    ``I(φ) = -½ ln(1 - φ²)``, nats per node.

    Parameters
    ----------
    config
        Its settings.

    Examples
    --------
    >>> import numpy as np
    >>> embeddings = np.random.default_rng(0).standard_normal((500, 64))
    >>> evaluator = PhiEvaluator()
    >>> found = evaluator.evaluate([3, 1, 4, 1, 5], embeddings)
    >>> level = evaluator.calibrate(evaluator.random_path_values(embeddings, 4))
    >>> bool(found.value >= level)
    False
    """

    def __init__(self, config: PhiConfig | None = None) -> None:
        self.config = PhiConfig() if config is None else config

    def evaluate(self, path: Sequence[int], embeddings: ArrayLike, center: ArrayLike | None = None) -> Integration:
        """φ of the distinct nodes of a path.

        Parameters
        ----------
        path
            Rows of `embeddings`, in any order and as often as they were visited.
        embeddings
            (nodes, dim), those of the whole space.
        center
            Their mean, (dim,); computed if None, which costs more than φ where there are many.

        Returns
        -------
        integration
            Its `part` has rows of `embeddings`.

        Raises
        ------
        InvalidInput, DimensionMismatch
            If the path leaves the embeddings, or a number is not finite.
        LearningError
            If the nodes depend on each other linearly and `PhiConfig.ridge` is 0.
        """
        matrix = _as_rows(embeddings)
        nodes = _distinct(path, len(matrix))
        found = dream_integration(matrix[nodes], _center(matrix, center), ridge=self.config.ridge)
        return Integration(found.value, tuple(nodes[place] for place in found.part), found.is_exact)

    def evaluate_dream(
        self, dream: Dreamt | Sequence[int], embeddings: ArrayLike, center: ArrayLike | None = None
    ) -> Integration:
        """`evaluate` of the nodes of a dream, or of a path."""
        return self.evaluate(dream.nodes if isinstance(dream, Dreamt) else dream, embeddings, center)

    def random_path_values(self, embeddings: ArrayLike, nodes: int, center: ArrayLike | None = None) -> Doubles:
        """φ of paths of so many distinct nodes that are drawn uniformly.

        φ depends on how many nodes there are: a dream is compared with paths of as many distinct nodes as it has.

        Parameters
        ----------
        embeddings, center
            As `evaluate` takes them.
        nodes
            Distinct nodes of each path, at most those that there are.

        Returns
        -------
        values
            float64 (`PhiConfig.random_paths`,); the same for the same seed.

        Raises
        ------
        InvalidInput, LearningError
            As `evaluate`.
        """
        matrix = _as_rows(embeddings)
        if not _is_whole(nodes) or not 0 <= nodes <= len(matrix):
            raise InvalidInput(f"nodes is {nodes!r}, expected 0 to {len(matrix)}, as many as there are embeddings")
        middle = _center(matrix, center)
        random = np.random.default_rng((self.config.seed, int(nodes)))
        paths = [random.choice(len(matrix), int(nodes), replace=False) for _ in range(self.config.random_paths)]
        if len(matrix) ** 2 <= self.config.random_paths * int(nodes) ** 2:
            # The products of all rows are fewer than those of each path.
            return dream_integrations(matrix, middle, paths, ridge=self.config.ridge)
        return np.array([dream_integration(matrix[path], middle, ridge=self.config.ridge).value for path in paths])

    def calibrate(self, random_path_values: ArrayLike) -> float:
        """φ from which a dream passes, given that of random paths of as many distinct nodes.

        Parameters
        ----------
        random_path_values
            (paths,), each 0 to 1; at least one.

        Returns
        -------
        level
            0 to 1: the `PhiConfig.quantile` of the values at a threshold of 0.3, less below it and more above. A hair
            above the quantile, so that a dream like all random paths does not pass; 0.0 for a threshold of 0.

        Raises
        ------
        InvalidInput
            If there is no value, or one is not from 0 to 1.
        """
        values = as_finite(random_path_values, 1, "φ of random paths")
        if not len(values) or values.min() < 0 or values.max() > 1:
            raise InvalidInput(
                f"φ of random paths: found {len(values)} values from {values.min(initial=1)} to "
                f"{values.max(initial=0)}, expected at least one, each 0 to 1"
            )
        if self.config.threshold == 0:
            return 0.0
        chance = float(np.quantile(values, self.config.quantile))
        if chance == 1:
            return 1.0
        demand = math.log1p(-(self.config.threshold**2)) / math.log1p(-(REFERENCE**2))
        return min(1.0, math.sqrt(-math.expm1(demand * math.log1p(-(chance**2)))) + _ROUNDING)


def _as_rows(embeddings: ArrayLike) -> NDArray[np.generic]:
    """As an array of two dimensions; what it holds is checked where it is used, there may be many rows."""
    try:
        matrix = np.asarray(embeddings)
    except ValueError as cause:
        raise InvalidInput(f"embeddings: expected an array of shape (nodes, dim) ({cause})") from cause
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiub":
        raise InvalidInput(f"embeddings: found {matrix.dtype} {matrix.shape}, expected numbers of shape (nodes, dim)")
    return matrix


def _center(matrix: NDArray[np.generic], center: ArrayLike | None) -> ArrayLike:
    if center is not None:
        return center
    return matrix.mean(axis=0, dtype=np.float64) if len(matrix) else np.zeros(matrix.shape[1])


def _distinct(path: Sequence[int], count: int) -> list[int]:
    """The nodes of a path in the order of their first visits."""
    try:
        visited = list(path)
    except TypeError as cause:
        raise InvalidInput(f"the path is {path!r}, expected rows of the embeddings ({cause})") from cause
    for node in visited:
        if not _is_whole(node) or not 0 <= node < count:
            raise InvalidInput(f"the path has node {node!r}, expected whole numbers from 0 to {count - 1}")
    return list(dict.fromkeys(int(node) for node in visited))


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)

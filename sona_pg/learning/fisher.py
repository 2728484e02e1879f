"""The diagonal Fisher information as a moving average over samples, without the bias of its beginning."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg import kernels
from sona_pg.errors import ConfigError, InvalidInput
from sona_pg.learning.arrays import as_matrix
from sona_pg.types import FloatVector


class FisherAverage:
    """Moving average of squared gradients of single samples, the newest weighing most (Schwarz et al. 2018).

    A batch of n samples counts as n steps, so that it does not matter how samples are cut into batches; the square is
    taken of each sample's gradient, never of their mean. `value` is F / (1 - β^N) after N samples, at every N.

    Parameters
    ----------
    param_count
        Number of parameters.
    decay
        β, from 0 to below 1.
    """

    def __init__(self, param_count: int, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"decay is {decay!r}, expected 0 to below 1")
        self.value: FloatVector = np.zeros(param_count, dtype=np.float32)
        self.samples = 0
        self._decay = decay

    def update(self, gradients: ArrayLike) -> None:
        """Take in the gradient of one sample (p,), or those of n samples (n, p).

        Raises
        ------
        DimensionMismatch, InvalidInput, LearningError
            If it has another shape, or numbers of which the square is none; nothing was changed.
        """
        rows = gradient_rows(gradients, len(self.value))
        samples = self.samples + len(rows)
        weight = (1 - self._decay ** len(rows)) / (1 - self._decay**samples)
        kernels.fisher_average(self.value, rows, min(weight, 1.0))
        self.samples = samples

    def reset(self) -> None:
        """Begin anew."""
        self.value.fill(0)
        self.samples = 0


def gradient_rows(gradients: ArrayLike, param_count: int) -> NDArray[np.float32]:
    """Gradients of samples, (p,) or (n, p), as a float32 matrix (n, p); the kernel checks that they are finite."""
    if isinstance(gradients, np.ndarray) and gradients.ndim in (1, 2) and gradients.shape[-1:] == (param_count,):
        usable = gradients.dtype == np.float32 and gradients.flags.c_contiguous and gradients.flags.aligned
        if usable and gradients.dtype.isnative and len(gradients):
            return gradients.reshape(-1, param_count)
    if np.ndim(gradients) == 1:
        return kernels.as_vector(gradients, param_count, "the gradient")[np.newaxis]
    rows = as_matrix(gradients, param_count, "gradients")
    if not len(rows):
        raise InvalidInput("no gradients: the Fisher is a mean over at least one sample")
    return rows

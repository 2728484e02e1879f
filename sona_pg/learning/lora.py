"""The micro-LoRA: rank 1 or 2, moved by REINFORCE signals from any steps with activations and rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg import kernels
from sona_pg.config import MAX_DIM, SignalConfig
from sona_pg.errors import ConfigError, InvalidInput
from sona_pg.kernels import LowRank, reference
from sona_pg.learning.arrays import check_parts
from sona_pg.learning.running_mean import RunningMean
from sona_pg.types import FloatVector, LearningSignal, finite_or_none

LARGEST_RATE = 1e6
"""Of `apply_accumulated`: larger steps leave the range of a weight."""


def orthonormal_rows(rank: int, dim: int, seed: int) -> NDArray[np.float32]:
    """`rank` orthonormal random vectors (rank, dim); the same seed gives the same ones."""
    if rank > dim:
        raise ConfigError(f"rank {rank} exceeds the dimension {dim}: choose a rank of at most {dim}")
    gaussian = np.random.Generator(np.random.PCG64(seed)).standard_normal((dim, rank))
    q, r = np.linalg.qr(gaussian)
    return np.ascontiguousarray((q * np.sign(np.diag(r))).T, dtype=np.float32)


def checked_seed(seed: int) -> int:
    """A seed that every generator takes."""
    if not isinstance(seed, int) or not 0 <= seed < 1 << 64:
        raise ConfigError(f"seed is {seed!r}, expected a whole number from 0 to 2**64 - 1")
    return seed


class MicroLoRA(LowRank):
    """Adds ``scale · (x A) B`` to an output, with A (dim, rank), B (rank, dim), rank 1 or 2 (Hu et al. 2021).

    A fresh adapter changes nothing, bit for bit: B is zero. Signals are accumulated and then applied together; the
    step is the exact gradient of ``weight · g·output``, so that it depends on the input: what is learned at one query
    is applied near it.

    Parameters
    ----------
    hidden_dim
        Dimension of input and output.
    rank
        1 or 2.
    seed
        Of the orthonormal initial A.

    Raises
    ------
    ConfigError
        If the rank is not 1 or 2, or the dimension is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> lora = MicroLoRA(256, 1)
    >>> x = np.full(256, 0.1, dtype=np.float32)
    >>> lora.accumulate_gradient(LearningSignal.with_gradient(x, np.full(256, 0.01), 0.8))
    >>> lora.apply_accumulated(0.001)
    >>> out = np.zeros(256, dtype=np.float32)
    >>> lora.forward(x, out)
    >>> bool(out @ np.full(256, 0.01, dtype=np.float32) > 0)
    True
    """

    def __new__(cls, hidden_dim: int, rank: int = 1, *, seed: int = 0, signal: SignalConfig | None = None) -> Self:
        if not isinstance(rank, int) or rank is True or rank not in (1, 2):
            raise ConfigError(f"micro-LoRA rank is {rank!r}, expected 1 or 2: higher ranks belong to the query adapter")
        if not isinstance(hidden_dim, int) or hidden_dim is True or not 1 <= hidden_dim <= MAX_DIM:
            raise ConfigError(f"dimension is {hidden_dim!r}, expected 1 to {MAX_DIM}")
        return super().__new__(cls, hidden_dim, rank, 1 / math.sqrt(rank))  # type: ignore[return-value]

    def __init__(self, hidden_dim: int, rank: int = 1, *, seed: int = 0, signal: SignalConfig | None = None) -> None:
        self._seed = checked_seed(seed)
        self.load(np.vstack([orthonormal_rows(rank, hidden_dim, seed), np.zeros((rank, hidden_dim))]))
        self._gradient = np.zeros((2 * rank, hidden_dim), dtype=np.float32)
        self._accumulated = 0
        config = SignalConfig() if signal is None else signal
        self.baseline = RunningMean.from_config(config)
        self._centring_signals = config.centring_signals
        self._query_sum = np.zeros(hidden_dim, dtype=np.float32)
        self._signals = 0

    @property
    def hidden_dim(self) -> int:
        """Dimension of input and output."""
        return self.dim

    @property
    def param_count(self) -> int:
        """How many weights there are."""
        return self.weights.size

    @property
    def accumulated(self) -> int:
        """How many signals wait for `apply_accumulated`."""
        return self._accumulated

    forward_simd = LowRank.forward
    """`forward`, which takes the widest instructions that the processor has."""

    def forward_scalar(self, x: ArrayLike, out: FloatVector) -> None:
        """`forward` without SIMD, in NumPy: ``out += scale * (x @ A) @ B``."""
        usable = isinstance(out, np.ndarray) and out.dtype == np.float32 and out.flags.writeable
        if not usable or out.shape != (self.dim,):
            raise InvalidInput(f"output must be a writeable float32 vector of {self.dim}: it is changed in place")
        reference.forward(self.weights, self.scale, kernels.as_vector(x, self.dim, "input"), out)

    def accumulate_gradient(self, signal: LearningSignal) -> None:
        """Add the gradient that a signal gives.

        A signal with an advantage of its own counts as it is. Any other is signed by its quality against the running
        mean of the qualities seen: what was worse than usual pushes away and never reinforces. The first signals also
        turn the first column of A to the mean of their queries (`SignalConfig.centring_signals`).

        Raises
        ------
        DimensionMismatch, InvalidInput
            If the signal has another dimension, NaN, or numbers beyond what a weight can hold; nothing was accumulated.
        """
        query, gradient = signal.query_embedding, signal.gradient_estimate
        quality = finite_or_none(signal.quality_score, "quality")
        if quality is None:
            raise InvalidInput("quality is None: a signal needs a number")
        if self._signals < self._centring_signals:
            # A trial, since what is refused must not turn the weights.
            self.backward(query, gradient, np.zeros_like(self._gradient))
            self._centre(query)
        weight = 1.0 if signal.metadata.has_advantage else quality - self.baseline.value
        self.backward(query, gradient, self._gradient, weight)
        self._signals += 1
        self.baseline.add(quality)
        self._accumulated += 1

    def _centre(self, query: FloatVector) -> None:
        """Start from the mean of the queries: a random direction sees them weakly, and some with the opposite sign."""
        self._query_sum += kernels.as_vector(query, self.dim, "query embedding")
        length = float(np.linalg.norm(self._query_sum.astype(np.float64)))
        if length > 1e-6:
            down = self.weights[: self.rank]
            first = (self._query_sum / length).astype(np.float32)
            if self.rank == 2:
                other = orthonormal_rows(2, self.dim, self._seed)[1]
                other = other - float(other @ first) * first
                down[1] = other / max(float(np.linalg.norm(other)), 1e-6)
            down[0] = first

    def apply_accumulated(self, learning_rate: float) -> None:
        """Move along the mean of the accumulated gradients, and forget them."""
        if not isinstance(learning_rate, float | int) or not 0 <= learning_rate <= LARGEST_RATE:
            raise ConfigError(f"learning rate is {learning_rate!r}, expected 0 to {LARGEST_RATE:g}")
        if self._accumulated:
            self.add(self._gradient, learning_rate / self._accumulated)
            self.reset()

    def reset(self) -> None:
        """Forget the accumulated gradients; the weights stay."""
        self._gradient.fill(0)
        self._accumulated = 0

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Everything that a continuation needs, as arrays."""
        return {
            "weights": self.weights,
            "query_sum": self._query_sum,
            "signals": np.array(self._signals, dtype=np.int64),
            "baseline": np.array([self.baseline.value, self.baseline.weight]),
        }

    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Continue from what `state` gave; bit for bit. Accumulated gradients are forgotten.

        Raises
        ------
        LearningError
            If a part is missing, of another shape, or not finite; nothing was changed.
        """
        check_parts("micro-LoRA", state, self.state())
        self.load(state["weights"])
        self._query_sum[...] = state["query_sum"]
        self._signals = int(state["signals"])
        self.baseline.value, self.baseline.weight = (float(part) for part in state["baseline"])
        self.reset()

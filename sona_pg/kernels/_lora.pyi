import numpy as np
from numpy.typing import ArrayLike, NDArray

def aligned_zeros(rows: int, dim: int) -> NDArray[np.float32]: ...
def empty_call(x: object, out: object) -> None: ...
def empty_call_views(x: NDArray[np.float32], out: NDArray[np.float32]) -> None: ...
def draw(seed: int, size: int, n: int, skip: NDArray[np.int64]) -> NDArray[np.int64]: ...

class LowRank:
    dim: int
    rank: int
    weights: NDArray[np.float32]
    def __new__(cls, dim: int, rank: int, scale: float = 1.0) -> LowRank: ...
    @property
    def scale(self) -> float: ...
    @property
    def is_zero(self) -> bool: ...
    def set_scale(self, scale: float) -> None: ...
    def load(self, weights: ArrayLike) -> None: ...
    def refresh(self) -> None: ...
    def forward(self, x: ArrayLike, out: NDArray[np.float32]) -> None: ...
    def forward_batch(self, x: NDArray[np.float32], out: NDArray[np.float32]) -> None: ...
    def backward(self, x: ArrayLike, gradient: ArrayLike, out: NDArray[np.float32], weight: float = 1.0) -> None: ...
    def backward_batch(
        self,
        x: NDArray[np.float32],
        gradient: NDArray[np.float32],
        out: NDArray[np.float32],
        weight: float = 1.0,
        up_only: bool = False,
    ) -> None: ...
    def fisher_batch(
        self,
        x: NDArray[np.float32],
        gradient: NDArray[np.float32],
        out: NDArray[np.float32],
        weight: float = 1.0,
        up_only: bool = False,
    ) -> None: ...
    def add(self, step: NDArray[np.float32], factor: float) -> None: ...

class ListwiseTrainer:
    trained: LowRank
    served: LowRank
    moment1: NDArray[np.float32]
    moment2: NDArray[np.float32]
    steps: int
    temperature: float
    beta1: float
    beta2: float
    epsilon: float
    def __init__(
        self, trained: LowRank, served: LowRank, temperature: float, beta1: float, beta2: float, epsilon: float
    ) -> None: ...
    def step(
        self,
        x: ArrayLike,
        items: list[NDArray[np.float32]],
        targets: list[float],
        pool: NDArray[np.float32],
        skip: NDArray[np.int64],
        seed: int,
        negatives: int,
        learning_rate: float,
        average: float,
        extra: NDArray[np.float32] | None = None,
    ) -> float: ...

import numpy as np
from numpy.typing import NDArray

class OutcomeNeighbours:
    similarities: NDArray[np.float64]
    help_ends: NDArray[np.int64]
    help_items: NDArray[np.int64]
    help_rewards: NDArray[np.float64]
    miss_ends: NDArray[np.int64]
    miss_items: NDArray[np.int64]
    def __init__(
        self,
        similarities: NDArray[np.float64],
        help_ends: NDArray[np.int64],
        help_items: NDArray[np.int64],
        help_rewards: NDArray[np.float64],
        miss_ends: NDArray[np.int64],
        miss_items: NDArray[np.int64],
    ) -> None: ...
    def __len__(self) -> int: ...
    def visible(self, hidden: NDArray[np.uint8] | None, neighbours: int) -> NDArray[np.int64]: ...
    def helped(self, events: NDArray[np.int64], m: int) -> NDArray[np.uint8]: ...

def fusion_features(
    frozen: NDArray[np.float32],
    adapted: NDArray[np.float32],
    query_dot: float,
    rows: NDArray[np.int64],
    near: OutcomeNeighbours,
    counts: NDArray[np.int64],
    hidden: NDArray[np.uint8] | None = None,
    *,
    neighbours: int,
    misses_near: int,
    vote_kernel: float,
    familiar_from: float,
    familiar_width: float,
) -> tuple[NDArray[np.float64], float, float]: ...
def listwise_gradient(
    features: NDArray[np.float64],
    weights: NDArray[np.float64],
    targets: NDArray[np.float64],
    weight: float,
    out: NDArray[np.float64],
) -> float: ...
def adam_step(
    weights: NDArray[np.float64],
    served: NDArray[np.float64],
    moment1: NDArray[np.float64],
    moment2: NDArray[np.float64],
    gradient: NDArray[np.float64],
    steps: int,
    learning_rate: float,
    average: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
) -> None: ...
def order_by_score(scores: NDArray[np.float64], k: int) -> NDArray[np.int64]: ...
def shuffled_sums(
    given: NDArray[np.float64], heights: NDArray[np.float64], seed: int, orders: int
) -> NDArray[np.float64]: ...

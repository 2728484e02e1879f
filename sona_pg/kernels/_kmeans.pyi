import numpy as np
from numpy.typing import NDArray

def assign(
    rows: NDArray[np.float32], centroids: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]: ...
def cluster_sums(
    rows: NDArray[np.float32], labels: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]: ...
def top_k(
    rows: NDArray[np.float32], query: NDArray[np.float32], k: int, *, is_unit: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.float32]]: ...
def kmeans(
    rows: NDArray[np.float32],
    k: int,
    *,
    seed: int = 0,
    max_iterations: int = 100,
    tolerance: float = 1e-3,
    start: NDArray[np.float32] | None = None,
    batch_rows: int = 20_000,
) -> tuple[NDArray[np.float32], NDArray[np.int64], float, int]: ...

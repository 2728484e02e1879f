import numpy as np
from numpy.typing import NDArray

def adjacency(
    n: int, source: NDArray[np.int32], target: NDArray[np.int32], weight: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]: ...
def find_edges(
    indptr: NDArray[np.int64], neighbours: NDArray[np.int32], source: NDArray[np.int32], target: NDArray[np.int32]
) -> NDArray[np.int64]: ...
def walk(
    indptr: NDArray[np.int64],
    neighbours: NDArray[np.int32],
    cumulative: NDArray[np.float64],
    starts: NDArray[np.int32],
    length: int,
    restart: float,
    jump: float,
    seed: int,
    *,
    first: int = 0,
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]: ...
def spread(
    indptr: NDArray[np.int64],
    neighbours: NDArray[np.int32],
    weights: NDArray[np.float32],
    mass: NDArray[np.float64],
    hops: int,
    factor: float,
) -> NDArray[np.float64]: ...
def personalised_pagerank(
    indptr: NDArray[np.int64],
    neighbours: NDArray[np.int32],
    weights: NDArray[np.float32],
    mass: NDArray[np.float64],
    restart: float,
    tolerance: float,
) -> NDArray[np.float64]: ...
def rewired(
    indptr: NDArray[np.int64], neighbours: NDArray[np.int32], tries: int, seed: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]: ...

import numpy as np
from numpy.typing import ArrayLike, NDArray

def subset_log_determinants(matrix: ArrayLike, block: int = 1) -> NDArray[np.float64]: ...

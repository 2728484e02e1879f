"""The only door to the compiled code. `sona_pg.kernels.reference` is the same in NumPy, and the tests' truth.

The instruction set is chosen when this is imported: the best that the CPU runs, or what ``SONA_SIMD`` asks for.
"""

from sona_pg.kernels._ewc import add_drift, constrain, fisher_average, proximal
from sona_pg.kernels._fusion import (
    OutcomeNeighbours,
    adam_step,
    fusion_features,
    listwise_gradient,
    order_by_score,
    shuffled_sums,
)
from sona_pg.kernels._graph import adjacency, find_edges, personalised_pagerank, rewired, spread, walk
from sona_pg.kernels._kmeans import assign, cluster_sums, kmeans, top_k
from sona_pg.kernels._lora import ListwiseTrainer, LowRank, draw, empty_call, empty_call_views
from sona_pg.kernels._phi import subset_log_determinants
from sona_pg.kernels._ring import Ring
from sona_pg.kernels._simd import (
    active,
    add_rows,
    as_vector,
    available,
    dot_rows,
    is_held,
    owned,
    single,
    unit,
    use,
)
from sona_pg.kernels._wire import floats_wire, vector_wire

__all__ = [
    "ListwiseTrainer",
    "LowRank",
    "OutcomeNeighbours",
    "Ring",
    "active",
    "adam_step",
    "add_drift",
    "add_rows",
    "adjacency",
    "as_vector",
    "assign",
    "available",
    "cluster_sums",
    "constrain",
    "dot_rows",
    "draw",
    "empty_call",
    "empty_call_views",
    "find_edges",
    "fisher_average",
    "floats_wire",
    "fusion_features",
    "is_held",
    "kmeans",
    "listwise_gradient",
    "order_by_score",
    "owned",
    "personalised_pagerank",
    "proximal",
    "rewired",
    "shuffled_sums",
    "single",
    "spread",
    "subset_log_determinants",
    "top_k",
    "unit",
    "use",
    "vector_wire",
    "walk",
]

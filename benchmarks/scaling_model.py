"""From unit costs to many spaces: what is stored, what is computed, and what that costs. Pure arithmetic.

Spaces are of Zipf sizes: the i-th of them has a share proportional to i^-s. Everything is learned by one learner for
each space, so that costs add up over spaces; what a cycle reads is bounded by the settings, and so is the graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import BackgroundConfig, StoreConfig, WorkerConfig

HOURS_OF_DAY, DAYS_OF_WEEK, DAYS_OF_MONTH = 24, 7, 365 / 12

GRAPH = ("memory_edge", "memory_node", "memory_node_state")
"""Tables that are full once all items of a space are known."""

Sizes = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Units:
    """What was measured on one space.

    Parameters
    ----------
    measured
        Trajectories that were loaded.
    rows
        Rows per trajectory, by table.
    bytes
        Bytes per trajectory with the indexes of keys, by table.
    index_bytes
        Of the HNSW index per remembered query.
    version_bytes, space_bytes
        Of one version that is kept, and of everything else that a space has once.
    record_seconds
        To record, learn and weigh a trajectory, made durable. All seconds are those of a core, client and server.
    admit_seconds
        To admit a remembered query to an index of `measured` of them.
    background
        Seconds of a cycle of loop B: of any, per new trajectory, per trajectory of which patterns are made.
    deep
        Seconds of a cycle of loop C: of any, and per node or edge.
    graph_rows
        Nodes and edges per trajectory, before the graph is full; above 0.
    """

    measured: int
    rows: dict[str, float]
    bytes: dict[str, float]
    index_bytes: float
    version_bytes: float
    space_bytes: float
    record_seconds: float
    admit_seconds: float
    background: tuple[float, float, float]
    deep: tuple[float, float]
    graph_rows: float


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What nobody has measured.

    Parameters
    ----------
    trajectories, spaces
        How many in all.
    exponent
        Of Zipf's law; 0 makes all spaces equal.
    days
        In which they come, evenly.
    graph_rows_most
        Nodes and edges of a space whose items are all known: there are no more, however many trajectories come.
    copies
        Of every byte: the primary and its standby.
    core_hour, gigabyte_month
        Prices, in one currency.
    """

    trajectories: float = 1e9
    spaces: int = 100_000
    exponent: float = 1.0
    days: float = 365.0
    graph_rows_most: float = 200_000.0
    copies: int = 2
    core_hour: float = 0.05
    gigabyte_month: float = 0.10


@dataclass(frozen=True, slots=True)
class Totals:
    """What comes of it, for each space, the largest first. Rows and bytes by table; seconds of one core, by work."""

    sizes: Sizes
    rows: dict[str, Sizes]
    bytes: dict[str, Sizes]
    seconds: dict[str, Sizes]
    cycles: dict[str, Sizes]


def sizes(assumed: Assumptions) -> Sizes:
    """Trajectories of each space, (spaces,); they add up to all."""
    shares = np.arange(1, assumed.spaces + 1, dtype=np.float64) ** -assumed.exponent
    return np.asarray(assumed.trajectories * shares / shares.sum(), dtype=np.float64)


def extrapolate(
    units: Units,
    assumed: Assumptions,
    background: BackgroundConfig | None = None,
    store: StoreConfig | None = None,
    worker: WorkerConfig | None = None,
) -> Totals:
    """The totals of all spaces, under settings that default to the product's."""
    background = BackgroundConfig() if background is None else background
    store = StoreConfig() if store is None else store
    worker = WorkerConfig() if worker is None else worker
    n = sizes(assumed)
    # How many trajectories have made a graph that is full.
    full = assumed.graph_rows_most / units.graph_rows
    growing = {table: np.minimum(n, full) if table in GRAPH else n for table in units.rows}
    rows = {table: growing[table] * per for table, per in units.rows.items()}
    stored = {table: growing[table] * per for table, per in units.bytes.items()}
    indexed = np.where(n > store.exact_search_rows, n, 0.0)
    stored["HNSW of remembered_query"] = indexed * units.index_bytes
    versions = np.minimum(n / store.publish_every_events, worker.keep_versions)
    rows["adapter_version"] = versions
    stored["adapter_version"] = versions * units.version_bytes
    stored["once for each space"] = np.full_like(n, units.space_bytes)
    # Hourly, but not before there is enough that is new.
    b_cycles = np.minimum(assumed.days * HOURS_OF_DAY, n / background.minimum)
    c_cycles = np.full_like(n, assumed.days / DAYS_OF_WEEK)
    fixed, per_new, per_read = units.background
    # What a cycle finds grows evenly from nothing: half of the end, on average.
    read = np.minimum(n / 2, background.max_trajectories)
    graph = np.minimum(units.graph_rows * n / 2, assumed.graph_rows_most)
    deep_fixed, per_row = units.deep
    # An insert into HNSW visits a number of neighbours that grows with the logarithm.
    deeper = np.log(np.maximum(indexed, 2.0)) / np.log(max(units.measured, 2))
    seconds = {
        "A: record, learn, weigh": n * units.record_seconds,
        "index admission": indexed * units.admit_seconds * np.maximum(deeper, 1.0),
        "B: hourly cycles": b_cycles * (fixed + per_read * read) + n * per_new,
        "C: weekly cycles": c_cycles * (deep_fixed + per_row * graph),
    }
    return Totals(n, rows, stored, seconds, {"B": b_cycles, "C": c_cycles})

"""The newest trajectories of a reasoning bank, as columns that grow, and then turn round."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sona_pg.learning.clusters import Doubles, Flags, Floats, Rows
from sona_pg.learning.recorded import FedBack, Used


class KeptTrajectories:
    """Trajectories by place; of more than `most` the oldest gives its place to the newest.

    Parameters
    ----------
    dim
        Components of a query.
    most
        How many.
    """

    def __init__(self, dim: int, most: int) -> None:
        self._most = most
        self._rows = np.empty((0, dim), dtype=np.float32)
        self._quality = np.empty(0)
        self._waiting = np.empty(0, dtype=bool)
        self._member = np.empty(0, dtype=np.int64)
        self.used: list[Used] = []
        """Parameters of each, by name."""
        self.fed_back: list[FedBack] = []
        """Precision and recall of each."""
        self._added = self._extracted = 0

    def __len__(self) -> int:
        return len(self.used)

    def add(self, query: NDArray[np.float32], quality: float | None, used: Used, said: FedBack) -> None:
        """Keep one that belongs to no pattern yet; its query (dim,) is of unit length."""
        place = self._added % self._most
        if place == len(self.used):
            self._grow(place)
            self.used.append(used)
            self.fed_back.append(said)
        else:
            self.used[place], self.fed_back[place] = used, said
        self._rows[place] = query
        self._quality[place] = math.nan if quality is None else quality
        self._waiting[place] = True
        self._member[place] = -1
        self._added += 1

    def _grow(self, size: int) -> None:
        if size < len(self._rows):
            return
        room = min(max(size + size // 4, 64), self._most)
        # Where they lie, if there is room behind: a copy would need twice the memory for a while.
        self._rows.resize((room, self._rows.shape[1]), refcheck=False)
        for column in (self._quality, self._waiting, self._member):
            column.resize(room, refcheck=False)

    @property
    def rows(self) -> Floats:
        """Queries float32 (n, dim), of unit length."""
        return self._rows[: len(self)]

    @property
    def quality(self) -> Doubles:
        """float64 (n,), NaN where a trajectory was not judged."""
        return self._quality[: len(self)]

    @property
    def waiting(self) -> Flags:
        """bool (n,): whether no extraction has counted it; may be written."""
        return self._waiting[: len(self)]

    @property
    def member(self) -> Rows:
        """int64 (n,): id of its pattern, -1 without one; may be written."""
        return self._member[: len(self)]

    @property
    def evicted(self) -> int:
        """How many newer ones have displaced."""
        return self._added - len(self)

    @property
    def is_extracted(self) -> bool:
        """Whether none has come since the last extraction."""
        return self._extracted == self._added

    def note_extraction(self) -> None:
        """All that are here were seen by an extraction."""
        self._extracted = self._added

    def oldest_first(self, places: Rows) -> list[int]:
        """Places, which ascend, in the order in which their trajectories came."""
        oldest = self._added % self._most if self.evicted else 0
        return [int(p) for p in np.concatenate([places[places >= oldest], places[places < oldest]])]

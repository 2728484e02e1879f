"""The learner of a space: everything that outcomes change at once, and the one way in which they change it."""

from __future__ import annotations

import enum
import hashlib
import uuid

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import MAX_DIM, InstantLoopConfig, QueryAdapterConfig, SignalConfig, SpaceConfig
from sona_pg.errors import ConfigError, DimensionMismatch, LearningError
from sona_pg.kernels import LowRank
from sona_pg.learning.arrays import check_parts
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.judged_list import JudgedList, Resolve, judged_list
from sona_pg.learning.lora import MicroLoRA
from sona_pg.learning.outcome import OutcomeEvent
from sona_pg.learning.packing import pack, unpack
from sona_pg.learning.query_adapter import QueryAdapter
from sona_pg.learning.running_mean import RunningMean
from sona_pg.learning.serving import Serving
from sona_pg.types import LearningSignal

STATE_FORMAT = 1

WITHHELD_SHARE = "withheld_share"
"""Part of the state that is there where something is withheld."""


class Learned(enum.StrEnum):
    """What became of an event."""

    ADAPTER = "adapter"
    """The query adapter took a step."""
    MICRO = "micro"
    """The micro-LoRA took a step."""
    NO_OUTCOME = "no outcome"
    """Nothing was judged, or nothing new helped: there is nothing to learn."""
    NO_EMBEDDING = "no embedding"
    """No helpful item has a known embedding: neither activations were recorded nor is the item in the items table."""
    WITHHELD = "withheld"
    """It is kept for the gate of the next cycle, which judges by what was never learned; then that learns it, too."""
    REFUSED = "refused"
    """The step had no finite loss; nothing was changed."""


def is_withheld(trajectory_id: uuid.UUID, share: float) -> bool:
    """Whether an event is kept from learning until a cycle has judged by it: a hash of the id, whatever its revision.

    It has nothing to do with the control arm, which is another hash.
    """
    digest = hashlib.md5(f"withheld {trajectory_id}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


class Learner:
    """Query adapter, micro-LoRA and reward baseline of one space.

    A replay of the same events in the same order gives the same weights, bit for bit: the only randomness is keyed by
    trajectory id and revision.

    Parameters
    ----------
    dim
        Dimension of the space.
    pool
        Sample of the items.
    adapter, instant, signal, space
        Settings.
    """

    def __init__(
        self,
        dim: int,
        pool: ItemPool | None = None,
        *,
        adapter: QueryAdapterConfig | None = None,
        instant: InstantLoopConfig | None = None,
        signal: SignalConfig | None = None,
        space: SpaceConfig | None = None,
    ) -> None:
        if not isinstance(dim, int) or dim is True or not 1 <= dim <= MAX_DIM:
            raise ConfigError(f"dimension is {dim!r}, expected a whole number from 1 to {MAX_DIM}")
        self.dim = dim
        self.pool = ItemPool.empty(dim) if pool is None else pool
        self.instant_config = InstantLoopConfig() if instant is None else instant
        self.signal_config = SignalConfig() if signal is None else signal
        self.space_config = SpaceConfig() if space is None else space
        if len(self.pool) and self.pool.embeddings.shape[1] != dim:
            raise DimensionMismatch(dim, self.pool.embeddings.shape[1], "item embeddings")
        self.adapter = QueryAdapter(dim, adapter, items=self.pool.embeddings if len(self.pool) else None)
        self.micro = MicroLoRA(dim, self.instant_config.micro_lora_rank, signal=self.signal_config)
        self.reward = RunningMean.from_config(self.signal_config)
        self.events = 0
        self.withheld_share = 0.0
        """Share of the events that is kept for the gate of the background loop; none where that does not run."""
        self.last: tuple[uuid.UUID, int] | None = None
        """Key of the event that was learned last, for whoever was interrupted and does not know."""

    def anew(self, pool: ItemPool) -> Learner:
        """One of the same settings that has learned nothing yet."""
        return Learner(
            self.dim,
            pool,
            adapter=self.adapter.config,
            instant=self.instant_config,
            signal=self.signal_config,
            space=self.space_config,
        )

    def on_base(self, base: LowRank) -> Learner:
        """One that begins anew on a base which has what this one has learned; counts and baselines go on."""
        made = self.anew(self.pool)
        made.adapter.stand_on(base)
        made.micro.baseline, made.reward = self.micro.baseline, self.reward
        made.events, made.last = self.events, self.last
        return made

    def learn(self, event: OutcomeEvent, resolve: Resolve | None = None) -> Learned:
        """Learn one event. Steps that name items teach the query adapter, other steps the micro-LoRA.

        Parameters
        ----------
        resolve
            Embeddings of items that are neither in the event nor in the pool.

        Raises
        ------
        DimensionMismatch
            If the event belongs to a space of another dimension; nothing was changed.
        """
        query = event.trajectory.query_embedding
        if query.size != self.dim:
            raise DimensionMismatch(self.dim, query.size, "query embedding")
        if not event.trajectory.has_outcome:
            return Learned.NO_OUTCOME
        self.last = event.key
        shows_items = event.trajectory.shows_items
        # The gate judges by items alone.
        if self.withheld_share and shows_items and is_withheld(event.trajectory.id, self.withheld_share):
            return Learned.WITHHELD
        learned = self._learn_items(event, resolve) if shows_items else self._learn_signal(event)
        self.events += learned in (Learned.ADAPTER, Learned.MICRO)
        return learned

    def judged_list(self, event: OutcomeEvent, resolve: Resolve | None = None) -> JudgedList | None:
        """What an event teaches about items; None when nothing newly helped."""
        return judged_list(
            event,
            self.pool,
            implicit_feedback=self.space_config.implicit_feedback,
            max_marked=self.adapter.config.max_marked,
            resolve=resolve,
        )

    def _learn_items(self, event: OutcomeEvent, resolve: Resolve | None) -> Learned:
        judged = self.judged_list(event, resolve)
        if judged is None:
            return Learned.NO_OUTCOME
        if not judged.teaches:
            return Learned.NO_EMBEDDING
        try:
            self.adapter.learn(
                judged.query,
                list(judged.items),
                list(judged.targets),
                pool=self.pool.embeddings,
                skip=self.pool.rows(judged.item_ids),
                seed=judged.seed,
            )
        except LearningError:
            return Learned.REFUSED
        return Learned.ADAPTER

    def _learn_signal(self, event: OutcomeEvent) -> Learned:
        if event.had_outcome:
            return Learned.NO_OUTCOME
        try:
            signal = LearningSignal.from_trajectory(
                event.trajectory, baseline=self.reward.value, config=self.signal_config
            )
            if signal.gradient_estimate.any():
                self.micro.accumulate_gradient(signal)
        except LearningError:
            return Learned.REFUSED
        self.reward.add(signal.quality_score)
        if not signal.gradient_estimate.any():
            return Learned.NO_OUTCOME
        self.micro.apply_accumulated(self.instant_config.micro_lora_lr)
        return Learned.MICRO

    def serving(self) -> Serving:
        """What answers from now on, as a copy."""
        return Serving.frozen([self.adapter.map, self.micro])

    @staticmethod
    def adapter_state(data: bytes, dim: int, rank: int) -> dict[str, NDArray[np.generic]]:
        """The adapter's part of what `to_bytes` gave, as `QueryAdapter.state` gives it.

        Raises
        ------
        LearningError
            If the data are damaged, or belong to another dimension or rank.
        """
        arrays = unpack(data, {"format": STATE_FORMAT, "dim": dim, "rank": rank}, "learner")
        return {name[8:]: array for name, array in arrays.items() if name.startswith("adapter.")}

    def to_bytes(self) -> bytes:
        """Everything that a continuation needs, after its SHA-256."""
        return pack(
            self._header,
            {
                **self._own_parts(),
                **{f"adapter.{name}": value for name, value in self.adapter.state().items()},
                **{f"micro.{name}": value for name, value in self.micro.state().items()},
            },
        )

    @property
    def _header(self) -> dict[str, int]:
        return {"format": STATE_FORMAT, "dim": self.dim, "rank": self.adapter.rank}

    def _own_parts(self) -> dict[str, NDArray[np.generic]]:
        return {
            "events": np.array(self.events, dtype=np.int64),
            "reward": np.array([self.reward.value, self.reward.weight]),
            **({WITHHELD_SHARE: np.array(self.withheld_share)} if self.withheld_share else {}),
        }

    def load_bytes(self, data: bytes) -> None:
        """Continue from what `to_bytes` gave; bit for bit.

        Raises
        ------
        LearningError
            If the data are damaged, or belong to another dimension, rank or version; nothing was changed.
        """
        arrays = unpack(data, self._header, "learner")
        own = {name: part for name, part in self._own_parts().items() if name != WITHHELD_SHARE}
        check_parts("learner", arrays, own)
        share = float(arrays.get(WITHHELD_SHARE, np.zeros(())))
        if not 0 <= share < 1:
            raise LearningError(f"the learner's state withholds a share of {share}, expected 0 to 1: it is damaged")
        before = {name: part.copy() for name, part in self.adapter.state().items()}
        self.adapter.load_state({n[8:]: a for n, a in arrays.items() if n.startswith("adapter.")})
        try:
            self.micro.load_state({n[6:]: a for n, a in arrays.items() if n.startswith("micro.")})
        except LearningError:
            self.adapter.load_state(before)
            raise
        self.reward.value, self.reward.weight = (float(part) for part in arrays["reward"])
        self.events = int(arrays["events"])
        self.withheld_share = share

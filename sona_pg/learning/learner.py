"""The learner of a space: everything that outcomes change at once, and the one way in which they change it."""

from __future__ import annotations

import enum
import io
import json
import zipfile
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import InstantLoopConfig, QueryAdapterConfig, SignalConfig, SpaceConfig
from sona_pg.errors import DimensionMismatch, LearningError
from sona_pg.ids import learning_seed
from sona_pg.kernels import unit
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.lora import MicroLoRA
from sona_pg.learning.outcome import OutcomeEvent, judged_items
from sona_pg.learning.query_adapter import QueryAdapter
from sona_pg.learning.running_mean import RunningMean
from sona_pg.learning.serving import Serving
from sona_pg.types import FloatVector, LearningSignal

STATE_FORMAT = 1

Resolve = Callable[[str], FloatVector | None]
"""Gives the embedding of an item by its id, if it is known."""


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
    REFUSED = "refused"
    """The step had no finite loss; nothing was changed."""


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
        self.dim = dim
        self.pool = ItemPool.empty(dim) if pool is None else pool
        self.instant_config = InstantLoopConfig() if instant is None else instant
        self.signal_config = SignalConfig() if signal is None else signal
        self.space_config = SpaceConfig() if space is None else space
        self.adapter = QueryAdapter(dim, adapter, items=self.pool.embeddings)
        self.micro = MicroLoRA(dim, self.instant_config.micro_lora_rank, signal=self.signal_config)
        self.reward = RunningMean.from_config(self.signal_config)
        self.events = 0

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
        learned = self._learn_items(event, resolve) if event.trajectory.shows_items else self._learn_signal(event)
        self.events += learned in (Learned.ADAPTER, Learned.MICRO)
        return learned

    def _learn_items(self, event: OutcomeEvent, resolve: Resolve | None) -> Learned:
        judged = judged_items(
            event,
            implicit_feedback=self.space_config.implicit_feedback,
            max_marked=self.adapter.config.max_marked,
        )
        items: list[FloatVector] = []
        targets: list[float] = []
        skip: list[int] = []
        for item in judged:
            row = self.pool.row(item.item_id)
            embedding: FloatVector | None = None
            if row is not None:
                skip.append(row)
            if item.activations.size:
                embedding = unit(item.activations)
            elif row is not None:
                embedding = self.pool.embeddings[row]
            elif resolve is not None and (found := resolve(item.item_id)) is not None:
                embedding = unit(found)
            if embedding is not None:
                items.append(embedding)
                targets.append(item.target)
        if not judged:
            return Learned.NO_OUTCOME
        if not any(target > 0 for target in targets):
            return Learned.NO_EMBEDDING
        try:
            self.adapter.learn(
                event.trajectory.query_embedding,
                items,
                targets,
                pool=self.pool.embeddings,
                skip=np.array(skip, dtype=np.int64),
                seed=learning_seed(event.trajectory.id, event.revision),
            )
        except LearningError:
            return Learned.REFUSED
        return Learned.ADAPTER

    def _learn_signal(self, event: OutcomeEvent) -> Learned:
        rewards = [s.reward for s in event.trajectory.steps if s.reward is not None]
        if not rewards or event.revision:
            return Learned.NO_OUTCOME
        signal = LearningSignal.from_trajectory(event.trajectory, baseline=self.reward.value, config=self.signal_config)
        self.reward.add(float(np.mean(rewards)))
        if not signal.gradient_estimate.any():
            return Learned.NO_OUTCOME
        self.micro.accumulate_gradient(signal)
        self.micro.apply_accumulated(self.instant_config.micro_lora_lr)
        return Learned.MICRO

    def serving(self) -> Serving:
        """What answers from now on, as a copy."""
        return Serving.frozen([self.adapter.served, self.micro])

    def to_bytes(self) -> bytes:
        """Everything that a continuation needs, with a checksum for each part."""
        arrays: dict[str, NDArray[np.float32] | NDArray[np.int64] | NDArray[np.float64]] = {
            f"adapter.{name}": value for name, value in self.adapter.state().items()
        }
        arrays["micro.weights"] = self.micro.weights
        means = [self.reward, self.micro.baseline]
        arrays["means"] = np.array([[m.value, m.weight] for m in means], dtype=np.float64)
        arrays["events"] = np.array(self.events, dtype=np.int64)
        header = json.dumps({"format": STATE_FORMAT, "dim": self.dim, "rank": self.adapter.rank})
        arrays["header"] = np.frombuffer(header.encode(), dtype=np.uint8).astype(np.int64)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    def load_bytes(self, data: bytes) -> None:
        """Continue from what `to_bytes` gave; bit for bit.

        Raises
        ------
        LearningError
            If the data are damaged, or belong to another dimension, rank or version; nothing was changed.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            header = json.loads(bytes(arrays["header"].astype(np.uint8)))
        except (ValueError, OSError, KeyError, zipfile.BadZipFile) as cause:
            raise LearningError(f"the learner's state is damaged ({cause}): deploy an earlier version") from cause
        expected = {"format": STATE_FORMAT, "dim": self.dim, "rank": self.adapter.rank}
        if header != expected:
            raise LearningError(
                f"the learner's state is of {header}, expected {expected}: "
                "use the settings that the space was learned with"
            )
        if arrays["micro.weights"].shape != self.micro.weights.shape:
            raise LearningError(
                f"the micro-LoRA's state has rank {len(arrays['micro.weights']) // 2}, expected {self.micro.rank}: "
                "use the setting that the space was learned with"
            )
        self.adapter.load_state({n[8:]: a for n, a in arrays.items() if n.startswith("adapter.")})
        self.micro.load(arrays["micro.weights"])
        for mean, (value, weight) in zip([self.reward, self.micro.baseline], arrays["means"], strict=True):
            mean.value, mean.weight = float(value), float(weight)
        self.events = int(arrays["events"])

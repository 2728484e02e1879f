"""Loop B in memory: the same bank, base, tasks and gate as in Postgres, for applications that have arrays alone."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sona_pg.config import (
    MAX_DIM,
    BackgroundLoopConfig,
    PatternConfig,
    QueryAdapterConfig,
    SpaceConfig,
    VerdictConfig,
)
from sona_pg.errors import ConfigError, InvalidInput
from sona_pg.kernels import as_vector, unit
from sona_pg.learning.base_cycle import Answered, BaseConfig, Candidate, make_candidate
from sona_pg.learning.base_lora import BaseLoRA
from sona_pg.learning.base_memory import BaseMemory
from sona_pg.learning.base_trainer import fixed_form
from sona_pg.learning.ewc import EwcPlusPlus
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.judged_list import JudgedList, judged_list, shown_items
from sona_pg.learning.learner import is_withheld
from sona_pg.learning.outcome import OutcomeEvent, worth_of
from sona_pg.learning.reasoning_bank import ReasoningBank
from sona_pg.types import QueryTrajectory, finite_or_none


@dataclass(frozen=True, slots=True)
class BackgroundResult:
    """What a cycle has done.

    Parameters
    ----------
    status
        ``published``, ``kept: …`` or ``skipped: …``, with the reason.
    trajectories_processed
        Trajectories that were taken in; 0 if it was skipped.
    patterns_extracted
        Patterns that there are by now.
    lists, withheld
        Judged lists that taught the candidate, and events that judged it.
    log_rank_gain
        How much higher what helped stands on these, -1 to 1 in the mean.
    tasks_ended
        Tasks that ended in it.
    elapsed_seconds
        How long it took.
    """

    status: str
    trajectories_processed: int = 0
    patterns_extracted: int = 0
    lists: int = 0
    withheld: int = 0
    log_rank_gain: float = 0.0
    tasks_ended: int = 0
    elapsed_seconds: float = 0.0

    @property
    def is_published(self) -> bool:
        """Whether the base changed."""
        return self.status == PUBLISHED


PUBLISHED = "published"


class BackgroundLoop:
    """Patterns, verdicts and a base LoRA from trajectories, cycle by cycle, without a database.

    Steps that name an item, or have activations and a reward, teach the base: what helped is moved nearer to the query.

    Parameters
    ----------
    config
        Settings.
    hidden_dim
        Dimension of queries and activations.
    items
        Embeddings of items that steps name; without, those of the steps themselves.
    patterns, verdicts, base, space
        Settings of the bank, of the base's cycle, and of rewards.

    Raises
    ------
    ConfigError
        If a setting is out of range, or `config` and `base` contradict each other.

    Examples
    --------
    >>> import numpy as np
    >>> from sona_pg.types import TrajectoryBuilder
    >>> loop = BackgroundLoop(BackgroundLoopConfig(min_trajectories=1), 4)
    >>> builder = TrajectoryBuilder(1, [1.0, 0.0, 0.0, 0.0])
    >>> builder.add_step([0.0, 1.0, 0.0, 0.0], reward=1.0)
    >>> builder.add_step([0.0, 0.0, 1.0, 0.0], reward=0.0)
    >>> loop.run_cycle([builder.build(1.0)]).status
    'kept: no withheld event has an outcome'
    """

    def __init__(
        self,
        config: BackgroundLoopConfig | None = None,
        hidden_dim: int = 256,
        *,
        items: ItemPool | None = None,
        patterns: PatternConfig | None = None,
        verdicts: VerdictConfig | None = None,
        base: BaseConfig | None = None,
        space: SpaceConfig | None = None,
    ) -> None:
        if not isinstance(hidden_dim, int) or isinstance(hidden_dim, bool) or not 1 <= hidden_dim <= MAX_DIM:
            raise ConfigError(f"dimension is {hidden_dim!r}, expected a whole number from 1 to {MAX_DIM}")
        self.config = BackgroundLoopConfig() if config is None else config
        self._cycle = _settings(self.config, base, hidden_dim)
        self._base = BaseLoRA(hidden_dim, self._cycle.training.rank)
        self._pool = ItemPool.empty(hidden_dim) if items is None else items
        self._space = SpaceConfig() if space is None else space
        self._recipe = QueryAdapterConfig.for_dim(hidden_dim)
        bank = PatternConfig() if patterns is None else patterns
        if bank.embedding_dim not in (hidden_dim, PatternConfig().embedding_dim):
            raise ConfigError(f"embedding_dim of the patterns is {bank.embedding_dim}, expected {hidden_dim} as here")
        self._bank = ReasoningBank(replace(bank, embedding_dim=hidden_dim), verdicts)
        self._memory = BaseMemory(hidden_dim, self._cycle)
        self._seen = 0
        self._ran_at: float | None = None

    def reasoning_bank(self) -> ReasoningBank:
        """The bank that trajectories are added to."""
        return self._bank

    def base_lora(self) -> BaseLoRA:
        """The base that was published last; a fresh one before. It changes in place."""
        return self._base

    def ewc(self) -> EwcPlusPlus:
        """What the tasks that ended need of the base's B, (rank · dim,), as it is now: a copy."""
        layer, rank = self._base.layers[0], self._base.rank
        config = replace(self._cycle.ewc, param_count=rank * layer.dim)
        made = EwcPlusPlus(config, np.ascontiguousarray(layer.weights[rank:]).ravel(), embedding_dim=layer.dim)
        made.set_lambda(min(max(self._cycle.strength(self._memory.traffic), config.min_lambda), config.max_lambda))
        for task in self._memory.tasks[-config.max_tasks :]:
            made.remember(task.in_frame(layer.weights[:rank], layer.weights[rank:]))
        return made

    def is_due(self, waiting: int, now: float) -> bool:
        """Whether a cycle is due: the interval has passed since the last one, and enough waits.

        Parameters
        ----------
        waiting
            Trajectories that wait.
        now
            Seconds since the epoch, as `run_cycle` is told.
        """
        at, enough = _number(now, "now"), _number(waiting, "waiting") >= self.config.min_trajectories
        return enough and (self._ran_at is None or at - self._ran_at >= self.config.extraction_interval_seconds)

    def run_cycle(self, trajectories: Sequence[QueryTrajectory], *, now: float | None = None) -> BackgroundResult:
        """Take trajectories in, and publish a base if it does not lose. Below the minimum nothing is consumed.

        Parameters
        ----------
        trajectories
            In the order in which they were answered.
        now
            Seconds since the epoch; the clock's without.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If a trajectory does not fit; nothing of any was taken in.
        """
        began = time.monotonic()
        at = time.time() if now is None else _number(now, "now")
        if isinstance(trajectories, str) or not isinstance(trajectories, Sequence):
            raise InvalidInput(f"trajectories are a {type(trajectories).__name__}, expected a list of them")
        if len(trajectories) < self.config.min_trajectories:
            return BackgroundResult(f"skipped: {len(trajectories)} of {self.config.min_trajectories} trajectories")
        # First all that may be refused.
        answers = [self._answered(trajectory, self._seen + place) for place, trajectory in enumerate(trajectories)]
        self._bank.add_trajectories(trajectories)
        self._bank.extract_patterns(now=at)
        self._bank.consolidate_patterns(now=at)
        self._bank.prune_patterns(now=at)
        self._seen += len(trajectories)
        self._ran_at = at
        candidate, status = self._advance([answer for answer in answers if answer is not None])
        done = BackgroundResult(status, len(trajectories), len(self._bank.patterns))
        if candidate is not None:
            done = replace(
                done,
                lists=candidate.trained.lists,
                withheld=candidate.decision.withheld,
                log_rank_gain=candidate.decision.log_rank,
                tasks_ended=len(candidate.ended),
            )
        return replace(done, elapsed_seconds=time.monotonic() - began)

    def _advance(self, answers: Sequence[Answered]) -> tuple[Candidate | None, str]:
        memory, layer, share = self._memory, self._base.layers[0], self._cycle.gate.withheld
        answered = {answer.judged.key[0]: answer for answer in answers}
        memory.withhold({id: answer for id, answer in answered.items() if is_withheld(id, share)})
        new = {id: answer for id, answer in answered.items() if not is_withheld(id, share)}
        pool = self._pool if len(self._pool) else self._judged_items(new.values())
        hour = memory.hour(new, None if layer.is_zero else layer, [layer], pool, self._recipe)
        candidate = make_candidate(hour, self._cycle, seed=self._seen)
        if candidate is None:
            return None, "kept: nothing was judged from which something could be learned"
        memory.keep(new, candidate)
        if not candidate.decision.publishes:
            return candidate, f"kept: {candidate.decision.verdict.value}"
        layer.load(fixed_form(candidate.trained.map, self._base.rank, pool.embeddings))
        return candidate, PUBLISHED

    def _judged_items(self, new: Iterable[Answered]) -> ItemPool:
        """Items that were judged, where no others are known."""
        memory = self._memory
        answers = (*memory.reservoir.values(), *memory.owed.values(), *memory.withheld.values(), *new)
        lists = [answer.judged for answer in answers]
        return shown_items(lists, self._recipe.pool_size, self._base.hidden_dim)

    def _answered(self, trajectory: QueryTrajectory, ordinal: int) -> Answered | None:
        if not isinstance(trajectory, QueryTrajectory):
            raise InvalidInput(f"a {type(trajectory).__name__} was given, expected a QueryTrajectory")
        dim = self._base.hidden_dim
        as_vector(trajectory.query_embedding, dim, "query embedding")
        judged: JudgedList | None = None
        if trajectory.shows_items:
            for step in trajectory.steps:
                if step.item_id is not None and step.activations.size:
                    as_vector(step.activations, dim, f"activations of item {step.item_id!r}")
            judged = judged_list(
                OutcomeEvent(trajectory),
                self._pool,
                implicit_feedback=self._space.implicit_feedback,
                max_marked=self._recipe.max_marked,
            )
        else:
            judged = _judged_steps(trajectory)
        if judged is None or not judged.teaches:
            return None
        return Answered(ordinal, judged, worth_of(trajectory, self._space) or 0.0)


def _settings(config: BackgroundLoopConfig, base: BaseConfig | None, dim: int) -> BaseConfig:
    """Of the base's cycle; what is set in two places must be the same."""
    made = BaseConfig() if base is None else base
    if config.base_lora_lr is not None:
        if base is not None:
            _check_same("base_lora_lr", config.base_lora_lr, "training.learning_rate", made.training.learning_rate)
        made = replace(made, training=replace(made.training, learning_rate=config.base_lora_lr))
    if config.ewc_lambda is not None:
        if base is not None:
            _check_same("ewc_lambda", config.ewc_lambda, "ewc.initial_lambda", made.ewc.initial_lambda)
        strength, low, high = config.ewc_lambda, made.ewc.min_lambda, made.ewc.max_lambda
        ewc = replace(made.ewc, initial_lambda=strength, min_lambda=min(low, strength), max_lambda=max(high, strength))
        made = replace(made, ewc=ewc)
    return replace(made, training=replace(made.training, rank=min(made.training.rank, dim)))


def _check_same(own: str, value: float, other: str, there: float) -> None:
    if value != there:
        raise ConfigError(
            f"{own} of BackgroundLoopConfig is {value:g}, and {other} of `base` is {there:g}: set it in one of the two"
        )


def _number(value: float, what: str) -> float:
    found = finite_or_none(value, what)
    if found is None:
        raise InvalidInput(f"{what} is None, expected a number")
    return found


def _judged_steps(trajectory: QueryTrajectory) -> JudgedList | None:
    """Steps that are no items: what was worth more than the mean of the trajectory helped, by as much."""
    steps = [
        (f"{trajectory.id}/{place}", step.activations, step.reward)
        for place, step in enumerate(trajectory.steps)
        if step.reward is not None and step.activations.size == trajectory.query_embedding.size
    ]
    if not steps:
        return None
    mean = float(np.mean([reward for _, _, reward in steps]))
    return JudgedList(
        (trajectory.id, 0),
        trajectory.query_embedding,
        tuple(id for id, _, _ in steps),
        tuple(unit(activations) for _, activations, _ in steps),
        tuple(max(float(reward) - mean, 0.0) for _, _, reward in steps),
        tuple(True for _ in steps),
    )

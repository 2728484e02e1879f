"""Settings one by one."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from typing import Self

from sona_pg.config.instant import InstantLoopConfig, LoraConfig
from sona_pg.config.sona import LearningMode, SonaConfig


class SonaConfigBuilder:
    """Makes a `SonaConfig` step by step; each step is checked when it is made.

    Parameters
    ----------
    config
        What it begins with.

    Examples
    --------
    >>> config = SonaConfig.builder().embedding_dim(256).lora_rank(8).ewc_lambda(1000.0).memory_budget_mb(50).build()
    >>> config.base_training.rank, config.ewc_config.initial_lambda
    (8, 1000.0)
    """

    def __init__(self, config: SonaConfig) -> None:
        self._config = config

    def build(self) -> SonaConfig:
        """The settings."""
        return self._config

    def set(self, **changes: object) -> Self:
        """Any settings, by their names.

        Raises
        ------
        ConfigError
            If a setting is unknown, or refused; that of every other step as well.
        """
        self._config = self._config.replace(**changes)
        return self

    def database_url(self, url: str) -> Self:
        """Of the database; see `SonaConfig.database_url`."""
        return self.set(database_url=url)

    def home(self, home: str | PathLike[str]) -> Self:
        """Folder of the embedded server."""
        return self.set(home=home)

    def space(self, name: str) -> Self:
        """Name of the space."""
        return self.set(space=name)

    def embedding_dim(self, dim: int) -> Self:
        """Components of its vectors."""
        return self.set(embedding_dim=dim)

    def hidden_dim(self, dim: int) -> Self:
        """The same."""
        return self.set(hidden_dim=dim)

    def num_heads(self, count: int) -> Self:
        """Heads of the model whose steps are recorded."""
        return self.set(num_heads=count)

    def num_layers(self, count: int) -> Self:
        """Its layers."""
        return self.set(num_layers=count)

    def lora_rank(self, rank: int) -> Self:
        """Rank of the base that the background loop trains."""
        lora = LoraConfig() if self._config.lora_config is None else self._config.lora_config
        return self.set(lora_config=replace(lora, rank=rank))

    def micro_lora_rank(self, rank: int) -> Self:
        """Rank of the micro-LoRA, 1 or 2."""
        instant = self._config.instant_config or InstantLoopConfig()
        return self.set(instant_config=replace(instant, micro_lora_rank=rank))

    def ewc_lambda(self, strength: float) -> Self:
        """By how much earlier tasks are held to begin with; it adapts between its bounds."""
        return self.set(ewc_config=replace(self._config.ewc_config, initial_lambda=strength))

    def pattern_clusters(self, count: int) -> Self:
        """Clusters of a background cycle, at most."""
        return self.set(pattern_config=replace(self._config.pattern_config, k_clusters=count))

    def dreams_per_cycle(self, count: int) -> Self:
        """Dreams of a deep cycle, at least."""
        return self.set(deep_config=replace(self._config.deep_config, dreams_per_cycle=count))

    def phi_threshold(self, threshold: float) -> Self:
        """Integration from which a dream may leave something behind."""
        return self.set(phi_threshold=threshold)

    def learning_loops(self, mode: LearningMode) -> Self:
        """Which loops the engine runs itself."""
        return self.set(learning_loops=mode)

    def memory_budget_mb(self, megabytes: float) -> Self:
        """Most memory of the engine."""
        return self.set(memory_budget_mb=megabytes)

    def target_latency_us(self, microseconds: float) -> Self:
        """Longest that adapting and recording may take."""
        return self.set(target_latency_us=microseconds)

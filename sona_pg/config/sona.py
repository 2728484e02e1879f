"""All settings of an engine in one value, and what it is best at, by name."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from typing import TYPE_CHECKING, NamedTuple, Self

from sona_pg.config.checks import check_whole, check_within, said_once
from sona_pg.config.continual import BaseTrainingConfig, BoundaryConfig, EwcConfig, GateConfig
from sona_pg.config.instant import InstantLoopConfig, LoraConfig, QueryAdapterConfig
from sona_pg.config.limits import MAX_DIM
from sona_pg.config.loops import BackgroundConfig, DeepLoopConfig
from sona_pg.config.memory import (
    ConsolidationConfig,
    DreamConfig,
    DreamEvidenceConfig,
    HierarchyConfig,
    PhiConfig,
    TransferConfig,
)
from sona_pg.config.patterns import PatternConfig, ShardConfig, VerdictConfig
from sona_pg.config.process import StoreConfig
from sona_pg.config.space import SpaceConfig
from sona_pg.config.strategy import EvidenceConfig, StrategyConfig
from sona_pg.config.text import EmbeddingConfig
from sona_pg.errors import ConfigError

if TYPE_CHECKING:
    from sona_pg.config.builder import SonaConfigBuilder


class LearningMode(enum.Enum):
    """Which loops an engine runs in its own process, in threads; what it does not run is left to workers."""

    MANUAL = "manual"
    """None: it learns when `learn`, `flush`, `background_learn` and `deep_learn` are called."""

    INSTANT = "instant"
    """Loop A: what is recorded is learned at once, and made durable."""

    INSTANT_AND_BACKGROUND = "instant_and_background"
    """And loop B, hourly: patterns, verdicts, the base."""

    ALL_THREE_TIERS = "all_three_tiers"
    """And loop C, weekly: consolidation, hierarchy, dreams."""

    @property
    def slow_loops(self) -> tuple[str, ...]:
        """Names of the loops with cycles that are among them."""
        return {
            LearningMode.INSTANT_AND_BACKGROUND: ("background",),
            LearningMode.ALL_THREE_TIERS: ("background", "deep"),
        }.get(self, ())


PART_TYPES: Mapping[str, type] = {
    "instant_config": InstantLoopConfig,
    "adapter_config": QueryAdapterConfig,
    "strategy_config": StrategyConfig,
    "evidence_config": EvidenceConfig,
    "space_config": SpaceConfig,
    "store_config": StoreConfig,
    "embedding_config": EmbeddingConfig,
    "background_config": BackgroundConfig,
    "pattern_config": PatternConfig,
    "verdict_config": VerdictConfig,
    "shard_config": ShardConfig,
    "lora_config": LoraConfig,
    "training_config": BaseTrainingConfig,
    "gate_config": GateConfig,
    "ewc_config": EwcConfig,
    "boundary_config": BoundaryConfig,
    "deep_config": DeepLoopConfig,
    "consolidation_config": ConsolidationConfig,
    "hierarchy_config": HierarchyConfig,
    "dream_config": DreamConfig,
    "dream_evidence_config": DreamEvidenceConfig,
    "phi_config": PhiConfig,
    "transfer_config": TransferConfig,
}
"""The parts of a `SonaConfig`, by field."""

BACKGROUND_PARTS = (
    "background_config",
    "pattern_config",
    "verdict_config",
    "shard_config",
    "training_config",
    "gate_config",
    "ewc_config",
    "boundary_config",
)
DEEP_PARTS = (
    "deep_config",
    "consolidation_config",
    "hierarchy_config",
    "dream_config",
    "dream_evidence_config",
    "phi_config",
    "transfer_config",
)
"""Parts of loop B and of loop C."""

AS_DECLARED = ("instant_config", "adapter_config", "strategy_config", "space_config", "lora_config")
"""Parts that may be None."""


class Name(NamedTuple):
    """Of a setting: the field of `SonaConfig`, and the setting of it where it is a part."""

    field: str
    setting: str | None = None

    def __str__(self) -> str:
        return self.field if self.setting is None else f"{self.field}.{self.setting}"

    @property
    def default(self) -> object:
        """What it is where nothing is said."""
        if self.setting is None or self.field in AS_DECLARED:
            return None
        return getattr(PART_TYPES[self.field](), self.setting)

    def of(self, config: SonaConfig) -> object:
        """What it is in these settings."""
        part = getattr(config, self.field)
        return part if self.setting is None or part is None else getattr(part, self.setting)

    def unsaid(self, config: SonaConfig) -> object:
        """The field in these settings, with nothing said under this name."""
        if self.setting is None or self.field in AS_DECLARED:
            return None
        return replace(getattr(config, self.field), **{self.setting: self.default})


SAME: tuple[tuple[Name, ...], ...] = (
    (Name("deep_config", "phi_threshold"), Name("phi_config", "threshold"), Name("phi_threshold")),
    (Name("deep_config", "consolidation_threshold"), Name("consolidation_config", "threshold")),
    (Name("background_config", "max_trajectories"), Name("pattern_config", "max_trajectories")),
    (Name("training_config", "rank"), Name("lora_config", "rank")),
)
"""Settings of the slow loops that have several names, that by which the loops know them first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SonaConfig:
    """All settings of an engine.

    Parameters
    ----------
    database_url, home
        libpq connection string; without it SONA_DATABASE_URL, and without that the embedded server in this folder.
    space
        Name of the space; it is created where it is not there.
    embedding_dim, hidden_dim
        Components of its vectors: what is learned maps embeddings to embeddings, so both are one number. May be left
        out where the space is there, or an embedder says it.
    num_heads, num_layers
        Shape of the model whose steps are recorded as trajectories: attention weights come in rows of so many heads,
        and no trajectory has more steps without an item than layers; others are refused. None declares nothing.
    embedder
        Fingerprint of the embedding model; that of the embedder itself where one is given to the engine.
    text_column
        Column of the items table with their texts, which `process` answers with.
    learning_loops
        Which loops the engine runs itself.
    memory_budget_mb
        Most memory that the buffers, samples and caches of the engine take, in units of 2^20 bytes: what is not set is
        made smaller, and settings that need more are refused. What a cycle of a slow loop takes comes on top: leave
        those to a worker where memory is short, or bound their `max_vector_bytes`.
    target_latency_us
        Longest median time that adapting and recording may add to a request, microseconds, measured when the engine
        is opened: refused where it takes longer. The database's time to search is not in it.
    phi_threshold
        Integration from which a dream may leave something behind. One setting with `deep_config.phi_threshold` and
        `phi_config.threshold`, as are `deep_config.consolidation_threshold` and `consolidation_config.threshold`, and
        `max_trajectories` of `background_config` and `pattern_config`: what one of them says holds, two that say
        different things are refused. A value that is the default says nothing here; in a file or a variable it does.
    instant_config, adapter_config, strategy_config, space_config
        What the space declares: the first process that opens it does, later ones take it over (None), and are refused
        if they ask for something else.
    evidence_config, store_config, embedding_config
        How this process finds the strategy, uses the database, and asks an embedder.
    background_config, pattern_config, verdict_config, shard_config
        Of loop B: how much a cycle takes in, patterns, verdicts, and parts that several processes hold.
    lora_config, training_config, gate_config, ewc_config, boundary_config
        Of the base that loop B trains. The rank of `lora_config` is one setting with that of `training_config`. What
        its lists take in memory is `max_vector_bytes` of `background_config`, unless `training_config` says it.
    deep_config, consolidation_config, hierarchy_config, dream_config, dream_evidence_config, phi_config, \
transfer_config
        Of loop C.

    Raises
    ------
    ConfigError
        If a setting is out of range, of another type, or means nothing beside another one.
    """

    database_url: str | None = field(default=None, repr=False)
    home: str | PathLike[str] | None = None
    space: str = "default"
    embedding_dim: int | None = None
    hidden_dim: int | None = None
    num_heads: int | None = None
    num_layers: int | None = None
    embedder: str | None = None
    text_column: str | None = None
    learning_loops: LearningMode = LearningMode.INSTANT
    memory_budget_mb: float | None = None
    target_latency_us: float | None = None
    phi_threshold: float | None = None
    instant_config: InstantLoopConfig | None = None
    adapter_config: QueryAdapterConfig | None = None
    strategy_config: StrategyConfig | None = None
    space_config: SpaceConfig | None = None
    evidence_config: EvidenceConfig = field(default_factory=EvidenceConfig)
    store_config: StoreConfig = field(default_factory=StoreConfig)
    embedding_config: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    background_config: BackgroundConfig = field(default_factory=BackgroundConfig)
    pattern_config: PatternConfig = field(default_factory=PatternConfig)
    verdict_config: VerdictConfig = field(default_factory=VerdictConfig)
    shard_config: ShardConfig = field(default_factory=ShardConfig)
    lora_config: LoraConfig | None = None
    training_config: BaseTrainingConfig = field(default_factory=BaseTrainingConfig)
    gate_config: GateConfig = field(default_factory=GateConfig)
    ewc_config: EwcConfig = field(default_factory=EwcConfig)
    boundary_config: BoundaryConfig = field(default_factory=BoundaryConfig)
    deep_config: DeepLoopConfig = field(default_factory=DeepLoopConfig)
    consolidation_config: ConsolidationConfig = field(default_factory=ConsolidationConfig)
    hierarchy_config: HierarchyConfig = field(default_factory=HierarchyConfig)
    dream_config: DreamConfig = field(default_factory=DreamConfig)
    dream_evidence_config: DreamEvidenceConfig = field(default_factory=DreamEvidenceConfig)
    phi_config: PhiConfig = field(default_factory=PhiConfig)
    transfer_config: TransferConfig = field(default_factory=TransferConfig)

    def __post_init__(self) -> None:
        for name, kind in PART_TYPES.items():
            part = getattr(self, name)
            if not isinstance(part, kind) and not (part is None and name in AS_DECLARED):
                raise ConfigError(f"{name} is a {type(part).__name__}, expected a {kind.__name__}")
        for name in ("database_url", "embedder", "text_column"):
            given = getattr(self, name)
            if given is not None and (not isinstance(given, str) or not given):
                shown = "" if name == "database_url" else f" {given!r}"
                raise ConfigError(f"{name} is{shown or ' of another type'}, expected a text, or None")
        if self.home is not None and not isinstance(self.home, str | PathLike):
            raise ConfigError(f"home is {self.home!r}, expected a path, or None")
        if not isinstance(self.space, str) or not self.space:
            raise ConfigError(f"space is {self.space!r}, expected a name")
        if not isinstance(self.learning_loops, LearningMode):
            names = ", ".join(str(mode) for mode in LearningMode)
            raise ConfigError(f"learning_loops is {self.learning_loops!r}, expected one of {names}")
        self._check_shape()
        if self.memory_budget_mb is not None:
            check_within("memory_budget_mb", self.memory_budget_mb, 1.0, 1e6)
        if self.target_latency_us is not None:
            check_within("target_latency_us", self.target_latency_us, 1.0, 1e9)
        self._check_base()
        if self.phi_threshold is not None:
            replace(self.deep_config, phi_threshold=self.phi_threshold)
        for names in SAME:
            said_once(*((str(name), name.of(self), name.default) for name in names))

    def _check_shape(self) -> None:
        for name in ("embedding_dim", "hidden_dim", "num_heads", "num_layers"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1, MAX_DIM)
        if None not in (self.embedding_dim, self.hidden_dim) and self.embedding_dim != self.hidden_dim:
            raise ConfigError(
                f"hidden_dim is {self.hidden_dim} and embedding_dim {self.embedding_dim}, expected one number: "
                "what is learned maps embeddings to embeddings"
            )
        if self.dim is not None and self.num_heads is not None and self.dim % self.num_heads:
            raise ConfigError(f"hidden_dim {self.dim} is no multiple of num_heads {self.num_heads}")
        if self.pattern_config.embedding_dim not in (PatternConfig().embedding_dim, self.dim):
            raise ConfigError(
                f"embedding_dim of pattern_config is {self.pattern_config.embedding_dim}, that of the space {self.dim}:"
                " leave it out, patterns are of the space"
            )

    def _check_base(self) -> None:
        lora = self.lora_config
        if lora is None:
            return
        if lora != LoraConfig(rank=lora.rank):
            raise ConfigError(
                f"lora_config is {lora}, expected only a rank: the base of a space is one layer whose scale is 1 and "
                "whose A is frozen; BaseLoRA by itself takes the others"
            )

    @property
    def settled(self) -> Self:
        """The same settings, with those that have several names said by the first of them alone."""
        changes: dict[str, object] = {}
        for names in SAME:
            (field, setting), *others = names
            assert setting is not None
            value = said_once(*((str(name), name.of(self), name.default) for name in names))
            changes[field] = replace(changes.get(field, getattr(self, field)), **{setting: value})  # type: ignore[type-var]
            changes |= {name.field: name.unsaid(self) for name in others}
        return replace(self, **changes)  # type: ignore[arg-type]

    @property
    def base_training(self) -> BaseTrainingConfig:
        """`training_config` with the rank of `lora_config`, and the memory of `background_config`."""
        training = self.settled.training_config
        if training.max_vector_bytes is not None:
            return training
        return replace(training, max_vector_bytes=self.background_config.max_vector_bytes)

    @property
    def dim(self) -> int | None:
        """Components of the vectors of the space; None where nothing says it."""
        return self.hidden_dim if self.embedding_dim is None else self.embedding_dim

    @property
    def has_own_cycles(self) -> bool:
        """Whether a setting of the slow loops is not the default."""
        default = SonaConfig()
        own = (self.lora_config, self.phi_threshold) != (None, None)
        return own or any(getattr(self, name) != getattr(default, name) for name in (*BACKGROUND_PARTS, *DEEP_PARTS))

    @classmethod
    def builder(cls, config: SonaConfig | None = None) -> SonaConfigBuilder:
        """Settings one by one, beginning with the defaults or with those of `config`."""
        from sona_pg.config.builder import SonaConfigBuilder

        if config is not None and not isinstance(config, SonaConfig):
            raise ConfigError(f"config is a {type(config).__name__}, expected a SonaConfig")
        return SonaConfigBuilder(cls() if config is None else config)

    @classmethod
    def from_toml(cls, path: str | PathLike[str]) -> SonaConfig:
        """Settings from a file: those of this class by their names, those of a part in a table of its name.

        Raises
        ------
        IoError
            If the file cannot be read.
        ConfigError
            If it is no TOML, a setting is unknown, or refused; says which.
        """
        from sona_pg.config.sources import from_toml

        return from_toml(path)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> SonaConfig:
        """Settings from environment variables, `os.environ` if None; see docs/configuration.md for their names.

        Raises
        ------
        ConfigError
            If a variable names no setting of its part, or what it says is refused; says which.
        """
        from sona_pg.config.sources import from_environment

        return from_environment(environment)

    @classmethod
    def preset(cls, name: str, dim: int | None = None) -> SonaConfig:
        """Settings by name: max_throughput, max_quality, edge or batch; see `sona_pg.config.presets`.

        Parameters
        ----------
        name
            Which.
        dim
            `embedding_dim`. Say it where the space has fewer than 16 components: a rank of the preset that exceeds it
            is lowered to it, and without it refused when the space is opened.

        Raises
        ------
        ConfigError
            If there is none of this name, or `dim` is out of range.
        """
        from sona_pg.config.presets import preset

        return preset(name, dim)

    def replace(self, **changes: object) -> Self:
        """These settings with others, by name.

        Raises
        ------
        ConfigError
            If a setting is unknown, or refused.
        """
        known = [each.name for each in fields(self)]
        for name in changes:
            if name not in known:
                raise unknown_setting(name, known)
        return replace(self, **changes)  # type: ignore[arg-type]


def unknown_setting(name: str, known: list[str], where: str = "") -> ConfigError:
    """That there is no such setting, and which was meant."""
    from difflib import get_close_matches

    near = get_close_matches(name, known, 1)
    meant = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(sorted(known))}"
    return ConfigError(f"there is no setting {name!r}{where}: {meant}")

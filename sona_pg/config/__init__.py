"""Every default of sona_pg, once, with its unit and its reason. A value out of range is refused when it is given."""

from sona_pg.config.continual import (
    FISHER_KINDS,
    BaseTrainingConfig,
    BoundaryConfig,
    DistillationConfig,
    EwcConfig,
    GateConfig,
)
from sona_pg.config.instant import (
    InstantLoopConfig,
    LoraConfig,
    QueryAdapterConfig,
    SignalConfig,
)
from sona_pg.config.limits import (
    MAX_DIM,
    MAX_ID_BYTES,
    MAX_METADATA_BYTES,
    MAX_METADATA_DEPTH,
    MAX_STEPS,
    SCHEMA_REVISION,
    SHOWN,
    VECTOR_BYTES,
    VERSION,
)
from sona_pg.config.loops import (
    BACKGROUND_SCHEDULE,
    DEEP_SCHEDULE,
    MIN_TRAJECTORIES,
    BackgroundConfig,
    BackgroundLoopConfig,
    DeepLoopConfig,
    ScheduleConfig,
)
from sona_pg.config.memory import (
    CONSOLIDATION_THRESHOLD,
    NODE_KINDS,
    PHI_THRESHOLD,
    ConsolidationConfig,
    DreamConfig,
    DreamEvidenceConfig,
    HierarchyConfig,
    PhiConfig,
    TransferConfig,
)
from sona_pg.config.patterns import (
    FAIL,
    LOCAL,
    PatternConfig,
    ShardConfig,
    VerdictConfig,
)
from sona_pg.config.process import (
    StoreConfig,
    TelemetryConfig,
    WorkerConfig,
)
from sona_pg.config.rhythm import BACKGROUND_SECONDS, DEEP_SECONDS
from sona_pg.config.sona import LearningMode, SonaConfig
from sona_pg.config.space import (
    LEAST_SHARE,
    STRATEGIES,
    SpaceConfig,
)
from sona_pg.config.strategy import (
    EvidenceConfig,
    StrategyConfig,
)
from sona_pg.config.text import (
    EmbeddingConfig,
    EndpointConfig,
)

__all__ = [
    "BACKGROUND_SCHEDULE",
    "BACKGROUND_SECONDS",
    "CONSOLIDATION_THRESHOLD",
    "DEEP_SCHEDULE",
    "DEEP_SECONDS",
    "FAIL",
    "FISHER_KINDS",
    "LEAST_SHARE",
    "LOCAL",
    "MAX_DIM",
    "MAX_ID_BYTES",
    "MAX_METADATA_BYTES",
    "MAX_METADATA_DEPTH",
    "MAX_STEPS",
    "MIN_TRAJECTORIES",
    "NODE_KINDS",
    "PHI_THRESHOLD",
    "SCHEMA_REVISION",
    "SHOWN",
    "STRATEGIES",
    "VECTOR_BYTES",
    "VERSION",
    "BackgroundConfig",
    "BackgroundLoopConfig",
    "BaseTrainingConfig",
    "BoundaryConfig",
    "ConsolidationConfig",
    "DeepLoopConfig",
    "DistillationConfig",
    "DreamConfig",
    "DreamEvidenceConfig",
    "EmbeddingConfig",
    "EndpointConfig",
    "EvidenceConfig",
    "EwcConfig",
    "GateConfig",
    "HierarchyConfig",
    "InstantLoopConfig",
    "LearningMode",
    "LoraConfig",
    "PatternConfig",
    "PhiConfig",
    "QueryAdapterConfig",
    "ScheduleConfig",
    "ShardConfig",
    "SignalConfig",
    "SonaConfig",
    "SpaceConfig",
    "StoreConfig",
    "StrategyConfig",
    "TelemetryConfig",
    "TransferConfig",
    "VerdictConfig",
    "WorkerConfig",
]

"""The learning layer for Postgres: record outcomes, learn from them, apply what was learned."""

from sona_pg.config import InstantLoopConfig, QueryAdapterConfig, SignalConfig, SpaceConfig, StoreConfig
from sona_pg.engine import Recall, SonaEngine
from sona_pg.errors import (
    ConfigError,
    DatabaseError,
    DatabaseUnavailable,
    DimensionMismatch,
    EmbedderMismatch,
    InvalidInput,
    IoError,
    LearningError,
    MemoryGraphError,
    PatternExtractionError,
    PermissionDenied,
    SchemaMismatch,
    ServerError,
    SonaError,
    UnknownSpace,
    UnsupportedServer,
)
from sona_pg.learning.edges import EdgeWeights
from sona_pg.learning.lora import MicroLoRA
from sona_pg.learning.query_adapter import QueryAdapter
from sona_pg.loops.buffer import TrajectoryBuffer
from sona_pg.loops.instant import InstantLoop, InstantLoopMetrics
from sona_pg.types import (
    Answer,
    LearningSignal,
    QueryTrajectory,
    Score,
    SignalMetadata,
    TrajectoryBuilder,
    TrajectoryStep,
)

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "ConfigError",
    "DatabaseError",
    "DatabaseUnavailable",
    "DimensionMismatch",
    "EdgeWeights",
    "EmbedderMismatch",
    "InstantLoop",
    "InstantLoopConfig",
    "InstantLoopMetrics",
    "InvalidInput",
    "IoError",
    "LearningError",
    "LearningSignal",
    "MemoryGraphError",
    "MicroLoRA",
    "PatternExtractionError",
    "PermissionDenied",
    "QueryAdapter",
    "QueryAdapterConfig",
    "QueryTrajectory",
    "Recall",
    "SchemaMismatch",
    "Score",
    "ServerError",
    "SignalConfig",
    "SignalMetadata",
    "SonaEngine",
    "SonaError",
    "SpaceConfig",
    "StoreConfig",
    "TrajectoryBuffer",
    "TrajectoryBuilder",
    "TrajectoryStep",
    "UnknownSpace",
    "UnsupportedServer",
    "__version__",
]

"""The learning layer for Postgres: record outcomes, learn from them, apply what was learned.

Names are imported when they are first used, so that ``sona`` can say what is wrong with the settings of the kernels.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sona_pg.config import (
        BackgroundLoopConfig,
        BoundaryConfig,
        ConsolidationConfig,
        DeepLoopConfig,
        DreamConfig,
        DreamEvidenceConfig,
        EmbeddingConfig,
        EndpointConfig,
        EvidenceConfig,
        EwcConfig,
        HierarchyConfig,
        InstantLoopConfig,
        LearningMode,
        LoraConfig,
        PatternConfig,
        PhiConfig,
        QueryAdapterConfig,
        SignalConfig,
        SonaConfig,
        SpaceConfig,
        StoreConfig,
        StrategyConfig,
        TransferConfig,
        VerdictConfig,
    )
    from sona_pg.embedder_change import abort_embedder, change_embedder, finish_embedder
    from sona_pg.engine import Recall, SonaEngine
    from sona_pg.engine.answering import Response
    from sona_pg.engine.async_engine import AsyncSonaEngine
    from sona_pg.engine.fitting import FitReport
    from sona_pg.engine.results import DeepLearningResult, LearningResult
    from sona_pg.errors import (
        ConfigError,
        DamagedVersion,
        DatabaseBusy,
        DatabaseError,
        DatabaseUnavailable,
        DimensionMismatch,
        EmbedderError,
        EmbedderMismatch,
        IncompleteLedger,
        InvalidInput,
        IoError,
        LearningError,
        LockLost,
        MemoryGraphError,
        NoItems,
        PatternExtractionError,
        PermissionDenied,
        ResponderError,
        SchedulerUnavailable,
        SchemaMismatch,
        ServerError,
        ShardLost,
        SonaError,
        UnknownLoop,
        UnknownSpace,
        UnknownTrajectory,
        UnknownVersion,
        UnsupportedServer,
    )
    from sona_pg.exchange.patterns import PatternImport
    from sona_pg.learning.base_lora import BaseLoRA
    from sona_pg.learning.consolidation import apply_plan, consolidation_plan
    from sona_pg.learning.dream_engine import DreamEngine
    from sona_pg.learning.dream_evidence import DreamEvidence, dreams_help
    from sona_pg.learning.dream_gate import PhiEvaluator
    from sona_pg.learning.dreams import Dream
    from sona_pg.learning.edges import EdgeWeights
    from sona_pg.learning.ewc import EwcPlusPlus
    from sona_pg.learning.hierarchy import pattern_hierarchy
    from sona_pg.learning.lora import MicroLoRA
    from sona_pg.learning.memory_columns import MemoryEdges, MemoryNodes
    from sona_pg.learning.memory_graph import MemoryGraph, MemoryNode
    from sona_pg.learning.patterns import LearnedPattern
    from sona_pg.learning.query_adapter import QueryAdapter
    from sona_pg.learning.reasoning_bank import ReasoningBank
    from sona_pg.learning.system_integration import system_integration
    from sona_pg.learning.task_boundary import TaskBoundary
    from sona_pg.learning.task_memory import TaskMemory
    from sona_pg.learning.transfer import analogies
    from sona_pg.loops.archiving import LoadReport, SaveReport
    from sona_pg.loops.background_loop import BackgroundLoop, BackgroundResult
    from sona_pg.loops.buffer import TrajectoryBuffer
    from sona_pg.loops.deep_config import DeepConfig
    from sona_pg.loops.deep_loop import DeepLoop, DeepResult
    from sona_pg.loops.embedder_change import EmbedderReport
    from sona_pg.loops.forget import ForgetReport
    from sona_pg.loops.instant import InstantLoop
    from sona_pg.loops.metrics import InstantLoopMetrics
    from sona_pg.store.improvement import ImprovementMetrics
    from sona_pg.store.recorded_queries import RecordedQuery
    from sona_pg.text.embedders import (
        AsyncEmbedder,
        Embedder,
        EndpointEmbedder,
        FunctionEmbedder,
        HashingEmbedder,
        SentenceTransformerEmbedder,
    )
    from sona_pg.text.responders import AsyncResponder, Context, EndpointResponder, Item, Responder
    from sona_pg.types import (
        Answer,
        LearningSignal,
        QueryTrajectory,
        Score,
        SignalMetadata,
        TrajectoryBuilder,
        TrajectoryStep,
    )

__version__: str

_MODULES = {
    "sona_pg.engine.answering": ("Response",),
    "sona_pg.engine.async_engine": ("AsyncSonaEngine",),
    "sona_pg.engine.fitting": ("FitReport",),
    "sona_pg.engine.results": (
        "DeepLearningResult",
        "LearningResult",
    ),
    "sona_pg.text.embedders": (
        "AsyncEmbedder",
        "Embedder",
        "EndpointEmbedder",
        "FunctionEmbedder",
        "HashingEmbedder",
        "SentenceTransformerEmbedder",
    ),
    "sona_pg.text.responders": (
        "AsyncResponder",
        "Context",
        "EndpointResponder",
        "Item",
        "Responder",
    ),
    "sona_pg.config": (
        "BackgroundLoopConfig",
        "BoundaryConfig",
        "ConsolidationConfig",
        "DeepLoopConfig",
        "DreamConfig",
        "DreamEvidenceConfig",
        "EmbeddingConfig",
        "EndpointConfig",
        "EvidenceConfig",
        "EwcConfig",
        "HierarchyConfig",
        "InstantLoopConfig",
        "LearningMode",
        "LoraConfig",
        "PatternConfig",
        "PhiConfig",
        "QueryAdapterConfig",
        "SignalConfig",
        "SonaConfig",
        "SpaceConfig",
        "StoreConfig",
        "StrategyConfig",
        "TransferConfig",
        "VerdictConfig",
    ),
    "sona_pg.embedder_change": (
        "abort_embedder",
        "change_embedder",
        "finish_embedder",
    ),
    "sona_pg.engine": (
        "Recall",
        "SonaEngine",
    ),
    "sona_pg.errors": (
        "ConfigError",
        "DamagedVersion",
        "DatabaseBusy",
        "DatabaseError",
        "DatabaseUnavailable",
        "DimensionMismatch",
        "EmbedderError",
        "EmbedderMismatch",
        "IncompleteLedger",
        "InvalidInput",
        "IoError",
        "LearningError",
        "LockLost",
        "MemoryGraphError",
        "NoItems",
        "PatternExtractionError",
        "PermissionDenied",
        "ResponderError",
        "SchedulerUnavailable",
        "SchemaMismatch",
        "ServerError",
        "ShardLost",
        "SonaError",
        "UnknownLoop",
        "UnknownSpace",
        "UnknownTrajectory",
        "UnknownVersion",
        "UnsupportedServer",
    ),
    "sona_pg.learning.base_lora": ("BaseLoRA",),
    "sona_pg.learning.consolidation": (
        "apply_plan",
        "consolidation_plan",
    ),
    "sona_pg.learning.dream_engine": ("DreamEngine",),
    "sona_pg.learning.dream_evidence": (
        "DreamEvidence",
        "dreams_help",
    ),
    "sona_pg.learning.dream_gate": ("PhiEvaluator",),
    "sona_pg.learning.dreams": ("Dream",),
    "sona_pg.learning.edges": ("EdgeWeights",),
    "sona_pg.learning.ewc": ("EwcPlusPlus",),
    "sona_pg.learning.hierarchy": ("pattern_hierarchy",),
    "sona_pg.learning.lora": ("MicroLoRA",),
    "sona_pg.learning.memory_columns": (
        "MemoryEdges",
        "MemoryNodes",
    ),
    "sona_pg.learning.memory_graph": (
        "MemoryGraph",
        "MemoryNode",
    ),
    "sona_pg.exchange.patterns": ("PatternImport",),
    "sona_pg.learning.patterns": ("LearnedPattern",),
    "sona_pg.learning.query_adapter": ("QueryAdapter",),
    "sona_pg.learning.reasoning_bank": ("ReasoningBank",),
    "sona_pg.learning.system_integration": ("system_integration",),
    "sona_pg.learning.task_boundary": ("TaskBoundary",),
    "sona_pg.learning.task_memory": ("TaskMemory",),
    "sona_pg.learning.transfer": ("analogies",),
    "sona_pg.loops.archiving": ("LoadReport", "SaveReport"),
    "sona_pg.loops.background_loop": (
        "BackgroundLoop",
        "BackgroundResult",
    ),
    "sona_pg.loops.buffer": ("TrajectoryBuffer",),
    "sona_pg.loops.deep_config": ("DeepConfig",),
    "sona_pg.loops.deep_loop": (
        "DeepLoop",
        "DeepResult",
    ),
    "sona_pg.loops.embedder_change": ("EmbedderReport",),
    "sona_pg.loops.forget": ("ForgetReport",),
    "sona_pg.loops.instant": ("InstantLoop",),
    "sona_pg.loops.metrics": ("InstantLoopMetrics",),
    "sona_pg.store.improvement": ("ImprovementMetrics",),
    "sona_pg.store.recorded_queries": ("RecordedQuery",),
    "sona_pg.types": (
        "Answer",
        "LearningSignal",
        "QueryTrajectory",
        "Score",
        "SignalMetadata",
        "TrajectoryBuilder",
        "TrajectoryStep",
    ),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Answer",
    "AsyncEmbedder",
    "AsyncResponder",
    "AsyncSonaEngine",
    "BackgroundLoop",
    "BackgroundLoopConfig",
    "BackgroundResult",
    "BaseLoRA",
    "BoundaryConfig",
    "ConfigError",
    "ConsolidationConfig",
    "Context",
    "DamagedVersion",
    "DatabaseBusy",
    "DatabaseError",
    "DatabaseUnavailable",
    "DeepConfig",
    "DeepLearningResult",
    "DeepLoop",
    "DeepLoopConfig",
    "DeepResult",
    "DimensionMismatch",
    "Dream",
    "DreamConfig",
    "DreamEngine",
    "DreamEvidence",
    "DreamEvidenceConfig",
    "EdgeWeights",
    "Embedder",
    "EmbedderError",
    "EmbedderMismatch",
    "EmbedderReport",
    "EmbeddingConfig",
    "EndpointConfig",
    "EndpointEmbedder",
    "EndpointResponder",
    "EvidenceConfig",
    "EwcConfig",
    "EwcPlusPlus",
    "FitReport",
    "ForgetReport",
    "FunctionEmbedder",
    "HashingEmbedder",
    "HierarchyConfig",
    "ImprovementMetrics",
    "IncompleteLedger",
    "InstantLoop",
    "InstantLoopConfig",
    "InstantLoopMetrics",
    "InvalidInput",
    "IoError",
    "Item",
    "LearnedPattern",
    "LearningError",
    "LearningMode",
    "LearningResult",
    "LearningSignal",
    "LoadReport",
    "LockLost",
    "LoraConfig",
    "MemoryEdges",
    "MemoryGraph",
    "MemoryGraphError",
    "MemoryNode",
    "MemoryNodes",
    "MicroLoRA",
    "NoItems",
    "PatternConfig",
    "PatternExtractionError",
    "PatternImport",
    "PermissionDenied",
    "PhiConfig",
    "PhiEvaluator",
    "QueryAdapter",
    "QueryAdapterConfig",
    "QueryTrajectory",
    "ReasoningBank",
    "Recall",
    "RecordedQuery",
    "Responder",
    "ResponderError",
    "Response",
    "SaveReport",
    "SchedulerUnavailable",
    "SchemaMismatch",
    "Score",
    "SentenceTransformerEmbedder",
    "ServerError",
    "ShardLost",
    "SignalConfig",
    "SignalMetadata",
    "SonaConfig",
    "SonaEngine",
    "SonaError",
    "SpaceConfig",
    "StoreConfig",
    "StrategyConfig",
    "TaskBoundary",
    "TaskMemory",
    "TrajectoryBuffer",
    "TrajectoryBuilder",
    "TrajectoryStep",
    "TransferConfig",
    "UnknownLoop",
    "UnknownSpace",
    "UnknownTrajectory",
    "UnknownVersion",
    "UnsupportedServer",
    "VerdictConfig",
    "__version__",
    "abort_embedder",
    "analogies",
    "apply_plan",
    "change_embedder",
    "consolidation_plan",
    "dreams_help",
    "finish_embedder",
    "pattern_hierarchy",
    "system_integration",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return importlib.import_module("sona_pg.config").VERSION
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

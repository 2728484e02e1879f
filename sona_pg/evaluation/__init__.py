"""Would it help? Replays logged outcomes, measures on held-out queries, and compares with simpler rivals."""

from sona_pg.evaluation.collection import Collection, load_collection
from sona_pg.evaluation.feedback import Feedback
from sona_pg.evaluation.metrics import Quality
from sona_pg.evaluation.protocol import MemorySystem, System, SystemFactory, Traced, evaluate_collection
from sona_pg.evaluation.report import CollectionReport, StrategyReport, report_json
from sona_pg.evaluation.splits import Split, SplitKind
from sona_pg.evaluation.strategies import StrategySystem
from sona_pg.evaluation.trace import Trace

__all__ = [
    "Collection",
    "CollectionReport",
    "Feedback",
    "MemorySystem",
    "Quality",
    "Split",
    "SplitKind",
    "StrategyReport",
    "StrategySystem",
    "System",
    "SystemFactory",
    "Trace",
    "Traced",
    "evaluate_collection",
    "load_collection",
    "report_json",
]

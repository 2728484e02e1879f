"""The engine: record, learn and apply on one space."""

from sona_pg.engine.engine import SonaEngine
from sona_pg.engine.recalled import Recall

__all__ = ["Recall", "SonaEngine"]

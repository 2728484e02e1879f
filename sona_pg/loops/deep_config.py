"""Settings of loop C and of its parts, in Postgres and in memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sona_pg.config import (
    ConsolidationConfig,
    DeepLoopConfig,
    DreamConfig,
    DreamEvidenceConfig,
    HierarchyConfig,
    PhiConfig,
    TransferConfig,
)
from sona_pg.config.checks import said_once


@dataclass(frozen=True, slots=True)
class DeepConfig:
    """Loop C and its parts.

    Parameters
    ----------
    loop
        How much a cycle does. Its thresholds are those of `consolidation` and `phi`: what one of both says holds.
    consolidation, hierarchy, dreams, evidence, phi, transfer
        Of its parts.

    Raises
    ------
    ConfigError
        If two say different things of a threshold.
    """

    loop: DeepLoopConfig = field(default_factory=DeepLoopConfig)
    consolidation: ConsolidationConfig = field(default_factory=ConsolidationConfig)
    hierarchy: HierarchyConfig = field(default_factory=HierarchyConfig)
    dreams: DreamConfig = field(default_factory=DreamConfig)
    evidence: DreamEvidenceConfig = field(default_factory=DreamEvidenceConfig)
    phi: PhiConfig = field(default_factory=PhiConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)

    def __post_init__(self) -> None:
        phi = self._once("phi_threshold", "phi", PhiConfig().threshold)
        consolidation = self._once("consolidation_threshold", "consolidation", ConsolidationConfig().threshold)
        object.__setattr__(self, "phi", replace(self.phi, threshold=phi))
        object.__setattr__(self, "consolidation", replace(self.consolidation, threshold=consolidation))

    def _once(self, name: str, part: str, default: float) -> float:
        own = (f"loop.{name}", getattr(self.loop, name), default)
        found = said_once(own, (f"{part}.threshold", getattr(self, part).threshold, default))
        assert isinstance(found, int | float)
        return found

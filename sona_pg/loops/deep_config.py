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


@dataclass(frozen=True, slots=True)
class DeepConfig:
    """Loop C and its parts.

    Parameters
    ----------
    loop
        How much a cycle does; its thresholds take the place of those of `consolidation` and `phi`.
    consolidation, hierarchy, dreams, evidence, phi, transfer
        Of its parts.
    """

    loop: DeepLoopConfig = field(default_factory=DeepLoopConfig)
    consolidation: ConsolidationConfig = field(default_factory=ConsolidationConfig)
    hierarchy: HierarchyConfig = field(default_factory=HierarchyConfig)
    dreams: DreamConfig = field(default_factory=DreamConfig)
    evidence: DreamEvidenceConfig = field(default_factory=DreamEvidenceConfig)
    phi: PhiConfig = field(default_factory=PhiConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)

    def __post_init__(self) -> None:
        loop = self.loop
        object.__setattr__(self, "phi", replace(self.phi, threshold=loop.phi_threshold))
        object.__setattr__(self, "consolidation", replace(self.consolidation, threshold=loop.consolidation_threshold))

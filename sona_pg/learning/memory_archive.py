"""What a consolidation has done, and what it took out of memory, as it was, so that it can be brought back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sona_pg.learning.consolidation import Compression, ConsolidationPlan
from sona_pg.learning.memory_graph import MemoryNode
from sona_pg.learning.patterns import LearnedPattern
from sona_pg.learning.verdicts import Verdict

MERGED = "a near duplicate"
OF_LITTLE_VALUE = "of little value, unused and old"
TOO_WEAK = "too weak"
WITH_ITS_NODE = "of a node that was merged or went"


@dataclass(frozen=True, slots=True, eq=False)
class ArchivedNode:
    """A memory node that was taken out.

    Parameters
    ----------
    node
        As it was.
    number
        Its place in the order in which nodes came.
    reason
        Why it went.
    into
        Id of the node that it became part of.
    """

    node: MemoryNode
    number: int
    reason: str
    into: int | None = None


@dataclass(frozen=True, slots=True)
class ArchivedEdge:
    """An edge that was taken out, or now leads to another node.

    Parameters
    ----------
    a, b
        Ids of its nodes.
    weight, decayed_at
        As they were; see `MemoryEdges`. None where no consolidation had met it.
    is_creative
        Whether a dream had made it.
    reason
        Why it went.
    """

    a: int
    b: int
    weight: float
    decayed_at: float | None
    is_creative: bool
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Consolidation:
    """What a consolidation has done.

    Parameters
    ----------
    plan
        What was decided. Rows of nodes are in the order in which they came; those of edges that were observed stand
        before those that dreams have made.
    compression
        How much smaller the graph became.
    removed
        What was taken out: nodes, then edges.
    """

    plan: ConsolidationPlan
    compression: Compression
    removed: tuple[ArchivedNode | ArchivedEdge, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ArchivedPattern:
    """A pattern of a bank that was taken out.

    Parameters
    ----------
    pattern, verdicts
        As they were, verdicts by parameter.
    reason
        Why it went.
    into
        Id of the pattern that it became part of.
    """

    pattern: LearnedPattern
    verdicts: Mapping[str, Verdict]
    reason: str
    into: int | None = None


Archived = ArchivedNode | ArchivedEdge | ArchivedPattern


@dataclass(frozen=True, slots=True, eq=False)
class ArchiveEntry:
    """Something in the archive.

    Parameters
    ----------
    id
        By which it is restored.
    archived_at
        Seconds since the epoch.
    content
        What it is.
    """

    id: int
    archived_at: float
    content: Archived

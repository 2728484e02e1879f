"""What a consolidation has done, and what it took out of memory, as it was, so that it can be brought back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sona_pg.errors import InvalidInput
from sona_pg.learning.consolidation import Compression, ConsolidationPlan
from sona_pg.learning.memory_graph import MemoryNode
from sona_pg.learning.patterns import LearnedPattern
from sona_pg.learning.verdicts import Verdict
from sona_pg.types import is_whole

MERGED = "a near duplicate"
OF_LITTLE_VALUE = "of little value, unused and old"
TOO_WEAK = "too weak"
WITH_ITS_NODE = "of a node that was merged or went"
WITHDRAWN = "dreams do not help any more"


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
    is_merge
        Whether it became part of another, or leads to what its node became part of.
    version
        Of its weight: another one whenever somebody set it.
    """

    a: int
    b: int
    weight: float
    decayed_at: float | None
    is_creative: bool
    reason: str
    is_merge: bool = False
    version: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class NodeBefore:
    """A node that stays, before others became part of it.

    Parameters
    ----------
    node, after
        As it was, and as it is with what it has taken in.
    """

    node: MemoryNode
    after: MemoryNode


@dataclass(frozen=True, slots=True)
class EdgeBefore:
    """An edge that stands, before others became part of it or it came between these nodes.

    Parameters
    ----------
    a, b
        Ids of its nodes.
    weight, decayed_at
        As they were; the weight is 0 where there was no edge.
    is_creative
        Whether a dream had made it.
    after
        Its weight with what it has taken in.
    version
        Of its weight: another one where somebody has set it since.
    """

    a: int
    b: int
    weight: float
    decayed_at: float | None
    is_creative: bool
    after: float
    version: int


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
        What was taken out, and how that was which has taken something in: edges, then nodes. It is brought back from
        the last one to the first: each finds what it has left.
    """

    plan: ConsolidationPlan
    compression: Compression
    removed: tuple[ArchivedEdge | EdgeBefore | ArchivedNode | NodeBefore, ...]


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


Archived = ArchivedNode | ArchivedEdge | NodeBefore | EdgeBefore | ArchivedPattern


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
    cycle
        Number of the cycle that has put it there.
    """

    id: int
    archived_at: float
    content: Archived
    cycle: int = 0

    @property
    def is_merge(self) -> bool:
        """Whether it is of memory nodes that became one."""
        if isinstance(self.content, ArchivedNode):
            return self.content.into is not None
        return isinstance(self.content, NodeBefore | EdgeBefore) or (
            isinstance(self.content, ArchivedEdge) and self.content.is_merge
        )


class MemoryArchive:
    """What cycles have removed, in the order in which it went."""

    def __init__(self) -> None:
        self._entries: dict[int, ArchiveEntry] = {}
        self._last = 0
        self._cycle = 0

    @property
    def entries(self) -> tuple[ArchiveEntry, ...]:
        """All of them, the oldest first."""
        return tuple(self._entries.values())

    def begin_cycle(self) -> None:
        """What is kept from now on is of another cycle."""
        self._cycle += 1

    def keep(self, removed: Sequence[Archived], now: float) -> None:
        """Add entries, as of this time, seconds since the epoch."""
        for content in removed:
            self._last += 1
            self._entries[self._last] = ArchiveEntry(self._last, now, content, self._cycle)

    def drop(self, entry: ArchiveEntry) -> None:
        """Take an entry out."""
        del self._entries[entry.id]

    def drop_before(self, time: float) -> None:
        """Take out what is older."""
        self._entries = {id: entry for id, entry in self._entries.items() if entry.archived_at >= time}

    def named(self, ids: Iterable[int]) -> list[ArchiveEntry]:
        """Entries by their ids, the newest first.

        Raises
        ------
        InvalidInput
            If there is no such entry, or an id is none.
        """
        try:
            chosen = list(ids)
        except TypeError as cause:
            raise InvalidInput(f"ids are a {type(ids).__name__}, expected ids of entries of the archive") from cause
        for id in chosen:
            if not is_whole(id):
                raise InvalidInput(f"an entry of the archive is {id!r}, expected its id")
            if id not in self._entries:
                raise InvalidInput(f"there is no entry {id} in the archive: see archive()")
        return [self._entries[id] for id in sorted({int(id) for id in chosen}, reverse=True)]

    def with_merges(self, ids: Iterable[int] | None) -> list[ArchiveEntry]:
        """Entries, the newest first, all if None; with one of a merge all merges of that cycle and since.

        What stands is made of all that has come to it: the last one is taken out first.

        Raises
        ------
        InvalidInput
            As `named`.
        """
        if ids is None:
            return list(reversed(self.entries))
        chosen = self.named(ids)
        first = min((entry.cycle for entry in chosen if entry.is_merge), default=self._cycle + 1)
        named = {entry.id for entry in chosen}
        return [
            entry for entry in reversed(self.entries) if entry.id in named or (entry.is_merge and entry.cycle >= first)
        ]

"""The errors of sona_pg: one root, and a message that says what was found, what was expected, and the way out.

A class's docstring is its default message.
"""

from __future__ import annotations


class SonaError(Exception):
    """sona_pg could not do what was asked."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or type(self).__name__).strip().splitlines()[0])


class ConfigError(SonaError, ValueError):
    """A setting is unknown, out of its range, or cannot be honoured."""


class EmbedderMismatch(ConfigError):
    """The space belongs to another embedding model."""


class IoError(SonaError, OSError):
    """A file could not be read or written, or is not what it should be."""


class DatabaseError(SonaError):
    """The database refused or failed."""


class DatabaseUnavailable(DatabaseError):
    """The database cannot be reached."""


class DatabaseBusy(DatabaseError):
    """A lock, memory or time was not to be had; the same again may succeed."""


class ServerError(DatabaseError):
    """The embedded server could not be started, reached or stopped."""


class UnsupportedServer(DatabaseError):
    """The server is too old, or lacks pgvector."""


class PermissionDenied(DatabaseError):
    """The role lacks a right that this needs."""


class SchemaMismatch(DatabaseError):
    """The schema of the database is older or newer than this version of sona_pg."""


class UnknownSpace(DatabaseError):
    """There is no such space."""


class UnknownVersion(DatabaseError):
    """There is no such version: it was never published, or pruned."""


class DamagedVersion(DatabaseError):
    """A published version is not what was published: its checksum differs."""


class UnknownTrajectory(DatabaseError):
    """There is no such trajectory: it was never recorded, or retention has deleted it."""


class UnknownLoop(DatabaseError):
    """There is no such loop."""


class LockLost(DatabaseError):
    """Another worker has claimed the loop meanwhile: what was computed is not written."""


class NoItems(ConfigError):
    """The space has no table of items to search."""


class IncompleteLedger(DatabaseError):
    """The ledger holds events that cannot be learned again: what was recorded of them is deleted."""


class ShardLost(SonaError):
    """A process that held a part of a cycle's rows has died: the cycle is run again."""


class SchedulerUnavailable(SonaError):
    """The scheduler of a cluster cannot be reached, or has no workers."""


class PatternExtractionError(SonaError):
    """Patterns could not be extracted."""


class LearningError(SonaError):
    """A learning step could not be made."""


class InvalidInput(LearningError, ValueError):
    """A value from outside is not what it must be; nothing was recorded or learned from it."""


class EmbedderError(SonaError):
    """An embedder failed, or answered what are no vectors of its dimension."""


class ResponderError(SonaError):
    """A responder failed, or answered what is no text."""


class MemoryGraphError(SonaError):
    """The memory graph could not be read or changed."""


class DimensionMismatch(SonaError, ValueError):
    """A vector has another dimension than its space or layer.

    Parameters
    ----------
    expected, actual
        Number of components.
    """

    def __init__(self, expected: int, actual: int, what: str = "vector") -> None:
        super().__init__(
            f"{what} has {actual} dimensions, expected {expected}: "
            "use the embedding model the space was created for, or create a space of that dimension"
        )
        self.expected = expected
        self.actual = actual
        self._what = what

    def __reduce__(self) -> tuple[type[DimensionMismatch], tuple[int, int, str]]:
        return type(self), (self.expected, self.actual, self._what)

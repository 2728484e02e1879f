"""How a process uses the database, and what it shows of itself."""

from __future__ import annotations

from dataclasses import dataclass

from sona_pg.config.checks import check_flag, check_whole, check_within
from sona_pg.errors import ConfigError


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """How the database is used.

    Parameters
    ----------
    connect_timeout_seconds
        Longest wait for a connection, unless the URL says it (`connect_timeout=2`), or else PGCONNECT_TIMEOUT; less
        than two seconds are two, as in libpq.
    lock_timeout_seconds
        Longest wait for what another session holds, such as the learner's row; a flush tries again the next time.
    prepare_statements
        Whether the server may keep prepared statements; false behind a pooler in transaction mode.
    idle_connections
        Connections for searches that an engine keeps open; as many more as there are threads that search are made.
    async_connections
        Most connections over which an AsyncSonaEngine answers; requests beyond them wait for one.
    publish_every_events
        Learned outcome events between two immutable versions.
    publish_every_seconds
        A version is published after this time, too, if anything was learned.
    exact_search_rows
        Spaces with more remembered queries than this are searched through an HNSW index, which workers fill; so are
        those with more patterns, through one of their own.
    access_interval_seconds
        Time between two writes of how often patterns were found.
    spool_max_bytes
        Most that a space's spool takes on this machine while the database is away; 0 keeps no spool.
    spool_segment_bytes
        Size at which the spool begins another file; a file is deleted once all of it is in the database.
    spool_batch
        Spooled trajectories and scores that are replayed in one transaction.
    replay_batch
        Ledger entries that are read at once to be learned once more.
    embed_batch
        Recorded queries that are embedded at once, and written in one transaction, when a space changes its embedder.
    """

    connect_timeout_seconds: int = 10
    lock_timeout_seconds: int = 10
    prepare_statements: bool = True
    idle_connections: int = 4
    async_connections: int = 8
    publish_every_events: int = 500
    publish_every_seconds: int = 3600
    exact_search_rows: int = 4_000
    access_interval_seconds: float = 60.0
    spool_max_bytes: int = 1 << 30
    spool_segment_bytes: int = 16 << 20
    spool_batch: int = 500
    replay_batch: int = 1_000
    embed_batch: int = 256

    def __post_init__(self) -> None:
        check_whole("connect_timeout_seconds", self.connect_timeout_seconds, 1, 3600)
        check_whole("lock_timeout_seconds", self.lock_timeout_seconds, 1, 3600)
        check_flag("prepare_statements", self.prepare_statements)
        check_whole("idle_connections", self.idle_connections, 0, 10_000)
        check_whole("async_connections", self.async_connections, 1, 10_000)
        check_whole("publish_every_seconds", self.publish_every_seconds, 1, 1 << 31)
        check_whole("publish_every_events", self.publish_every_events, 1, 1 << 31)
        check_whole("exact_search_rows", self.exact_search_rows, 0, 1 << 31)
        check_within("access_interval_seconds", self.access_interval_seconds, 0.0, 86_400.0)
        check_whole("spool_max_bytes", self.spool_max_bytes, 0, 1 << 50)
        check_whole("spool_segment_bytes", self.spool_segment_bytes, 1, 1 << 32)
        check_whole("spool_batch", self.spool_batch, 1, 100_000)
        check_whole("replay_batch", self.replay_batch, 1, 100_000)
        check_whole("embed_batch", self.embed_batch, 1, 100_000)


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Worker processes.

    Parameters
    ----------
    poll_interval_seconds
        Time between two looks for work while there is none.
    batch
        Trajectories in one learning transaction.
    open_spaces
        Spaces whose state a worker keeps in memory.
    retention_interval_seconds
        Time between two looks for what is past its retention; while there is more, a batch at every look for work.
    retention_batch
        Trajectories in one transaction that deletes.
    keep_versions
        Newest versions that stay; older ones stay as long as there is a trajectory that was answered by them.
    longest_setback_seconds
        A space that fails is tried again after 2, 4, 8 … seconds, up to this.
    set_aside_after
        A loop whose cycles failed so often in a space, one after the other, is set aside there until somebody sets its
        schedule or asks for a cycle.
    attempts
        A cycle whose workers died so often without finishing a phase has failed.
    drain_seconds
        A worker that is to end finishes the phase in hand; after this time it abandons it, and the next worker begins
        it again.
    keep_runs
        Newest runs of a loop in a space that stay.
    """

    poll_interval_seconds: float = 0.5
    batch: int = 500
    open_spaces: int = 64
    retention_interval_seconds: float = 60.0
    retention_batch: int = 1000
    keep_versions: int = 100
    longest_setback_seconds: float = 300.0
    set_aside_after: int = 5
    attempts: int = 5
    drain_seconds: float = 30.0
    keep_runs: int = 1000

    def __post_init__(self) -> None:
        check_within("poll_interval_seconds", self.poll_interval_seconds, 0.01, 3600.0)
        check_whole("batch", self.batch, 1, 100_000)
        check_whole("open_spaces", self.open_spaces, 1, 10_000)
        check_within("retention_interval_seconds", self.retention_interval_seconds, 0.0, 86_400.0)
        check_whole("retention_batch", self.retention_batch, 1, 100_000)
        check_whole("keep_versions", self.keep_versions, 1, 1_000_000)
        check_within("longest_setback_seconds", self.longest_setback_seconds, 1.0, 86_400.0)
        check_whole("set_aside_after", self.set_aside_after, 1, 1_000_000)
        check_whole("attempts", self.attempts, 1, 1_000_000)
        check_within("drain_seconds", self.drain_seconds, 0.0, 86_400.0)
        check_whole("keep_runs", self.keep_runs, 1, 1_000_000)


@dataclass(frozen=True, slots=True)
class TelemetryConfig:
    """What a worker process shows of itself: metrics and health.

    Parameters
    ----------
    host
        Address that is listened on. Anybody who reaches it may read names of spaces and messages of errors.
    max_spaces
        Spaces that have series of their own, the first that were created; what this process counts of others goes to
        a series without a space.
    cache_seconds, lift_cache_seconds
        Age up to which what was read from the database is given again, however often it is asked for. The lift is
        computed over all answers, and costs more.
    statement_timeout_seconds
        Longest that the database computes what is asked of it for the metrics.
    patience_seconds
        Longest that a request waits for the database; after that it is answered as if it were away.
    stall_seconds
        Without a turn of its loop for so long, and outside of a cycle, a process is not healthy.
    """

    host: str = "127.0.0.1"
    max_spaces: int = 1000
    cache_seconds: float = 5.0
    lift_cache_seconds: float = 60.0
    statement_timeout_seconds: float = 2.0
    patience_seconds: float = 3.0
    stall_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not isinstance(self.host, str) or not self.host:
            raise ConfigError(f"host is {self.host!r}, expected an address like 127.0.0.1, or 0.0.0.0 for all")
        check_whole("max_spaces", self.max_spaces, 1, 100_000)
        check_within("cache_seconds", self.cache_seconds, 0.0, 3600.0)
        check_within("lift_cache_seconds", self.lift_cache_seconds, 0.0, 86_400.0)
        check_within("statement_timeout_seconds", self.statement_timeout_seconds, 0.001, 3600.0)
        check_within("patience_seconds", self.patience_seconds, 0.01, 3600.0)
        check_within("stall_seconds", self.stall_seconds, 0.1, 86_400.0)

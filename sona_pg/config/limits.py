"""What is refused for its size, and which revision of the database is expected."""

from __future__ import annotations

VECTOR_BYTES = 160 << 20
"""Most that the vectors of a cycle's phase take in memory."""

VERSION = "0.1.0"
"""Version of sona_pg."""

SCHEMA_REVISION = "0010"
"""Revision of the database that this version works with."""

MAX_DIM = 16_000
"""Largest dimension of a pgvector column."""

MAX_STEPS = 10_000
"""Most steps of a trajectory; a longer one is refused."""

MAX_ID_BYTES = 500
"""Longest id of an item, a user, a session or a score in UTF-8: two of them fit into one index entry of Postgres."""

MAX_METADATA_BYTES = 1 << 20
"""Longest metadata of a trajectory, as JSON in UTF-8."""

MAX_METADATA_DEPTH = 100
"""How deep lists and dicts may be nested in it."""

SHOWN = 10
"""How many items an answer shows where nothing else is asked for."""

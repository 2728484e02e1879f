"""The settings by which a space finds its strategy: the first that are asked for hold for all of its processes."""

from __future__ import annotations

from dataclasses import asdict

from psycopg.types.json import Jsonb

from sona_pg.config import StrategyConfig
from sona_pg.errors import ConfigError
from sona_pg.store.connection import Connection, bounded, translated
from sona_pg.store.spaces import Space


def declared_settings(connection: Connection, space: Space) -> StrategyConfig | None:
    """The settings by which a space finds its strategy; None as long as nobody has declared any."""
    with translated():
        row = connection.execute(
            "SELECT settings FROM sona.strategist WHERE space_id = %s", (space.space_id,)
        ).fetchone()
    return StrategyConfig(**row[0]) if row is not None and row[0] else None


def claim_settings(connection: Connection, space: Space, given: StrategyConfig | None) -> StrategyConfig:
    """The settings by which a space finds its strategy: the first that are asked for, and those alone from then on.

    Raises
    ------
    ConfigError
        If others are given.
    """
    asked = asdict(StrategyConfig() if given is None else given)
    statement = (
        "SELECT settings, has_column_privilege('sona.strategist', 'settings', 'UPDATE') FROM sona.strategist"
        " WHERE space_id = %s"
    )
    with bounded(connection):
        row = connection.execute(statement, (space.space_id,)).fetchone()
        if row is not None and not row[0] and row[1]:
            connection.execute(
                "UPDATE sona.strategist SET settings = %s WHERE space_id = %s AND settings = '{}'::jsonb",
                (Jsonb(asked), space.space_id),
            )
            row = connection.execute(statement, (space.space_id,)).fetchone()
    held = row[0] if row is not None and row[0] else asked
    if given is not None:
        for name, value in asked.items():
            if held.get(name, value) != value:
                raise ConfigError(
                    f"space {space.name!r} finds its strategy with {name} = {held[name]}, not {value}: "
                    "leave the setting out, or create another space"
                )
    return StrategyConfig(**held)

"""How a space is opened, and created where it is not there."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

from sona_pg.config import SonaConfig, SpaceConfig
from sona_pg.engine.budget import check_latency, within_budget
from sona_pg.errors import ConfigError, DimensionMismatch, EmbedderMismatch, InvalidInput
from sona_pg.loops.admission import checked_text
from sona_pg.loops.evidence import EvidenceLoop
from sona_pg.loops.instant import InstantLoop
from sona_pg.loops.space_store import SpaceStore
from sona_pg.store import spaces, strategy_settings
from sona_pg.store.connection import Connection, bounded
from sona_pg.store.database import Database, open_database
from sona_pg.store.spaces import Space

log = logging.getLogger("sona_pg")


def open_space(config: SonaConfig) -> tuple[Database, Space, InstantLoop, EvidenceLoop, SonaConfig]:
    """The space with its loops, and the settings within the memory budget; errors as of `SonaEngine`."""
    space, dim, embedder, space_config = config.space, config.dim, config.embedder, config.space_config
    home = None if config.home is None else os.fspath(config.home)
    checked_text(space, "the name of the space")
    if embedder is not None:
        checked_text(embedder, "embedder")
    database = open_database(config.database_url, home=home, config=config.store_config)
    with database.connect() as connection:
        with bounded(connection):
            there = spaces.find_space(connection, space)
        # Before anything is created or declared: what is refused must leave nothing behind.
        config = _reachable(connection, there, config)
        found = there or _create(connection, config)
        if found.standby_of is not None:
            raise EmbedderMismatch(
                f"space {space!r} is kept beside another one, which changes its embedder: connect to that one"
            )
        if dim is not None and dim != found.dim:
            raise DimensionMismatch(found.dim, dim, f"the dimension given for space {space!r}")
        if space_config is not None:
            _check_declared(found, space_config)
        spaces.check_embedder(connection, found, embedder)
        instant, adapter = spaces.claim_settings(connection, found, config.instant_config, config.adapter_config)
        strategy = strategy_settings.claim_settings(connection, found, config.strategy_config)
    loop = InstantLoop(
        found.dim,
        instant,
        adapter=adapter,
        space=found.config,
        store=SpaceStore(found, database.connect, database.config, database.spool_directory),
    )
    weighing = EvidenceLoop(
        SpaceStore(found, database.connect, database.config, None), strategy, adapter, config.evidence_config
    )
    return database, found, loop, weighing, config


def _check_declared(space: Space, asked: SpaceConfig) -> None:
    """What a space declares of its traffic is as it is asked for; what answers may have been changed since."""
    held = space.config
    if replace(asked, strategy=held.strategy, control_share=held.control_share) != held:
        raise ConfigError(f"space {space.name!r} declares {held}, not {asked}: leave space_config out")
    if asked != held:
        log.warning(
            "space %r was given strategy %r and control share %g since it was created, instead of %r and %g",
            *(space.name, held.strategy, held.control_share, asked.strategy, asked.control_share),
        )


def _reachable(connection: Connection, there: Space | None, config: SonaConfig) -> SonaConfig:
    """The settings within the memory budget, where the target latency is reached with them; refused otherwise."""
    dim = config.dim if there is None else there.dim
    if dim is None or (config.memory_budget_mb is None and config.target_latency_us is None):
        return config
    declared = None if there is None else spaces.declared_settings(connection, there)
    instant, adapter = (None, None) if declared is None else declared
    if config.memory_budget_mb is not None:
        strategy = None if there is None else strategy_settings.declared_settings(connection, there)
        config = within_budget(config, dim, instant, adapter, strategy)
    check_latency(config, dim, adapter)
    return config


def _create(connection: Connection, config: SonaConfig) -> Space:
    """The space, which was not there."""
    name, dim, adapter = config.space, config.dim, config.adapter_config
    if dim is None:
        return spaces.get_space(connection, name)  # says what helps
    if adapter is not None and adapter.rank > dim:
        raise ConfigError(f"rank {adapter.rank} exceeds the dimension {dim}: choose a rank of at most {dim}")
    try:
        return spaces.create_space(connection, name, dim, embedder=config.embedder, config=config.space_config)
    except InvalidInput:
        # Another process that starts at the same time may have created it.
        return spaces.get_space(connection, name)

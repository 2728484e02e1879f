"""Cycles of the slow loops that an engine runs itself."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from sona_pg.config import SonaConfig
from sona_pg.errors import PermissionDenied, SchemaMismatch, SonaError
from sona_pg.store.database import Database
from sona_pg.store.spaces import Space

if TYPE_CHECKING:
    from sona_pg.loops.cycle import Loop

log = logging.getLogger("sona_pg")

# The loops are imported where one is made: most processes run none, and need not have them in memory.


def background_of(config: SonaConfig) -> Loop:
    """Loop B with these settings."""
    from sona_pg.learning.base_cycle import BaseConfig
    from sona_pg.loops.background import background_loop

    config = config.settled
    return background_loop(
        config.background_config,
        config.pattern_config,
        config.verdict_config,
        BaseConfig(config.base_training, config.gate_config, config.ewc_config, config.boundary_config),
        config.shard_config,
    )


def deep_of(config: SonaConfig) -> Loop:
    """Loop C with these settings."""
    from sona_pg.loops.deep import deep_loop
    from sona_pg.loops.deep_config import DeepConfig

    config = config.settled
    return deep_loop(
        DeepConfig(
            config.deep_config,
            config.consolidation_config,
            config.hierarchy_config,
            config.dream_config,
            config.dream_evidence_config,
            config.phi_config,
            config.transfer_config,
        )
    )


LOOPS: Mapping[str, Callable[[SonaConfig], Loop]] = {"background": background_of, "deep": deep_of}


def loop_of(name: str, config: SonaConfig) -> Loop:
    """The loop of this name with these settings.

    Raises
    ------
    ConfigError
        If a setting means nothing to it.
    """
    return LOOPS[name](config)


def check_loops(config: SonaConfig) -> None:
    """Refuse at once what a cycle would refuse, with a `ConfigError`; the defaults need no look."""
    if config.has_own_cycles:
        for name in LOOPS:
            loop_of(name, config)


def run_cycles(database: Database, space: Space, config: SonaConfig, stop: threading.Event) -> list[threading.Thread]:
    """Threads that run the slow loops of the settings in one space, until `stop` is set."""
    threads = []
    for name in config.learning_loops.slow_loops:
        work = partial(_run, name, database, space, config, stop)
        threads.append(threading.Thread(target=work, name=f"sona-{name}-{space.name}", daemon=True))
        threads[-1].start()
    return threads


_AGAIN_SECONDS = 5.0
"""After a failure that may pass."""


def _run(name: str, database: Database, space: Space, config: SonaConfig, stop: threading.Event) -> None:
    from sona_pg.loops.coordinator import LoopCoordinator

    failure = ""
    with contextlib.closing(LoopCoordinator(database, loop_of(name, config), only=space)) as coordinator:
        while not stop.is_set():
            began = time.monotonic()
            try:
                coordinator.run(stop)
            except (PermissionDenied, SchemaMismatch) as error:
                # Nothing that this process can wait for.
                log.warning("the %s loop of space %r does not run here: %s", name, space.name, error)
                return
            except SonaError as error:
                # Once, unless it ran for a while in between.
                if str(error) != failure or time.monotonic() - began > _AGAIN_SECONDS:
                    failure = str(error)
                    log.warning("the %s loop of space %r failed, will be tried again: %s", name, space.name, error)
                stop.wait(_AGAIN_SECONDS)
            except Exception:
                log.exception("the %s loop of space %r failed, will be tried again", name, space.name)
                stop.wait(_AGAIN_SECONDS)

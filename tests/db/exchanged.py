"""What tests of export and import share: how a space looks, and what files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from sona_pg import (
    SonaEngine,
)
from sona_pg.config import BackgroundConfig
from sona_pg.exchange.peft_files import CARD, CONFIG, WEIGHTS
from sona_pg.loops.background import background_loop
from sona_pg.store.connection import Connection

from .vectors import unit

Vectors = NDArray[np.float32]
SMALL = background_loop(BackgroundConfig(minimum=1))


def audit(connection: Connection, space: str) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT action, before, after, reason FROM sona.deployment d JOIN sona.space s USING (space_id)"
        " WHERE s.name = %s ORDER BY deployment_id",
        (space,),
    ).fetchall()


def everything(connection: Connection, space: str) -> dict[str, list[Any]]:
    """All that an import could change, as text."""
    found = {}
    for table in (
        *("learner", "served_row", "adapter_version", "version_row", "base_state", "strategist", "deployment", "space"),
        *("pattern", "verdict", "pattern_access", "pattern_state", "pattern_history"),
    ):
        found[table] = connection.execute(
            f"SELECT t::text FROM sona.{table} t WHERE space_id = (SELECT space_id FROM sona.space WHERE name = %s)"
            " ORDER BY 1",
            (space,),
        ).fetchall()
    return found


def peft_forward(path: Path, x: Vectors) -> NDArray[np.float64]:
    """What PEFT computes from the files, by its documentation: the base layer is the identity."""
    config, tensors = json.loads((path / CONFIG).read_text()), load((path / WEIGHTS).read_bytes())
    (module,) = config["target_modules"]
    a, b = (tensors[f"base_model.model.{module}.lora_{part}.weight"].astype(np.float64) for part in "AB")
    return x + config["lora_alpha"] / config["r"] * (x @ a.T) @ b.T


def plain(path: Path) -> Path:
    """As PEFT would have written it."""
    (path / CARD).unlink()
    (path / WEIGHTS).write_bytes(save(load((path / WEIGHTS).read_bytes()), {"format": "pt"}))
    return path


def patterns(connection: Connection, space: str) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT p.centroid::text, p.cluster_size, p.total_weight, p.avg_quality, p.confidence, p.support,"
        " p.best_strategy, p.title, p.content, p.created_at, p.updated_at, p.decayed_at, p.abstraction_level,"
        " a.access_count, a.last_accessed,"
        " (SELECT jsonb_agg(v.state ORDER BY v.parameter) FROM sona.verdict v WHERE v.space_id = p.space_id"
        "  AND v.pattern_id = p.pattern_id),"
        " (SELECT jsonb_agg(jsonb_build_array(v.evidence, v.best_value, v.best_confidence) ORDER BY v.parameter)"
        "  FROM sona.verdict v WHERE v.space_id = p.space_id AND v.pattern_id = p.pattern_id)"
        " FROM sona.pattern p JOIN sona.space s USING (space_id)"
        " LEFT JOIN sona.pattern_access a USING (space_id, pattern_id) WHERE s.name = %s ORDER BY p.pattern_id",
        (space,),
    ).fetchall()


def supports(connection: Connection, space: str) -> list[int]:
    return [row[5] for row in patterns(connection, space)]


def ask(engine: SonaEngine, near: Vectors, times: int) -> None:
    rng = np.random.default_rng(5)
    for _ in range(times):
        engine.record(unit(near + 0.02 * rng.standard_normal(len(near))), quality=0.5)
    engine.flush()


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]

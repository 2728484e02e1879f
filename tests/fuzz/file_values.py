"""Arguments for what writes and reads files: places that are free or taken, and exported files that were bent."""

from __future__ import annotations

import itertools
import json
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from sona_pg.exchange.peft_files import CARD, CONFIG, WEIGHTS, AdapterCard, weights_sha256, write_adapter
from sona_pg.exchange.rows import rows_sha256, write_rows
from sona_pg.kernels import LowRank

from .anything import DIM, Any_, texts

_FOLDER = tempfile.TemporaryDirectory(prefix="sona-fuzz-")
PLACE = Path(_FOLDER.name)
_counter = itertools.count()


def _free(suffix: str = "") -> Path:
    return PLACE / f"new {next(_counter)}{suffix}"


def _adapter() -> Path:
    """A directory with an adapter of the engine's dimension and embedder."""
    low_rank = LowRank(DIM, 2)
    low_rank.load(np.linspace(-0.1, 0.1, 4 * DIM).reshape(4, DIM))
    path = _free()
    card = AdapterCard(DIM, "fuzz", "elsewhere", uuid.UUID(int=9), 1, 1, weights_sha256(low_rank))
    write_adapter(path, low_rank, card)
    return path


def _patterns(key: int) -> Path:
    """A file with one pattern of the engine's dimension and embedder."""
    numbers = dict.fromkeys(("cluster_size", "support", "access_count", "abstraction_level"), 1)
    times = dict.fromkeys(("created_at", "last_accessed", "updated_at", "decayed_at"), 1.0)
    worth = {"total_weight": 1.0, "avg_quality": 0.5, "confidence": 0.5}
    nothing = dict.fromkeys(("best_strategy", "title", "description", "content"))
    shape: dict[str, Any] = {"id": 1, "centroid": [1.0] + [0.0] * (DIM - 1), "children": [], "verdicts": []}
    header = {"format": "sona patterns 1", "rows": 1, "dim": DIM, "embedder": "fuzz", "space": "elsewhere"}
    path, own_key = _free(".jsonl"), str(uuid.UUID(int=key))
    row, said = {**shape, **numbers, **times, **worth, **nothing}, {**header, "space_key": own_key}
    write_rows(path, {}, [row], {**said, "sha256": rows_sha256(said, [row])})
    return path


def _bent(path: Path, at: float, how: int) -> Path:
    """One file of what was exported, with a byte changed, cut off, or doubled."""
    file = path if path.is_file() else path / (WEIGHTS, CONFIG, CARD)[how % 3]
    data = bytearray(file.read_bytes())
    place = int(at * (len(data) - 1))
    if how % 4 == 0:
        data[place] ^= 1 << (how % 8)
    elif how % 4 == 1:
        del data[place:]
    elif how % 4 == 2:
        data[place:place] = data[: place + 1]
    else:
        data[place : place + 8] = b"\xff" * 8
    file.write_bytes(data)
    return path


def _with_links() -> Path:
    path = _adapter()
    (path / CONFIG).unlink()
    (path / CONFIG).symlink_to("/dev/zero")
    return path


def _deep() -> Path:
    path = _adapter()
    (path / CONFIG).write_text(json.dumps({"peft_type": "LORA"})[:-1] + ', "r": ' + "[" * 10_000)
    return path


_places = st.floats(0, 1)
_adapters = st.builds(_adapter)
_pattern_files = st.builds(_patterns, st.integers(1, 3))
_nowhere = st.sampled_from(
    (None, 3, 2.5, b"", "\0", Path("/dev/null"), Path("/dev/zero"), Path("/nowhere/at/all"), PLACE, [], object(), "/")
)
_bent_adapters = st.builds(_bent, _adapters, _places, st.integers(0, 23))
_traps = st.one_of(st.builds(_with_links), st.builds(_deep))
_bent_patterns = st.builds(_bent, _pattern_files, _places, st.integers(0, 23))
_names = st.one_of(st.none(), texts)

GOOD_OF: dict[str, dict[str, Any_]] = {
    "SonaEngine.save_pretrained": {"path": st.builds(_free), "version": st.none()},
    "SonaEngine.import_adapter": {"path": _adapters, "embedder": st.none()},
    "SonaEngine.from_pretrained": {
        "path": _adapters,
        "url": st.none(),
        "space": st.just("fuzz files"),
        "embedder": st.sampled_from((None, "fuzz")),
        "home": st.none(),
        "background": st.just(False),
    },
    "SonaEngine.export_patterns": {"path": st.builds(_free, st.sampled_from((".jsonl", ".parquet")))},
    "SonaEngine.import_patterns": {"path": _pattern_files, "embedder": st.none()},
    "SonaEngine.export_preferences": {
        "path": st.builds(_free, st.sampled_from((".jsonl", ".parquet"))),
        "text_column": st.sampled_from((None, "id")),
        "prompt_key": st.sampled_from((None, "question")),
    },
}
# Any text may be the name of a file, and would be one in the working directory.
HOSTILE_OF: dict[str, dict[str, Any_]] = {
    "SonaEngine.save_pretrained": {"path": st.one_of(_nowhere, _adapters)},
    "SonaEngine.import_adapter": {
        "path": st.one_of(_nowhere, _bent_adapters, st.builds(_with_links), st.builds(_deep))
    },
    "SonaEngine.from_pretrained": {
        "path": st.one_of(_nowhere, _bent_adapters, _traps),
        "home": st.none(),
        "background": st.just(False),
        "url": st.sampled_from(("\0", "x", "postgresql://127.0.0.1:9/x", 3)),
    },
    "SonaEngine.export_patterns": {"path": st.one_of(_nowhere, _pattern_files)},
    "SonaEngine.import_patterns": {"path": st.one_of(_nowhere, _bent_patterns)},
    "SonaEngine.export_preferences": {"path": st.one_of(_nowhere, _pattern_files)},
}
MAKERS: dict[str, Callable[[], Any]] = {}

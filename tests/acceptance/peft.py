"""An exported adapter in PEFT itself: there it computes what `SonaEngine.adapt` does; trained on, it comes back.

``python -m tests.acceptance.peft`` needs PyTorch and PEFT, which take gigabytes (`make peft-test` installs them in an
environment of their own), and exits with 1 where a figure is beyond its bound. It prints one JSON document.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from numpy.typing import NDArray

from sona_pg import SonaEngine, SpaceConfig, TrajectoryBuilder
from sona_pg.exchange.peft_files import read_adapter
from sona_pg.kernels import LowRank
from sona_pg.learning.serving import Serving
from sona_pg.store.connection import connect
from sona_pg.store.migrate import migrate
from sona_pg.store.server import EmbeddedServer

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
LARGEST_ERROR = 1e-6
QUERIES, ITEMS, EVENTS = 200, 300, 150

Vectors = NDArray[np.float32]


def unit(rows: NDArray[np.floating]) -> Vectors:
    """Rows of unit length."""
    return np.ascontiguousarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), dtype=np.float32)


def identity(dim: int) -> torch.nn.Module:
    """The model that an exported adapter belongs to: one linear layer that changes nothing."""
    layer = torch.nn.Linear(dim, dim, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(dim))
    model = torch.nn.Sequential()
    model.add_module("linear", layer)
    return model


def forward(path: Path, queries: Vectors) -> Vectors:
    """What PEFT computes by the files."""
    model = peft.PeftModel.from_pretrained(identity(queries.shape[1]), path).eval()
    with torch.no_grad():
        computed: Vectors = model(torch.from_numpy(queries)).numpy()
    return computed


def merged(path: Path, queries: Vectors) -> Vectors:
    """What is computed by the layer into which PEFT has merged the adapter."""
    model = peft.PeftModel.from_pretrained(identity(queries.shape[1]), path).merge_and_unload()
    with torch.no_grad():
        computed: Vectors = model(torch.from_numpy(queries)).numpy()
    return computed


def trained(path: Path, out: Path, queries: Vectors, **config: object) -> Vectors:
    """Train an adapter on in PEFT, or a new one of these settings; what it computes then, as `out` holds it."""
    torch.manual_seed(0)
    base = identity(queries.shape[1])
    if config:
        model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["linear"], **config))
    else:
        model = peft.PeftModel.from_pretrained(base, path, is_trainable=True)
    wanted = torch.from_numpy(np.roll(queries, 1, axis=1))
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(20):
        optimiser.zero_grad()
        loss = ((model(torch.from_numpy(queries)) - wanted) ** 2).sum(dim=1).mean()
        loss.backward()
        optimiser.step()
    model.save_pretrained(out)
    return forward(out, queries)


def teach(engine: SonaEngine, items: Vectors, rng: np.random.Generator) -> None:
    """Outcomes that teach the adapter, and signals that teach the micro-LoRA."""
    for item in rng.integers(0, len(items), EVENTS):
        query = unit(np.roll(items[item], 1) + 0.02 * rng.standard_normal(items.shape[1]))
        engine.record(query, [str(item), str((item + 1) % len(items))], [1.0, 0.0])
        signal = TrajectoryBuilder(1, query)
        signal.add_step(items[item], reward=1.0)
        signal.add_step(-items[item], reward=0.0)
        engine.record(signal.build(float(rng.uniform())))
    engine.flush()


def check(url: str, dim: int, place: Path) -> dict[str, float]:
    """The largest differences between PEFT and the engine, for a dimension."""
    rng, table = np.random.default_rng(dim), f"public.items_{dim}"
    items, queries = unit(rng.standard_normal((ITEMS, dim))), unit(rng.standard_normal((QUERIES, dim)))
    config = SpaceConfig(strategy="adapted", control_share=0.0)

    def opened(name: str) -> SonaEngine:
        return SonaEngine.connect(
            url, space=f"{name} {dim}", dim=dim, embedder="a model", background=False, space_config=config
        )

    with opened("first") as first, opened("second") as second, opened("third") as third:
        with connect(url) as connection:
            connection.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, embedding vector)")
            connection.cursor().executemany(f"INSERT INTO {table} VALUES (%s, %s)", list(enumerate(items)))
        for engine in (first, second):
            engine.set_items(table, "id", "embedding")
        teach(first, items, rng)
        first.save_pretrained(place / "first")
        second.import_adapter(place / "first")
        teach(second, items, rng)  # an adapter on a base
        second.save_pretrained(place / "second")
        again = trained(place / "second", place / "again", queries)
        third.import_adapter(place / "again", embedder="a model")
        found = {
            "moved": float(np.abs(first.adapt(queries) - queries).max()),
            "rank": float(_map(place / "first").rank),
            "rank_on_a_base": float(_map(place / "second").rank),
            "peft": _difference(forward(place / "first", queries), first.adapt(queries)),
            "peft_on_a_base": _difference(forward(place / "second", queries), second.adapt(queries)),
            "peft_merged": _difference(merged(place / "second", queries), second.adapt(queries)),
            "trained_in_peft": _difference(again, third.adapt(queries)),
        }
        for name, settings in {
            "own_scale": {"r": 4, "lora_alpha": 16},
            "rslora": {"r": 4, "lora_alpha": 16, "use_rslora": True},
        }.items():
            computed = trained(place, place / name, queries, **settings)
            third.import_adapter(place / name, embedder="a model")
            found[name] = _difference(computed, third.adapt(queries))
    return found


def page(adapter: Path, folder: Path, query: Vectors) -> float:
    """The largest difference by the code for PEFT of docs/export.md, as it stands there."""
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "import torch" in b)
    shutil.copytree(adapter, folder / "support-adapter")
    names: dict[str, Any] = {"query": query}
    with contextlib.chdir(folder):
        exec(compile(block, str(PAGE), "exec"), names)
    return _difference(names["adapted"].detach().numpy(), Serving([_map(adapter)]).adapt(query))


def _map(path: Path) -> LowRank:
    return read_adapter(path).low_rank


def _difference(computed: Vectors, adapted: Vectors) -> float:
    return float(np.abs(computed - adapted).max())


def main() -> int:
    """Check a small, a usual and a large dimension."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer(Path(folder) / "server")
        try:
            url = server.start()
            migrate(url)
            for dim in (16, 384, 1536):
                place = Path(folder) / str(dim)
                place.mkdir()
                found[f"d {dim}"] = check(url, dim, place)
            found["d 16"]["page"] = page(Path(folder) / "16" / "first", Path(folder), unit(np.ones(16)))
        finally:
            server.remove()
    differences = {
        (dim, name): value
        for dim, values in found.items()
        for name, value in values.items()
        if name != "moved" and not name.startswith("rank")
    }
    versions = {"torch": torch.__version__, "peft": peft.__version__}
    print(json.dumps({**versions, "largest_error": max(differences.values()), **found}, indent=2))
    has_moved = all(values["moved"] > 1e-3 for values in found.values())
    return 0 if has_moved and max(differences.values()) <= LARGEST_ERROR else 1


if __name__ == "__main__":
    sys.exit(main())

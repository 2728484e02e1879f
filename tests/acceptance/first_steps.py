"""README's section "On your own outcomes", word for word, in an empty home far from the checkout: does it help there?

``python -m tests.acceptance.first_steps`` logs the bundled outcomes of real people as those of a new user, installs the
wheel, and exits with 1 where no gain is proven, or one is where outcomes are shuffled. It prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sona_pg.data import load_demo
from sona_pg.evaluation.collection import Collection
from sona_pg.store.server import EmbeddedServer

ROOT = Path(__file__).resolve().parents[2]
SECTION = "## On your own outcomes"
SCRIPT = "python -m sona_pg.examples.first_steps logs"
NOTHING_PROVEN = "frozen embedding: nothing"

_GAIN = re.compile(r"gain ([+-][0-9.]+) points")


@dataclass(frozen=True)
class FirstSteps:
    """What a new user sees: gain in points of nDCG@10, and whether a strategy was proven."""

    gain: float
    proven: bool
    shuffled_gain: float
    shuffled_proven: bool
    seconds: float
    """From the first command of the block to the end of the last."""
    printed: str


def commands() -> list[str]:
    """The lines of the section's block, as a shell takes them."""
    section = (ROOT / "README.md").read_text().split(f"{SECTION}\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    lines = [line.removeprefix("$ ") for line in block.splitlines()]
    assert any(line.startswith(SCRIPT) for line in lines), f"{SECTION} does not run {SCRIPT}"
    return lines


def first_steps(place: Path, wheel: Path, log: Collection, environment: Mapping[str, str]) -> FirstSteps:
    """Do what the section says in an empty folder; then the same log with shuffled outcomes.

    Parameters
    ----------
    place
        The folder; what `environment` calls HOME is in it.
    wheel
        What `make wheel` builds.
    log
        The user's outcomes.
    environment
        All that the commands know.
    """
    (place / "dist").mkdir()
    shutil.copy(wheel, place / "dist")
    write_log(place / "logs", log)

    def shell(lines: Sequence[str]) -> str:
        script = "\n".join(["set -e", *lines])
        done = subprocess.run(
            ["bash", "-c", script], cwd=place, env=dict(environment), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout

    try:
        began = time.perf_counter()
        printed = shell(commands())
        seconds = time.perf_counter() - began
        shuffled = shell([". venv/bin/activate", f"{SCRIPT} --shuffle-outcomes"])
    finally:
        EmbeddedServer(Path(environment["HOME"]) / ".local/share/sona-pg").remove()
    return FirstSteps(*_said(printed), *_said(shuffled), round(seconds, 1), printed)


def write_log(folder: Path, log: Collection) -> None:
    """Outcomes as `sona evaluate` reads them."""
    folder.mkdir()
    np.save(folder / "docs.npy", log.docs)
    np.save(folder / "queries.npy", log.queries)
    lines = [f"{query}\t{item}\t{grade}" for query, helped in enumerate(log.relevant) for item, grade in helped.items()]
    (folder / "qrels.tsv").write_text("\n".join(lines) + "\n")


def empty_home(place: Path) -> dict[str, str]:
    """Nothing of this shell but where programs and packages come from."""
    home = place / "home"
    home.mkdir()
    kept = {key: value for key, value in os.environ.items() if key.startswith(("PIP_", "SSL_", "OMP_", "OPENBLAS_"))}
    python = Path(sys.base_prefix) / "bin"
    return kept | {"PIP_PROGRESS_BAR": "off", "PATH": f"{python}:{os.environ['PATH']}", "HOME": str(home)}


def _said(printed: str) -> tuple[float, bool]:
    gain = _GAIN.search(printed)
    assert gain is not None, printed
    return float(gain[1]), NOTHING_PROVEN not in printed


def main() -> int:
    """Build the wheel, and do what README says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="a wheel that was built before")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        wheel = options.wheel
        if wheel is None:
            command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, str(ROOT)]
            subprocess.run(command, check=True)
            (wheel,) = place.glob("*.whl")
        found = first_steps(place, wheel.resolve(), load_demo(), empty_home(place))
    print(found.printed, file=sys.stderr)
    print(json.dumps({name: value for name, value in asdict(found).items() if name != "printed"}))
    return 0 if found.proven and found.gain > 0 and not found.shuffled_proven else 1


if __name__ == "__main__":
    sys.exit(main())

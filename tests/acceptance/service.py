"""A service that answers and records until SIGTERM, by any version of the code: ``service.py URL SPACE FIRST FILE``

It writes the id of every event that `record` has taken to FILE, and at its end a line that says how many answers
failed, and how long the slowest recall and the slowest record took, in milliseconds.
"""

from __future__ import annotations

import signal
import sys
import time
import uuid
from pathlib import Path

import numpy as np

from sona_pg import SonaEngine, SonaError


def main() -> None:
    """Answer and record."""
    url, space, first, path = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    engine = SonaEngine.connect(url, space=space)
    failures, slowest_recall, slowest_record, number = 0, 0.0, 0.0, first
    with path.open("a", buffering=1) as out:
        while not ended:
            rng = np.random.default_rng(number)
            query, id = rng.standard_normal(engine.space.dim).astype(np.float32), uuid.UUID(int=number)
            began = time.perf_counter()
            try:
                found = [item.item_id for item in engine.recall(query, 5).items]
            except SonaError as error:
                failures += 1
                print(f"recall: {error}", file=sys.stderr)
                found = [str(item) for item in rng.choice(24, 5, replace=False)]
            slowest_recall = max(slowest_recall, time.perf_counter() - began)
            began = time.perf_counter()
            engine.record(query, found, [1.0, 0.0, 1.0, None, 0.0], trajectory_id=id)
            slowest_record = max(slowest_record, time.perf_counter() - began)
            out.write(f"{number}\n")
            if number - first >= 5:
                engine.score(uuid.UUID(int=number - 5), 0.5, found[0], score_id=f"score {number}")
            number += 1
            time.sleep(0.01)
        engine.close()
        out.write(f"{failures} {1000 * slowest_recall:.0f} {1000 * slowest_record:.0f}\n")


if __name__ == "__main__":
    main()

"""Chaos for the frame of slow loops, by the demonstration loop: every ledger entry is copied and summed up once.

``python -m tests.acceptance.cycles`` runs the full form and exits with 1 on any violation; the tests run a short one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from . import demonstration
from .cycle_chaos import PATIENCE_SECONDS, CycleChaos, main


class DemonstrationChaos(CycleChaos):
    """Workers of the demonstration loop are killed while ledgers grow."""

    loop = demonstration.DEMONSTRATION

    def __init__(self, home: Path, seed: int) -> None:
        super().__init__(home, seed)
        for statement in demonstration.TABLES:
            self._connection.execute(statement)

    def command(self) -> list[str]:
        return [sys.executable, demonstration.__file__, self.url]

    def take_time(self, seconds: float) -> None:
        self._connection.execute("DELETE FROM public.demonstration_order")
        self._connection.execute(
            "INSERT INTO public.demonstration_order SELECT unnest(%s::bigint[]), %s", (self.spaces, seconds)
        )

    def grow(self) -> None:
        """An entry more in the ledger of a space, and sometimes somebody who asks for a cycle, twice."""
        space_id = self._random.choice(self.spaces)
        self._connection.execute(
            "WITH l AS (UPDATE sona.learner SET ordinal = ordinal + 1 WHERE space_id = %s RETURNING space_id, ordinal)"
            " INSERT INTO sona.learning_event (space_id, loop, trajectory_id, revision, cycle_id, ordinal, learned)"
            " SELECT space_id, 'instant', gen_random_uuid(), 0, 1, ordinal - 1, 'adapter' FROM l",
            (space_id,),
        )
        if self._random.random() < 0.1:
            for _ in range(2):
                self._connection.execute(
                    "SELECT sona.run_cycle(name, %s) FROM sona.space WHERE space_id = %s",
                    (demonstration.NAME, space_id),
                )

    def drain(self) -> None:
        # Where nothing is left, it is to be at work all the same before it is ended.
        last = self.start_worker()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._connection.execute(
            "SELECT FROM sona.learner l WHERE l.ordinal > (SELECT count(DISTINCT ordinal)"
            "  FROM public.demonstration_entry e WHERE e.space_id = l.space_id)"
            " UNION ALL SELECT FROM sona.loop_run WHERE finished_at IS NULL"
            " UNION ALL SELECT WHERE NOT EXISTS (SELECT FROM sona.workers WHERE worker LIKE %s)",
            (f"%:{last.pid}",),
        ).fetchall():
            assert time.monotonic() < deadline, f"work is left after {PATIENCE_SECONDS} s"
            time.sleep(0.1)
        last.terminate()
        assert last.wait(60) == 0

    def wrong(self, space_id: int) -> Iterator[str]:
        def one(statement: str) -> int:
            row = self._connection.execute(statement, {"space": space_id}).fetchone()  # type: ignore[arg-type]
            assert row is not None
            return int(row[0])

        entries = one("SELECT ordinal FROM sona.learner WHERE space_id = %(space)s")
        copied = one("SELECT count(*) FROM public.demonstration_entry WHERE space_id = %(space)s")
        distinct = one("SELECT count(DISTINCT ordinal) FROM public.demonstration_entry WHERE space_id = %(space)s")
        if distinct < entries:
            yield f"space {space_id}: {entries - distinct} entries are lost"
        if copied > distinct:
            yield f"space {space_id}: {copied - distinct} entries are there twice"
        total = one("SELECT coalesce(sum(total), 0) FROM public.demonstration_sum WHERE space_id = %(space)s")
        if total != entries * (entries - 1) // 2:
            yield f"space {space_id}: the sums of the cycles give {total}, expected {entries * (entries - 1) // 2}"
        sums = one("SELECT count(*) FROM public.demonstration_sum WHERE space_id = %(space)s")
        done = one("SELECT count(*) FROM sona.loop_run WHERE space_id = %(space)s AND state = 'done'")
        if sums != done:
            yield f"space {space_id}: {done} cycles are done, and {sums} have written a sum"
        failed = one("SELECT count(*) FROM sona.loop_run WHERE space_id = %(space)s AND state = 'failed'")
        if failed:
            yield f"space {space_id}: {failed} cycles have failed"


if __name__ == "__main__":
    main(DemonstrationChaos, at_step=14, at_random=24, cuts=10, stops=10)

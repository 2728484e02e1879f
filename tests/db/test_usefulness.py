"""An application that uses what is recommended to it comes near to whoever knows what is best."""

from __future__ import annotations

import pytest

from benchmarks.bank_replay import replay
from sona_pg import SonaEngine
from sona_pg.store.migrate import migrate


@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_recommended_reaches_the_oracle_and_beats_a_default(empty_url: str, seed: int) -> None:
    migrate(empty_url)
    with SonaEngine.connect(empty_url, space="replay", dim=32, background=False) as engine:
        found = replay(engine, seed, topics=8, events=800, every=100, spread=0.1)
    useful = found.usefulness
    assert useful.recommended >= 0.95 * useful.oracle
    assert useful.recommended > useful.default + 0.1
    assert found.good_quality >= 0.7
    assert found.patterns >= 8

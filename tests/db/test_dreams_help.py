"""Dreams in Postgres earn their keep: a search of one hop finds over their edges what lies two hops away."""

from __future__ import annotations

import pytest

from benchmarks.dreaming import dreamt
from benchmarks.two_hop import TwoHop
from sona_pg.store.database import ENV_URL


def test_one_hop_over_edges_by_dreams_finds_what_is_two_away(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_URL, url)
    found = dreamt(TwoHop.made(0))
    assert found.facts["dream"]["confirmed"]
    assert found.without < 0.01
    assert found.random < 0.05
    assert found.dreams >= 0.2

"""The slow loops that there are, by name: whoever adds one adds it here."""

from __future__ import annotations

from collections.abc import Mapping

from sona_pg.loops.background import BACKGROUND
from sona_pg.loops.cycle import Loop
from sona_pg.loops.deep import DEEP

LOOPS: Mapping[str, Loop] = {BACKGROUND.name: BACKGROUND, DEEP.name: DEEP}

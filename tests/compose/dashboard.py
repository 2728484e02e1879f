"""The queries of the dashboard, as Grafana would send them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from .images import ROOT

FILE = ROOT / "deploy" / "grafana" / "dashboards" / "sona.json"


@dataclass(frozen=True, slots=True)
class PanelQuery:
    """A query, and the panel that shows what it gives."""

    title: str
    kind: str
    """prometheus or postgres."""
    text: str


def dashboard() -> dict[str, Any]:
    """The dashboard."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def queries() -> list[PanelQuery]:
    """Every query of every panel, with the variables and macros filled in."""
    found = []
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            if target["datasource"]["uid"] == "sona-workers":
                found.append(PanelQuery(panel["title"], "prometheus", target["expr"].replace("$space", ".*")))
            else:
                within = r"\1 BETWEEN now() - interval '6 hours' AND now()"
                text = re.sub(r"\$__timeFilter\((\w+)\)", within, target["rawSql"])
                found.append(PanelQuery(panel["title"], "postgres", text))
    return found

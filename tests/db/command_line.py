"""The command line, run in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def sona(
    *arguments: str, url: str | None = None, home: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SONA_")} | env
    if url is not None:
        environment["SONA_DATABASE_URL"] = url
    if home is not None:
        environment["SONA_HOME"] = str(home)
    return subprocess.run(
        [sys.executable, "-m", "sona_pg", *arguments], env=environment, capture_output=True, text=True, check=False
    )

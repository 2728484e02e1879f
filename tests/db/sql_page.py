"""The page of queries: what stands in it, and what psql prints for them.

``python -m tests.db.sql_page URL`` writes into docs/sql.md what a database gives that examples/support.py has filled.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from sona_pg.store.server_account import binaries_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "sql.md"
DATA = ROOT / "examples" / "support.py"

_BLOCK = re.compile(r"^```sql\n(.*?)^```\n\n^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fill(url: str) -> None:
    """Record the data of the page, learn from it, and have cycles."""
    done = subprocess.run([sys.executable, str(DATA), url], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{DATA.name} ended with status {done.returncode}: {done.stderr}")


def blocks(page: str) -> list[tuple[str, str]]:
    """Queries of the page, each with what stands below it."""
    return [(match[1], match[2]) for match in _BLOCK.finditer(page)]


def printed(url: str, statement: str) -> str:
    """What psql prints, without blanks at the ends of lines."""
    bundled = binaries_of(18) / "psql"
    psql = str(bundled) if bundled.exists() else shutil.which("psql")
    if psql is None:
        raise RuntimeError("psql is neither in the embedded server nor in the PATH")
    done = subprocess.run(
        [psql, "-X", "-v", "ON_ERROR_STOP=1", "-d", url], input=statement, capture_output=True, text=True, check=False
    )
    if done.returncode or done.stderr:
        raise RuntimeError(f"{statement}\n{done.stderr}")
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.rstrip().splitlines())


def main(url: str) -> None:
    """Write the page anew."""
    PAGE.write_text(_BLOCK.sub(lambda at: f"```sql\n{at[1]}```\n\n```text\n{printed(url, at[1])}```", PAGE.read_text()))


if __name__ == "__main__":
    main(sys.argv[1])

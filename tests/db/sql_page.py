"""Pages of queries: what stands in them, and what psql prints for them.

``python -m tests.db.sql_page URL`` writes into docs/sql.md, or another page that is named, what a database gives: one
that examples/support.py has filled, or an empty one for docs/quickstart-sql.md.
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
START = ROOT / "docs" / "quickstart-sql.md"
DATA = ROOT / "examples" / "support.py"

_STEP = re.compile(
    r"^```sql\n(?P<sql>.*?)^```\n\n^```text\n(?P<text>.*?)^```$|^\$ sona (?P<command>[^#\n]*)", re.MULTILINE | re.DOTALL
)


def fill(url: str) -> None:
    """Record the data of the page, learn from it, and have cycles."""
    _run([sys.executable, str(DATA), url])


def answers(page: str, url: str) -> list[tuple[str, str, str]]:
    """Queries of a page, each with what stands below it and what psql prints, asked in the order of the page.

    Commands of ``sona`` between them are run.
    """
    found = []
    for step in _STEP.finditer(page):
        if step["command"] is not None:
            _run([sys.executable, "-m", "sona_pg", *step["command"].split(), "--url", url])
        else:
            found.append((step["sql"], step["text"], printed(url, step["sql"])))
    return found


def printed(url: str, statement: str) -> str:
    """What psql prints, without blanks at the ends of lines."""
    bundled = binaries_of(18) / "psql"
    psql = str(bundled) if bundled.exists() else shutil.which("psql")
    if psql is None:
        raise RuntimeError("psql is neither in the embedded server nor in the PATH")
    out = _run([psql, "-X", "-v", "ON_ERROR_STOP=1", "-d", url], statement)
    return "".join(f"{line.rstrip()}\n" for line in out.rstrip().splitlines())


def _run(command: list[str], told: str | None = None) -> str:
    done = subprocess.run(command, input=told, capture_output=True, text=True, check=False)
    if done.returncode or (told and done.stderr):
        raise RuntimeError(f"{told or command} ended with status {done.returncode}: {done.stderr}")
    return done.stdout


def main(url: str, page: Path = PAGE) -> None:
    """Write the page anew."""
    text = page.read_text()
    for statement, before, after in answers(text, url):
        pair = "```sql\n{}```\n\n```text\n{}```"
        text = text.replace(pair.format(statement, before), pair.format(statement, after))
    page.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))

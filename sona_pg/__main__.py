"""``python -m sona_pg`` is ``sona``."""

from sona_pg.cli.main import main

main()

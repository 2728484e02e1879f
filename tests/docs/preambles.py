"""What pages take for granted, and what of them is not run, with the reason."""

from __future__ import annotations

TRAJECTORY = "00000000-0000-0000-0000-000000000065"
"""An answer of examples/support.py."""

PYTHON = {
    "README.md": {
        1: """
            sql("SELECT sona.drop_space('support')")
            sql("DROP TABLE articles; CREATE TABLE articles (id integer PRIMARY KEY, embedding vector(384))")
            rows = np.random.default_rng(1).standard_normal((40, 384))
            sql("INSERT INTO articles SELECT r, e::vector FROM unnest(%s::integer[], %s::text[]) AS t (r, e)",
                list(range(40)), [str(row.tolist()) for row in rows])
            query_embedding, clicked_id, solved_by, show = rows[7] + 0.1, "7", "9", print
            with SonaEngine.connect(space="support", dim=384) as sona:
                sona.set_items("public.articles", "id", "embedding")
                sona.record(rows[3], ["3", "4"], [1.0, 0.0], trajectory_id=TRAJECTORY)
        """,
    },
    "docs/configuration.md": {
        1: """
            sql("SELECT sona.drop_space('support')")
        """,
    },
    "docs/consolidation.md": {
        1: """
            from tests.unit.memories import DAY, topical

            now = 400 * DAY
            nodes, edges = topical().columns(now)
        """,
    },
    "docs/embedder.md": {
        1: """
            from types import SimpleNamespace

            sql("ALTER TABLE articles ADD COLUMN IF NOT EXISTS embedding_b vector(768)")
            random = np.random.default_rng(3)
            for id in range(48):
                embedding = str(random.standard_normal(768).tolist())
                sql("UPDATE articles SET embedding_b = %s::vector WHERE id = %s", embedding, id)
            model_b = SimpleNamespace(encode=lambda texts: random.standard_normal((len(texts), 768)).tolist())
            text_of = str
            sql("UPDATE sona.trajectory SET metadata = metadata || '{\\"request\\": 1}'")
        """,
    },
    "docs/filters.md": {
        1: """
            sql("ALTER TABLE articles ADD COLUMN lang text DEFAULT 'en'")
            sql("ALTER TABLE articles ADD COLUMN published date DEFAULT '2026-02-01'")
            sona, query_embedding = SonaEngine.connect(url, space="support"), np.ones(16)
            at_the_end(sona.close)
        """,
    },
    "docs/forgetting.md": {
        1: """
            engine = SonaEngine.connect(url, space="support")
            at_the_end(engine.close)
        """,
    },
    "docs/index.md": {
        1: """
            query_embedding, clicked_id, solved_by, show = np.ones(16), "7", "9", print
        """,
    },
    "docs/patterns.md": {
        1: """
            engine, query = SonaEngine.connect(url, space="support"), np.ones(16)
            at_the_end(engine.close)
            found = engine.recall(query)
        """,
    },
    "docs/throughput.md": {
        1: """
            engine = SonaEngine.connect(url, space="support")
            at_the_end(engine.close)
            queries = np.random.default_rng(5).standard_normal((4, 16)).astype(np.float32)
            item_ids, rewards = [["1", "2"]] * 4, [[1.0, 0.0]] * 4
        """,
    },
    "docs/why.md": {
        1: """
            sona = SonaEngine.connect(url, space="support")
            at_the_end(sona.close)
            trajectory_id = TRAJECTORY
        """,
    },
}
"""By page and number among its blocks of Python: what is run before that one."""

NOT_RUN = {("docs/export.md", 2): ("import torch", "takes PyTorch and PEFT: `make peft-test` does it")}
"""By page and number among its blocks of Python: what stands in the block, and why it is not run."""

SQL = {
    "docs/compose.md": """
        CREATE ROLE sona_user LOGIN IN ROLE sona_worker;
        CREATE SCHEMA shop;
        CREATE TABLE shop.articles ()
    """,
    "docs/filters.md": """
        ALTER TABLE articles ADD COLUMN IF NOT EXISTS lang text, ADD COLUMN IF NOT EXISTS published date
    """,
}
"""By page: what is run before each of its blocks of SQL, which are rolled back."""

PARAMETERS = {
    "$1": "(SELECT embedding FROM public.articles WHERE id = 7)",
    "$2": "(SELECT trajectory_id FROM sona.trajectory ORDER BY created_at LIMIT 1)",
}

READ_AS = {
    "README.md": {"TRAJECTORY": TRAJECTORY, "lift first-steps": "lift support"},
    "docs/forgetting.md": {"SPACE USER": "support 'user 7'"},
    "docs/memory.md": {"'{17,18}'": "'{}'"},
    "docs/why.md": {"c26c208c-1e35-58df-a20d-73118ed349fd": TRAJECTORY},
}
"""By page: what stands for something of the reader's, and what it stands for here."""

FOLDERS = ("logs", "fbqa_cdc", "cystic_fibrosis", "stackfaq")
"""Logged outcomes that commands name."""

RUN = {
    "cycle run", "lift", "memory show", "migrate", "report", "space save", "space strategy", "status", "versions",
    "why", "worker instant",
}  # fmt: skip
"""Commands of sona that are run where they end by themselves; all are parsed."""

ENDLESS = {"cycle run": "--dry-run", "worker instant": "--once"}
"""Commands that go on, or wait for a worker, and the option with which they do not."""

PROGRAMS = {
    "cat": "writes configuration",
    "chmod": "secrets of the stack",
    "createdb": "Postgres: tests/acceptance/backups.py runs it",
    "curl": "asks a worker, which tests/db/test_observability.py does",
    "dask": "a cluster",
    "docker": "takes a Docker engine; `make compose-test` runs the stack",
    "echo": "writes configuration",
    "export": "settings of the reader's shell",
    "install": "secrets of the stack",
    "make": "its target is looked up",
    "openssl": "secrets of the stack",
    "pg_basebackup": "Postgres: tests/acceptance/backups.py runs it",
    "pg_dump": "Postgres: tests/acceptance/backups.py runs it",
    "pg_dumpall": "Postgres: tests/acceptance/backups.py runs it",
    "pg_restore": "Postgres: tests/acceptance/backups.py runs it",
    "pip": "installs; tests/acceptance/first_steps.py does what README says, word for word",
    "printf": "secrets of the stack",
    "psql": "its script is looked up",
    "python": "its module or script is looked up",
    "python3": "makes an environment; tests/acceptance/first_steps.py does what README says",
    "sona": "parsed, and run where RUN says so",
    "systemctl": "services of the reader's machine",
    "tail": "shows the end of a list",
    "timeout": "waits for Docker",
    "touch": "writes configuration",
    "umask": "secrets of the stack",
}
"""Programs that console blocks call, and why they are not run, or what is done instead."""

LANGUAGES = {"console", "ini", "json", "python", "sql", "text", "toml", "yaml"}
"""Languages of blocks; `text` is what is printed, or a picture."""

PAGES_OF_QUERIES = {"docs/sql.md", "docs/quickstart-sql.md"}
"""Pages whose SQL is run by tests/db/test_sql_page.py, which compares what it prints."""

"""Every block of README.md and docs/ is run: Python and SQL page by page, commands parsed, settings read."""

from __future__ import annotations

import configparser
import contextlib
import importlib.util
import itertools
import json
import re
import shlex
import textwrap
import tomllib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import psycopg
import pytest
import yaml
from click.testing import CliRunner

from sona_pg import SonaConfig, SonaEngine
from sona_pg.cli.app import app

from .pages import PAGES, ROOT, Block, blocks_of, commands_of, name_of, prose_of
from .preambles import (
    ENDLESS,
    FOLDERS,
    LANGUAGES,
    NOT_RUN,
    PAGES_OF_QUERIES,
    PARAMETERS,
    PROGRAMS,
    PYTHON,
    READ_AS,
    RUN,
    SQL,
    TRAJECTORY,
)

BLOCKS = {name_of(page): blocks_of(page) for page in PAGES}
RUNNING = [name for name, blocks in BLOCKS.items() if any(b.language in {"python", "sql", "console"} for b in blocks)]


def _text(block: Block) -> str:
    text = block.text
    for what, by in READ_AS.get(block.page, {}).items():
        text = text.replace(what, by)
    return text


# Pages that are run


class Page:
    """Runs the blocks of a page, one after the other, in one namespace and one database."""

    def __init__(self, url: str, closing: contextlib.ExitStack) -> None:
        self.url = url
        self.python_blocks = 0
        self.names: dict[str, object] = {
            "np": np,
            "SonaEngine": SonaEngine,
            "TRAJECTORY": uuid.UUID(TRAJECTORY),
            "url": url,
            "sql": self._sql,
            "at_the_end": closing.callback,
        }

    def _sql(self, statement: str, *parameters: object) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement, parameters or None)  # type: ignore[arg-type]

    def python(self, block: Block) -> None:
        self.python_blocks += 1
        if (block.page, self.python_blocks) in NOT_RUN:
            assert NOT_RUN[block.page, self.python_blocks][0] in block.text, (
                f"{block.place}: NOT_RUN means another block"
            )
            return
        before = PYTHON.get(block.page, {}).get(self.python_blocks, "")
        exec(compile(textwrap.dedent(before), f"preamble of {block.place}", "exec"), self.names)
        # Its own lines, so that a traceback names those of the page.
        exec(compile("\n" * block.line + _text(block), block.page, "exec"), self.names)

    def sql(self, block: Block) -> None:
        if block.page in PAGES_OF_QUERIES:
            return
        statement = _text(block)
        for parameter, value in PARAMETERS.items():
            statement = statement.replace(parameter, value)
        with psycopg.connect(self.url, autocommit=True) as connection, connection.transaction(force_rollback=True):
            connection.execute(SQL.get(block.page, "SELECT"))  # type: ignore[arg-type]
            connection.execute(statement)  # type: ignore[arg-type]

    def console(self, block: Block) -> None:
        for words in commands_of(Block(**{**block.__dict__, "text": _text(block)})):
            if words[0] != "sona":
                continue
            path = " ".join(_parsed(words[1:]))
            if path in RUN and ENDLESS.get(path, words[-1]) in words and "--help" not in words:
                done = CliRunner().invoke(app, words[1:], prog_name="sona")
                assert done.exit_code == 0, f"{block.place}: {words}: {done.output} {done.exception!r}"


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("name", RUNNING)
def test_a_page_runs(name: str, page_url: str, closing: contextlib.ExitStack, tmp_path: Path) -> None:
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
    page = Page(page_url, closing)
    run: dict[str, Callable[[Block], None]] = {"python": page.python, "sql": page.sql, "console": page.console}
    for block in BLOCKS[name]:
        if block.language in run:
            try:
                run[block.language](block)
            except Exception as error:
                error.add_note(f"in the block at {block.place}")
                raise


# Commands


def _parsed(words: list[str]) -> list[str]:
    """Names of a command and its groups; raises click's error where an argument or option is not what it takes."""
    path: list[str] = []
    context = click.Context(app, info_name="sona")
    command: click.Command = app
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        command = found
        path.append(str(name))
        if not isinstance(command, click.Group):
            command.make_context(str(name), list(words), parent=context)
        else:
            context = click.Context(command, info_name=str(name), parent=context)
    return path


def test_a_wrong_command_is_seen() -> None:
    assert _parsed(["worker", "instant", "--once"]) == ["worker", "instant"]
    for wrong in (["no-such"], ["worker", "no-such"], ["status", "--no-such"], ["forget", "space"]):
        with pytest.raises(click.UsageError):
            _parsed(wrong)


@pytest.mark.parametrize("name", [name for name in BLOCKS if any(b.language == "console" for b in BLOCKS[name])])
def test_programs_and_scripts_are_there(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in BLOCKS[name]:
        if block.language != "console":
            continue
        for words in commands_of(block):
            assert words[0] in PROGRAMS or words[0] in {".", "["}, f"{block.place}: {words[0]} is not in PROGRAMS"
            if words[0] == "make":
                assert set(words[1:]) <= targets, block.place
            for flag, script in itertools.pairwise(words):
                if words[0] == "python" and flag == "-m":
                    assert importlib.util.find_spec(script) is not None, f"{block.place}: {script}"
                if script.startswith("examples/"):
                    assert (ROOT / script).exists(), f"{block.place}: {script}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_named_in_a_sentence_exist(page: Path) -> None:
    for said in re.findall(r"`sona ([^`]+)`", prose_of(page)):
        try:
            words = shlex.split(said.replace("\n", " "))
        except ValueError:
            continue
        command: click.Command = app
        for word in words:
            if isinstance(command, click.Group) and not word.startswith("-"):
                for alternative in word.split("|"):
                    assert alternative in command.commands, f"{name_of(page)}: sona {said}"
                command = command.commands[word.split("|")[0]]
            elif word.startswith("--") and not isinstance(command, click.Group):
                options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
                assert word.split("=")[0].rstrip(",.…") in options, f"{name_of(page)}: sona {said}"


# Data and settings


@pytest.mark.parametrize("name", BLOCKS)
def test_languages_are_known_and_data_can_be_read(name: str, tmp_path: Path) -> None:
    for block in BLOCKS[name]:
        assert block.language in LANGUAGES, f"{block.place}: the language {block.language!r} is run by no test"
        if block.language == "json":
            # Documents one a line, one document, or a part of one.
            text = block.text.strip().replace("…", "")
            json.loads(text if text[0] in "{[" else f"{{{text}}}")
        elif block.language == "toml":
            tomllib.loads(block.text)
            path = tmp_path / "sona.toml"
            path.write_text(block.text)
            SonaConfig.from_toml(path)
        elif block.language == "yaml":
            yaml.safe_load(block.text)
        elif block.language == "ini":
            configparser.ConfigParser(interpolation=None).read_string(f"[settings]\n{block.text}")


# What is prepared, and left out, is needed


def test_nothing_is_prepared_that_no_page_needs() -> None:
    languages = {name: [block.language for block in blocks] for name, blocks in BLOCKS.items()}
    for name, befores in PYTHON.items():
        assert max(befores) <= languages[name].count("python"), name
    assert all(number <= languages[name].count("python") for name, number in NOT_RUN)
    assert all("sql" in languages[name] for name in SQL)
    for name, replaced in READ_AS.items():
        blocks = " ".join(block.text for block in BLOCKS[name])
        assert all(what in blocks for what in replaced), name
    console = [
        words for blocks in BLOCKS.values() for b in blocks if b.language == "console" for words in commands_of(b)
    ]
    assert {words[0] for words in console} - {".", "["} == set(PROGRAMS)
    assert all(any(folder in word for words in console for word in words) for folder in FOLDERS)
    used = {" ".join(words[1:3]) for words in console} | {words[1] for words in console if len(words) > 1}
    assert used >= RUN
    assert {block.language for blocks in BLOCKS.values() for block in blocks} <= LANGUAGES

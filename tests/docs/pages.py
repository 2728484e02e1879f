"""Pages of the documentation: where they are, and what stands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("**/*.md"))]

_BLOCK = re.compile(r"^(?P<fence>```+)(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=fence)$", re.MULTILINE | re.DOTALL)
_ENDS = {"&&", "||", ";", "|", "&"}


def name_of(page: Path) -> str:
    """A page as the repository calls it."""
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block: where it begins, counted from 1 among the lines and the blocks of its page."""

    page: str
    line: int
    number: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(name_of(page), text.count("\n", 0, at.start()) + 1, number, at["language"].strip(), at["text"])
        for number, at in enumerate(_BLOCK.finditer(text), 1)
    ]


def prose_of(page: Path) -> str:
    """The page without its blocks, line for line."""
    return _BLOCK.sub(lambda at: "\n" * at[0].count("\n"), page.read_text())


def commands_of(block: Block) -> list[list[str]]:
    """The commands of a console block, word by word; what they print and what they are fed is left out."""
    found: list[list[str]] = []
    for line in block.text.splitlines():
        if not line.startswith("$ "):
            continue
        lexer = shlex.shlex(line[2:], posix=True, punctuation_chars="&|;()<>")
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # a text that goes on in the next line
            words = line[2:].split(maxsplit=2)[:2]
        found.extend(_commands(words))
    return found


def _commands(words: list[str]) -> list[list[str]]:
    found: list[list[str]] = [[]]
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in _ENDS or word in {"(", ")"}:
            found.append([])
        elif word == "$":  # of $(…), whose words come next
            continue
        elif set(word) <= {"<", ">"}:
            skip = True
        elif found[-1] or "=" not in word:
            found[-1].append(word)
    return [command for command in found if command]

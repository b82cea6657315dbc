"""`mmcli tokenizer eval`: characters and bytes per token, of one tokenizer or two side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcli.cli.options import AsJson, Columns, RunsDir
from mmcli.errors import UserError

if TYPE_CHECKING:
    from mmcli.text.tokenizer import Tokenizer

BATCH = 2**20  # characters encoded together


@dataclass
class Measured:
    """Measurements of a tokenizer on some text: the number of tokens, and the ids that occur."""

    name: str
    tokenizer: Tokenizer
    tokens: int
    used: set[int]

    def facts(self, characters: int, size: int) -> dict[str, Any]:
        return {
            "tokenizer": self.name,
            "vocab_size": self.tokenizer.vocab_size,
            "tokens": self.tokens,
            "characters_per_token": characters / self.tokens,
            "bytes_per_token": size / self.tokens,
            "tokens_used": len(self.used),
        }


def evaluate(
    files: Annotated[list[str], typer.Argument(help="Files, folders, globs, hf:OWNER/NAME, or demo.")],
    columns: Columns = None,
    tokenizer: Annotated[str | None, typer.Option(help="Run, model folder or tokenizer.json; default: newest.")] = None,
    against: Annotated[
        str | None, typer.Option(help="Tokenizer to compare with: run, model folder or tokenizer.json.")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    json: AsJson = False,
) -> None:
    """Measure a tokenizer on data: characters and bytes per token, optionally beside another one.

    More characters per token means shorter rows for the same text. Compare on text that neither was trained on. Any
    byte-level BPE in the Hugging Face format works.

    Example: mmcli tokenizer eval held-out.jsonl --against other/tokenizer.json
    """
    from mmcli.cli.console import print_json, reporter
    from mmcli.data.encode.texts import open_corpus
    from mmcli.text.find import find_tokenizer

    names = [tokenizer or "newest", *([against] if against is not None else [])]
    loaded = [find_tokenizer(ref, runs_dir) for ref in (tokenizer, *names[1:])]
    measured = [Measured(name, each, 0, set()) for name, each in zip(names, loaded, strict=True)]
    corpus = open_corpus(files, columns or [])
    characters = size = 0
    for texts in _batches(iter(corpus)):
        characters += sum(map(len, texts))
        size += sum(len(text.encode("utf-8", "replace")) for text in texts)
        for each in measured:
            for ids in each.tokenizer.encode_texts(texts):
                each.tokens += len(ids)
                each.used.update(ids)
    tally = corpus.account.tally
    report = reporter()
    for line in tally.lines():
        report.warn(line)
    if not all(each.tokens for each in measured):
        raise UserError(f"{', '.join(files)}: there is no text to measure on", "give files that hold text")
    facts = [each.facts(characters, size) for each in measured]
    if json:
        counts = {"records": tally.kept, "rejected": tally.rejected, "characters": characters, "bytes": size}
        print_json({**counts, "tokenizers": facts})
    else:
        _print(facts, characters, size)


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    held: list[str] = []
    characters = 0
    for text in texts:
        held.append(text)
        characters += len(text)
        if characters >= BATCH:
            yield held
            held, characters = [], 0
    if held:
        yield held


def _print(facts: list[dict[str, Any]], characters: int, size: int) -> None:
    from rich.table import Table

    from mmcli.cli.console import out

    table = Table(box=None, pad_edge=False)
    table.add_column("tokenizer", overflow="fold")
    for name in ("vocabulary", "tokens", "characters/token", "bytes/token", "used"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in facts:
        table.add_row(
            each["tokenizer"],
            f"{each['vocab_size']:,}",
            f"{each['tokens']:,}",
            f"{each['characters_per_token']:.3f}",
            f"{each['bytes_per_token']:.3f}",
            f"{each['tokens_used'] / each['vocab_size']:.1%}",
        )
    out().print(table, soft_wrap=False)
    last = f"{characters:,} characters, {size:,} bytes"
    if len(facts) == 2:
        more = facts[0]["characters_per_token"] / facts[1]["characters_per_token"] - 1
        last += (
            f"; {abs(more):.1%} {'more' if more >= 0 else 'fewer'} characters per token than {facts[1]['tokenizer']}"
        )
    typer.echo(last)

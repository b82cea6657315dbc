"""`mmcli tokenizer`: train a tokenizer, inspect tokenization, measure one or two tokenizers on data."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmcli.cli.help import App
from mmcli.cli.options import AsJson, Columns, RunsDir
from mmcli.cli.tokenizer_eval import evaluate
from mmcli.errors import UserError

if TYPE_CHECKING:
    from rich.text import Text

    from mmcli.text.tokenizer import Tokenizer

app = App(help="Train, inspect and compare tokenizers.")
app.command("eval")(evaluate)
MAX_SHOWN = 2_000  # tokens; --json has all
STYLES = ("black on cyan", "black on green")
CONTROL_STYLE = "bold white on red"
BYTES_STYLE = "black on yellow"


@app.command()
def train(
    data: Annotated[
        list[str] | None, typer.Option(help="File, folder, glob, demo or hf:OWNER/NAME; may be repeated.")
    ] = None,
    columns: Columns = None,
    vocab_size: Annotated[int, typer.Option(help="Vocabulary size.")] = 6400,
    pretokenizer: Annotated[str, typer.Option(help="Pre-tokenizer: qwen2 (single digits) or gpt2.")] = "qwen2",
    max_token_bytes: Annotated[
        int | None, typer.Option(help="Bytes of the longest token, such as 12 (four Chinese characters).")
    ] = None,
    max_mb: Annotated[int, typer.Option(help="Maximum MB of text, sampled evenly; 0: all.")] = 50,
    out: Annotated[Path | None, typer.Option(help="Output folder, instead of a new run.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    runs_dir: RunsDir = Path("runs"),
    json: AsJson = False,
) -> None:
    """Train a tokenizer (byte-level BPE) on text, conversations or preference pairs.

    It reads the texts that pretrain, sft and dpo read from the same files: the text field, the messages. Without --data
    it is trained on the built-in corpus. Training runs in the same runs folder then use it.

    Example: mmcli tokenizer train --data corpus.jsonl --vocab-size 6400
    """
    from mmcli.cli.console import print_json, reporter
    from mmcli.stages.tokenizer import save_run, train_on

    if out is not None and (out / "tokenizer.json").exists():
        raise UserError(f"{out} has a tokenizer already", "give another --out")
    if max_mb < 0:
        raise UserError(f"--max-mb {max_mb} is below 0", "give the maximum in MB, or 0 for all of the data")
    most = max_mb * 1e6 or math.inf
    trained = train_on(
        data or ["demo"],
        reporter(),
        columns=columns or (),
        vocab_size=vocab_size,
        pretokenizer=pretokenizer,
        max_token_bytes=max_token_bytes,
        most=most,
    )
    tokenizer, measured = trained.tokenizer, trained.measured
    if out is None:
        folder = save_run(trained, runs_dir, name or str(tokenizer.vocab_size)).model
    else:
        folder = out
        _save_to(tokenizer, out)
    if json:
        print_json({"path": str(folder), **trained.facts})
        return
    typer.echo(
        f"{folder}: {tokenizer.vocab_size:,} tokens, {measured['characters_per_token']:.2f} characters each "
        f"in the first {measured['characters']:,} of the data"
    )


def _save_to(tokenizer: Tokenizer, out: Path) -> None:
    try:
        tokenizer.save(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}", "choose another --out") from None


@app.command()
def inspect(
    text: Annotated[str | None, typer.Argument(help="The text; by default --file or stdin is read.")] = None,
    file: Annotated[Path | None, typer.Option(help="A text file (UTF-8).")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Run, model folder or tokenizer.json; default: newest.")] = None,
    form: Annotated[
        Literal["text", "document", "chat"],
        typer.Option("--as", help="The text alone, between bos and eos, or as a message in the chat template."),
    ] = "text",
    ids: Annotated[bool, typer.Option("--ids", help="One token per line, with its id and bytes.")] = False,
    runs_dir: RunsDir = Path("runs"),
    json: AsJson = False,
) -> None:
    """Inspect tokenization: the tokens of a text.

    Neighbouring tokens have different colours (in a pipe: | between them); <E6> is a byte of a character that is split.
    A text that spells a control token such as <|im_end|> stays text.

    Example: mmcli tokenizer inspect "The cat sat." --ids
    """
    from mmcli.cli.console import print_json
    from mmcli.stages.tokenizer import measure
    from mmcli.text.find import find_tokenizer
    from mmcli.text.tokenizer import whole_characters

    text = whole_characters(_read(text, file))
    loaded = find_tokenizer(tokenizer, runs_dir)
    encoded = _encode(loaded, text, form)
    measured = measure(encoded, text)
    tokens = [_shown(loaded, id) for id in encoded]
    if json:
        print_json({"tokens": [token.as_json() for token in tokens], **measured})
        return
    _print_table(tokens) if ids else _print_line(tokens)
    typer.echo(
        f"{measured['count']:,} tokens; {measured['characters']:,} characters, "
        f"{measured['characters_per_token']:.2f} a token; {measured['bytes']:,} bytes, "
        f"{measured['bytes_per_token']:.2f} a token"
    )


def _read(text: str | None, file: Path | None) -> str:
    """The text that is given; exactly one of argument, file and pipe."""
    if text is not None and file is not None:
        raise UserError("there is a text and --file", "give one of them")
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}", "give the path of a text file") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is not UTF-8 text (byte {error.start})", "convert it: iconv -t utf-8") from None
    elif text is None and not sys.stdin.isatty():
        text = sys.stdin.buffer.read().decode("utf-8", errors="replace")
    if not text:
        raise UserError("there is no text", 'write it like: mmcli tokenizer inspect "The cat sat."')
    return text


def _encode(tokenizer: Tokenizer, text: str, form: str) -> list[int]:
    if form == "chat":
        from mmcli.text.chat import encode_chat

        return encode_chat(tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True).ids
    return tokenizer.encode_document(text) if form == "document" else tokenizer.encode_text(text)


@dataclass(frozen=True)
class _Token:
    """A token as people see it."""

    id: int
    text: str  # printable; bytes as <E6> where they are no whole characters
    kind: Literal["text", "control", "bytes"]
    raw: bytes

    def as_json(self) -> dict[str, Any]:
        if self.kind == "text":
            return {"id": self.id, "text": self.raw.decode()}
        more = {"control": True} if self.kind == "control" else {"bytes": self.raw.hex()}
        return {"id": self.id, "text": self.text, **more}


def _shown(tokenizer: Tokenizer, id: int) -> _Token:
    control = tokenizer.control_token(id)
    if control is not None:
        return _Token(id, control, "control", b"")
    raw = tokenizer.token_bytes(id)
    try:
        return _Token(id, _printable(raw.decode()), "text", raw)
    except UnicodeDecodeError:
        return _Token(id, "".join(f"<{byte:02X}>" for byte in raw), "bytes", raw)


def _printable(text: str) -> str:
    """`text` with signs for line ends and tabs; what could steer the terminal is spelled out."""
    signs = {"\n": "⏎", "\t": "⇥"}
    return "".join(signs.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


def _print_line(tokens: list[_Token]) -> None:
    """The tokens one after the other, in alternating colours or with | between them."""
    from rich.text import Text

    from mmcli.cli.console import out

    console = out()
    line = Text()
    for number, token in enumerate(tokens[:MAX_SHOWN]):
        if number and (console.color_system is None or console.no_color):
            line.append("|")
        line.append_text(_styled(token, number))
        if token.raw.endswith(b"\n"):
            line.append("\n")
    console.print(line)
    _tell_rest(tokens)


def _print_table(tokens: list[_Token]) -> None:
    from rich.table import Table

    from mmcli.cli.console import out

    table = Table(box=None, pad_edge=False)
    table.add_column("id", justify="right")
    table.add_column("token", overflow="fold")
    table.add_column("bytes", justify="right")
    for number, token in enumerate(tokens[:MAX_SHOWN]):
        table.add_row(str(token.id), _styled(token, number), str(len(token.raw)))
    out().print(table)
    _tell_rest(tokens)


def _styled(token: _Token, number: int) -> Text:
    from rich.text import Text

    style = {"control": CONTROL_STYLE, "bytes": BYTES_STYLE}.get(token.kind, STYLES[number % 2])
    return Text(token.text, style=style)


def _tell_rest(tokens: list[_Token]) -> None:
    if len(tokens) > MAX_SHOWN:
        typer.echo(f"... and {len(tokens) - MAX_SHOWN:,} more tokens (--json has all)")

"""Printing for `mmcli data`: lines, tokens and bars within the width of the terminal, with and without colour."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

    from mmcli.data.preview import Piece
    from mmcli.text.tokenizer import Tokenizer

MAX_SHOWN = 1_000  # tokens of a sequence; --json has all
BAR = 40  # cells of the longest bar
TRAINED_STYLES = ("black on green", "black on bright_green")
GIVEN_STYLES = ("", "dim")


def heading(text: str) -> None:
    """A line in bold."""
    print_text(text, "bold")


def detail(text: str) -> None:
    """A line about what is above it."""
    print_text("  " + text, "dim")


def print_text(text: str | Text, style: str = "") -> None:
    """Text within the width of the terminal (80 columns in a pipe), wide characters counted as two."""
    from rich.text import Text

    from mmcli.cli.console import out
    from mmcli.cli.progress import escape_control

    out().print(Text(escape_control(text), style) if isinstance(text, str) else text, soft_wrap=False, overflow="fold")


def print_tokens(tokenizer: Tokenizer, ids: Sequence[int], trained: Sequence[int]) -> None:
    """Tokens, those that are trained coloured, or marked where there is no colour."""
    from mmcli.cli.console import out
    from mmcli.data.preview import pieces

    console = out()
    coloured = console.color_system is not None and not console.no_color
    print_text(_styled(pieces(tokenizer, ids[:MAX_SHOWN], trained[:MAX_SHOWN]), coloured))
    if len(ids) > MAX_SHOWN:
        detail(f"... and {len(ids) - MAX_SHOWN:,} more tokens (--json has all)")


def _styled(pieces: Iterable[Piece], coloured: bool) -> Text:
    """Pieces one after the other, each line of the text on a line: coloured, or with marks."""
    from rich.text import Text

    line, trained, fresh = Text(), False, True
    for number, piece in enumerate(pieces):
        if not coloured:
            if piece.trained != trained:
                line.append("⟦" if piece.trained else "⟧")
            elif not fresh:
                line.append("¦")
        style = (TRAINED_STYLES if piece.trained else GIVEN_STYLES)[number % 2]
        line.append(piece.text, f"{style} bold red" if piece.control and not piece.trained else style)
        trained, fresh = piece.trained, piece.ends_line
        if piece.ends_line:
            line.append("\n")
    if trained and not coloured:
        line.append("⟧")
    line.rstrip()
    return line


def print_histogram(buckets: Sequence[tuple[int, int, int]]) -> None:
    """(shortest, longest, count) of each bucket as a bar."""
    from rich.table import Table

    from mmcli.cli.console import out

    table = Table(box=None, pad_edge=False)
    for name in ("tokens", "sequences"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    most = max(count for *_, count in buckets)
    for low, high, count in buckets:
        bar = "█" * max(round(count / most * BAR), int(count > 0))
        table.add_row(f"{low:,}-{high:,}", f"{count:,}", bar)
    out().print(table, soft_wrap=False)

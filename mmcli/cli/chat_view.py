"""A reply in the terminal as it streams: Markdown with the reasoning folded, or plain text in a pipe."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

    from mmcli.generate.conversation import Conversation

# Control characters in a reply must not reach the terminal.
CONTROL = {code: "\ufffd" for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}
FENCE = re.compile(r"^ {0,3}(```+|~~~+)", re.MULTILINE)
REDRAW_SECONDS = 0.1


def note(text: str) -> None:
    """A line about the reply, on stderr."""
    from mmcli.cli.console import err

    err().print(text, style="dim", markup=False)


def draws_markdown() -> bool:
    """True if stdout is a terminal whose lines can be redrawn."""
    from mmcli.cli.console import interactive

    return sys.stdout.isatty() and interactive()


def stream(conversation: Conversation, pieces: Generator[str, None, None]) -> None:
    """Stream a reply to stdout, then its token count and speed to stderr."""
    with contextlib.closing(pieces):  # an interrupt ends the reply and keeps what was generated
        if conversation.chat and conversation.grammar is None and draws_markdown():
            _stream_markdown(conversation, pieces)
        else:
            _stream_plain(pieces)
    if conversation.notice:
        note(conversation.notice)
    note(cost(conversation))


def _stream_plain(pieces: Generator[str, None, None]) -> None:
    at_terminal = sys.stdout.isatty()
    last = "\n"
    try:
        for piece in pieces:
            sys.stdout.write(piece.translate(CONTROL) if at_terminal else piece)
            sys.stdout.flush()
            last = piece
    finally:
        if not last.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()


def _stream_markdown(conversation: Conversation, pieces: Generator[str, None, None]) -> None:
    from mmcli.cli.console import out

    with MarkdownStream(out()) as shown:
        content = _without_reasoning(conversation, pieces, shown.think)
        for piece in without_calls(content) if conversation.tools else content:
            shown.write(piece)


def _without_reasoning(conversation: Conversation, pieces: Iterable[str], think: Callable[[], None]) -> Iterator[str]:
    """The pieces of a reply itself; at each of its reasoning `think` is called."""
    for piece in pieces:
        if conversation.reasoning:
            think()
        elif piece != "</think>":
            yield piece


def without_calls(pieces: Iterable[str]) -> Iterator[str]:
    """A reply without its tool calls, which are shown where they are run; one that is broken or cut off stays."""
    from mmcli.generate.tool_calls import CallMarks, read_calls
    from mmcli.text.prompt import CALL_MARK, END_CALL_MARK

    marks, call = CallMarks(), ""
    for piece in (cut for whole in pieces for cut in marks.push(whole)):
        if call or piece == CALL_MARK:
            call += piece
        else:
            yield piece
        if call and piece == END_CALL_MARK:
            if any(each.error for each in read_calls(call)):
                yield call
            call = ""
    yield call + marks.flush()


class MarkdownStream:
    """Markdown that grows: finished blocks are printed once, the one that grows is redrawn below them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = ""  # what is not printed yet
        self._thinks = False
        self._printed = False
        self._start = time.monotonic()
        self._drawn = 0.0
        self._live: Live | None = None

    def __enter__(self) -> MarkdownStream:
        from rich.live import Live

        self._live = Live(console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._live is not None
        self._live.update("")
        self._live.stop()
        self._fold()  # what ended while it reasoned
        self._print(self._text)

    def think(self) -> None:
        """Note that a piece of the reasoning came, of which only the time is shown."""
        self._thinks = True
        self._draw()

    def write(self, piece: str) -> None:
        """Take a piece of the reply."""
        self._fold()
        self._text += piece.translate(CONTROL)
        done, rest = split_blocks(self._text)
        if done:
            self._text = rest
            assert self._live is not None
            self._live.update("", refresh=True)
            self._print(done)
        self._draw()

    def _fold(self) -> None:
        if self._thinks:
            self._thinks = False
            seconds = time.monotonic() - self._start
            self._console.print(f"thought for {seconds:.1f} s (/think shows it)", style="dim italic")

    def _print(self, text: str) -> None:
        if text.strip():
            if self._printed:
                self._console.print()
            self._printed = True
            self._console.print(render(text), soft_wrap=False)

    def _draw(self) -> None:
        now = time.monotonic()
        if now - self._drawn < REDRAW_SECONDS:
            return
        self._drawn = now
        assert self._live is not None
        if self._thinks:
            from rich.text import Text

            self._live.update(Text(f"thinking for {now - self._start:.0f} s", style="dim italic"), refresh=True)
        else:
            self._live.update(self._tail(render(self._text)), refresh=True)

    def _tail(self, growing: RenderableType) -> RenderableType:
        """The last lines of the growing block, as many as fit on the screen."""
        from rich.console import Group
        from rich.segment import Segments

        lines = self._console.render_lines(growing, pad=False)[-max(1, self._console.height - 2) :]
        return Group(*(Segments(line) for line in lines))


def render(text: str) -> RenderableType:
    """Markdown for the terminal; addresses are spelled out, so that a link cannot lead elsewhere than it says."""
    from rich.markdown import Markdown

    return Markdown(text, hyperlinks=False)


def split_blocks(text: str) -> tuple[str, str]:
    """(finished, growing): cut at the last blank line outside of a code block, so that a later piece changes neither.

    Lists, quotes and tables stay whole as long as the text after the blank line may belong to them.
    """
    cut = 0
    for found in re.finditer(r"\n[ \t]*\n(?=\S)", text):
        before, after = text[: found.start() + 1], text[found.end() :]
        fences = [match[1][:3] for match in FENCE.finditer(before)]
        goes_on = re.match(r"[-*+>|]|\d", after) is not None
        if len(fences) % 2 == 0 and not goes_on:
            cut = found.end()
    return text[:cut], text[cut:]


def cost(conversation: Conversation) -> str:
    """The tokens of the newest reply, their speed, and why it ended early."""
    stats = conversation.stats
    assert stats is not None
    parts = [f"{stats.tokens} tokens"]
    if stats.tokens_per_second is not None:
        parts.append(f"{stats.tokens_per_second:.1f} tokens/s")
    if stats.time_to_first_token is not None:
        parts.append(f"first token after {stats.time_to_first_token:.2f} s")
    if stats.finish_reason == "length":
        parts.append(f"stopped at --max-new-tokens {conversation.max_new_tokens}")
    if conversation.grammar is not None and stats.finish_reason != "stop":
        parts.append("incomplete: it does not fit the schema")
    return ", ".join(parts)

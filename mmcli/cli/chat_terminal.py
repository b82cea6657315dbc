"""The interactive chat: lines from the keyboard, answered or run as slash commands."""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mmcli.cli.chat_tools import ToolRunner, spelled
from mmcli.cli.chat_view import draws_markdown, note, render, stream
from mmcli.errors import MmcliError, UserError, did_you_mean

if TYPE_CHECKING:
    from mmcli.generate.conversation import Conversation

PROMPT = "> "
MORE = ". "
QUOTES = '"""'
LEAVE = "Ctrl-D or /exit exits"
HELP = """\
/retry          regenerate the last reply
/edit [TEXT]    change your last message, answer it again
/system [TEXT]  set the system message; no TEXT: remove it
/think          show the reasoning of the last reply
/model [MODEL]  switch the model, keep the conversation
/compare MODEL  another model's reply to your last message
/save FILE      save as one JSONL record for training
/load FILE      go on with a saved conversation
/reset          clear the conversation
/help           show this list
/exit           exit (also Ctrl-D)
Ctrl-C stops a reply, or clears the line.
Several lines: begin and end the message with \"\"\".
A space before a slash makes it a message."""
COMMANDS = [line.split()[0] for line in HELP.splitlines() if line.startswith("/")]
WITHOUT_ARGUMENT = ("/reset", "/retry", "/help", "/think", "/exit")
WITH_FILE = ("/save", "/load")


class Ask(Protocol):
    """Reads one line from the keyboard; `text` stands there already, to be changed."""

    def __call__(self, prompt: str, text: str = "") -> str: ...


def ask_keyboard(prompt: str, text: str = "") -> str:
    """One line from the keyboard, with line editing and history where the terminal has them."""
    with contextlib.suppress(ImportError):
        import readline  # input() edits lines once it is imported; its history stays in memory

        readline.set_startup_hook((lambda: readline.insert_text(text)) if text else None)
    if not sys.stdout.isatty():  # the prompt must not get into the file or pipe that takes the replies
        sys.stderr.write(prompt)
        sys.stderr.flush()
        prompt = ""
    return input(prompt)


@dataclass(frozen=True)
class OpenModel:
    """A model that was opened, with a conversation in its engine."""

    label: str
    description: str
    conversation: Conversation


class Terminal:
    """The interactive chat: reads lines, answers them, runs slash commands."""

    def __init__(
        self,
        conversation: Conversation,
        ask: Ask = ask_keyboard,
        *,
        tools: ToolRunner | None = None,
        open_model: Callable[[str], OpenModel] | None = None,
        label: str = "",
    ) -> None:
        """`open_model` finds another model by what a person calls it."""
        self.conversation = conversation
        self.label = label
        self._ask = ask
        self._tools = tools or ToolRunner([])
        self._open_model = open_model

    def run(self) -> None:
        """Read and answer until the user exits: /exit or Ctrl-D. Ctrl-C stops a reply, or clears the line."""
        from mmcli.cli.console import print_error

        while True:
            try:
                text = self._read()
            except EOFError:
                sys.stderr.write("\n")
                return
            except KeyboardInterrupt:
                sys.stderr.write("\n")
                note(LEAVE)
                continue
            if text.strip() == "/exit":
                return
            try:
                self._handle(text)
            except KeyboardInterrupt:
                note("stopped; " + LEAVE)
            except EOFError:  # Ctrl-D where a command asks
                sys.stderr.write("\n")
            except MmcliError as error:
                print_error(error)

    def _read(self) -> str:
        """One message: a line, or all from one \"\"\" to the next."""
        text = self._ask(PROMPT)
        if not text.lstrip().startswith(QUOTES):
            return text
        text = text.lstrip().removeprefix(QUOTES)
        while not text.rstrip().endswith(QUOTES):
            text += "\n" + self._ask(MORE)
        return " " + text.rstrip().removesuffix(QUOTES).strip("\n")  # the blank: what is quoted is no command

    def _handle(self, text: str) -> None:
        if text.startswith("/"):
            name, _, rest = text.strip().partition(" ")
            self._command(name, rest.strip())
        elif text.strip():
            self._stream(self.conversation.reply(whole(text.strip(), "the message")))

    def _stream(self, pieces: Generator[str, None, None]) -> None:
        stream(self.conversation, pieces)
        self._tools.answer(self.conversation, stream)

    def _command(self, name: str, rest: str) -> None:
        """Run one slash command.

        Raises:
            UserError: there is no such command, or it cannot be done now.
        """
        conversation = self.conversation
        if name not in COMMANDS:
            raise UserError(f'there is no command "{name}"', did_you_mean(name, COMMANDS) + " (/help lists them)")
        if name in WITHOUT_ARGUMENT and rest:
            raise UserError(f'{name} takes no argument, but got "{rest}"', f"write only {name}")
        if name in WITH_FILE and not rest:
            raise UserError(f"{name} needs a file name", f"write it like: {name} chat.jsonl")
        if name == "/reset":
            conversation.reset()
            note("conversation cleared" + ("; the system message stays" if conversation.system else ""))
        elif name == "/system":
            conversation.set_system(whole(rest, "the system message") or None)
            note("system message set" if rest else "system message removed")
        elif name == "/retry":
            self._stream(conversation.retry())
        elif name == "/edit":
            self._edit(rest)
        elif name == "/think":
            self._show_reasoning()
        elif name == "/model":
            self._switch(rest)
        elif name == "/compare":
            self._compare(rest)
        elif name == "/save":
            conversation.save(Path(rest))
            note(f"saved to {rest}")
        elif name == "/load":
            conversation.load(Path(rest))
            note(f"{loaded(conversation)} from {rest}")
        else:
            self._help()

    def _help(self) -> None:
        from mmcli.cli.console import err

        sys.stderr.write(help_text(err().width) + "\n")

    def _edit(self, text: str) -> None:
        asked = self.conversation.asked
        text = (text or self._ask(PROMPT, asked)).strip()
        if text:
            self._stream(self.conversation.edit(whole(text, "the message")))

    def _show_reasoning(self) -> None:
        replies = [each for each in self.conversation.messages if each["role"] == "assistant"]
        if not replies or "reasoning_content" not in replies[-1]:
            raise UserError("the last reply has no reasoning", "start the chat with --think, if the model can reason")
        note(replies[-1]["reasoning_content"])

    def _opened(self, name: str) -> OpenModel:
        if self._open_model is None:
            raise UserError("no other model can be opened here", "start another chat: mmcli chat MODEL")
        return self._open_model(name)

    def _switch(self, name: str) -> None:
        if not name:
            note(f"this is {self.label}; /model MODEL switches to another")
            return
        opened = self._opened(name)
        opened.conversation.take_over(self.conversation)
        self.conversation, self.label = opened.conversation, opened.label
        note(f"{opened.description}\n/retry answers your last message with it")

    def _compare(self, name: str) -> None:
        from mmcli.generate.tool_calls import calls_of

        if not name:
            raise UserError("/compare needs a model", "write it like: /compare 7")
        asked = self.conversation.asked
        opened = self._opened(name)
        other = opened.conversation
        if other is self.conversation:
            raise UserError(f"{opened.label} is the model of this chat", "name another, or write /retry")
        other.take_over(self.conversation)
        note(opened.label)
        stream(other, other.edit(asked))
        for call in calls_of(other.messages[-1]) if other.tools else []:
            if call.error is None:  # a broken one stands in the reply
                note(f"it calls {spelled(call)}, which is not run")


def help_text(width: int) -> str:
    """HELP on a terminal of `width` columns; what does not fit beside a command goes on below its words."""
    lines: list[str] = []
    for line in HELP.splitlines():
        indent = " " * (len(line) - len(line.partition("  ")[2].lstrip())) if line.startswith("/") else ""
        lines += textwrap.wrap(line, width, subsequent_indent=indent)
    return "\n".join(lines)


def loaded(conversation: Conversation) -> str:
    """What was loaded, in words."""
    count = len(conversation.messages)
    return f"{count:,} messages" + (" and a system message" if conversation.system else "")


def show_conversation(conversation: Conversation) -> None:
    """The messages of a loaded conversation on the terminal, as they looked."""
    from mmcli.cli.console import out

    console = out()
    for message in conversation.messages:
        if message["role"] == "user":
            console.print(f"{PROMPT}{message['content']}", markup=False, style="bold")
        elif message["role"] == "assistant" and message["content"]:
            console.print(render(message["content"]) if draws_markdown() else message["content"], markup=False)


def whole(text: str, where: str) -> str:
    """A text of the command line as Unicode: where the locale is not UTF-8, its bytes came as lone surrogates.

    Raises:
        UserError: its bytes are not UTF-8 either.
    """
    try:
        text = os.fsencode(text).decode("utf-8", "surrogateescape")
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{where} is not valid Unicode (character {error.start})", "use a UTF-8 terminal") from None
    return text

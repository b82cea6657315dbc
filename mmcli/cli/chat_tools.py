"""The tool calls of a reply: shown, run with consent, answered, in several rounds."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmcli.cli.chat_view import note
from mmcli.errors import UserError

if TYPE_CHECKING:
    from mmcli.generate.conversation import Conversation
    from mmcli.generate.tool_calls import ToolCall
    from mmcli.generate.tools import Tool

MAX_ROUNDS = 8  # replies with calls to one message
DECLINED = "error: the user declined this call"
LONGEST_SHOWN = 400  # characters of a result on the screen; the model reads all of it


def refuse_to_ask(question: str) -> str:
    """What asks where nobody sits at the keyboard.

    Raises:
        UserError: always.
    """
    raise UserError("a tool call needs consent, and nobody is at the keyboard", "consent to all of them: --yes")


def spelled(call: ToolCall) -> str:
    """A call as it is shown: `add({"a": 1})`."""
    return f"{call.name}({json.dumps(call.arguments, ensure_ascii=False)})"


@dataclass
class ToolRunner:
    """Runs the calls of replies.

    Attributes:
        ask: reads one line from the keyboard.
        consented: the tools whose calls are run unasked.
        results: every (call, result) so far.
    """

    tools: Sequence[Tool]
    ask: Callable[[str], str] = refuse_to_ask
    consented: set[str] = field(default_factory=set)
    results: list[tuple[ToolCall, str]] = field(default_factory=list)

    def consent_to_all(self) -> None:
        """Run every call unasked."""
        self.consented = {tool.name for tool in self.tools}

    def answer(
        self, conversation: Conversation, show: Callable[[Conversation, Generator[str, None, None]], None]
    ) -> None:
        """Run the newest reply's calls and let the model go on, until a reply has none.

        Raises:
            UserError: a call needs consent or an answer, and nobody is at the keyboard.
        """
        from mmcli.generate.tool_calls import calls_of

        for _ in range(MAX_ROUNDS):
            if not conversation.messages or conversation.messages[-1]["role"] != "assistant":
                return
            calls = calls_of(conversation.messages[-1]) if self.tools else []
            if not calls:
                return
            results = [self._result(call) for call in calls]
            self.results += zip(calls, results, strict=True)
            show(conversation, conversation.answer_calls(results))
        note(f"stopped after {MAX_ROUNDS} rounds of tool calls")

    def _result(self, call: ToolCall) -> str:
        if call.error is not None:
            note(call.error)
            return f"error: {call.error}"
        shown = spelled(call)
        tool = next((tool for tool in self.tools if tool.name == call.name), None)
        if tool is None:
            names = ", ".join(tool.name for tool in self.tools)
            note(f"{shown}: there is no such tool")
            return f'error: there is no tool "{call.name}"; there are: {names}'
        if tool.function is None:
            note(shown)
            return self.ask("its result> ")
        if tool.name not in self.consented and not self._consents(tool.name, shown):
            note("declined")
            return DECLINED
        result = tool.run(call)
        note(f"{shown} -> {result if len(result) <= LONGEST_SHOWN else result[:LONGEST_SHOWN] + '…'}")
        return result

    def _consents(self, name: str, shown: str) -> bool:
        note(f"the model calls {shown}")
        while True:
            answer = self.ask("run it? [y]es, [n]o, [a]lways> ").strip().lower()
            if answer in ("a", "always"):
                self.consented.add(name)
            if answer in ("y", "yes", "n", "no", "a", "always"):
                return answer[0] != "n"

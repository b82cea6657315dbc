"""`mmcli chat`: chat with a model in the terminal, or answer one prompt. The reply is on stdout, the rest on stderr."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcli.cli.chat_terminal import OpenModel, Terminal, ask_keyboard, loaded, show_conversation, whole
from mmcli.cli.chat_tools import ToolRunner
from mmcli.cli.chat_view import note, stream
from mmcli.cli.help import App
from mmcli.cli.options import Backend, Device, Draft, Model, RunsDir
from mmcli.errors import UserError

if TYPE_CHECKING:
    from mmcli.generate.best_of import BestOf
    from mmcli.generate.conversation import Conversation
    from mmcli.generate.engine import Engine
    from mmcli.generate.sampler import SamplingConfig
    from mmcli.generate.speculation import Speculation
    from mmcli.run import ModelRef
    from mmcli.text.tokenizer import Tokenizer

app = App()


@app.command()
def chat(
    model: Model = "latest",
    prompt: Annotated[
        str | None, typer.Option(help="Answer this prompt once and exit; text piped to stdin goes before it.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0: greedy decoding.")] = 0.7,
    top_k: Annotated[int, typer.Option(help="Sample from the k most likely tokens; 0: off.")] = 50,
    top_p: Annotated[float, typer.Option(help="Nucleus (top-p) sampling cutoff; 1: off.")] = 0.9,
    min_p: Annotated[float, typer.Option(help="Minimum probability relative to the most likely token; 0: off.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Penalty on tokens seen before; 1: off.")] = 1.05,
    seed: Annotated[int | None, typer.Option(help="Random seed of sampling, to repeat a reply; else random.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens per reply.")] = 512,
    think: Annotated[
        bool | None,
        typer.Option("--think/--no-think", help="Reason before the reply, or not; default: as the chat template does."),
    ] = None,
    tools: Annotated[
        Path | None, typer.Option(help="Functions (.py) or schemas (.json) that the model may call, once you consent.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Run every tool call without asking.")] = False,
    schema: Annotated[Path | None, typer.Option(help="JSON schema that every reply has to fit.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with a conversation that /save wrote.")] = None,
    best_of: Annotated[int, typer.Option(help="Write N replies and show the one with the highest --reward.")] = 1,
    reward: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Reward that chooses, of an installed package: model=latest:reward."),
    ] = None,
    backend: Backend = "torch",
    draft: Draft = "lookup",
    device: Device = "auto",
    json: Annotated[bool, typer.Option("--json", help="Answer one prompt as one JSON document on stdout.")] = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Chat with a model in the terminal, or answer one prompt.

    A base model (only pretrained) completes the text instead of answering. In the chat, /help lists the commands.

    Example: mmcli chat; mmcli chat 7 --prompt "What is a cloud?"; mmcli chat latest:sft --temperature 0
    """
    from mmcli.cli.console import print_json
    from mmcli.cli.streams import drop_stdout
    from mmcli.generate.sampler import SamplingConfig
    from mmcli.generate.tools import load_tools

    sampling = SamplingConfig(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=int.from_bytes(os.urandom(4), "little") if seed is None else seed,
    )
    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {max_new_tokens} is below 1", "give 1 or more")
    if yes and tools is None:
        raise UserError("--yes consents to tool calls, and there are no tools", "give --tools FILE, or leave it out")
    chooser = _best_of(best_of, reward, temperature, runs_dir)
    at_keyboard = prompt is None and sys.stdin.isatty()
    text = None if at_keyboard else _one_prompt(prompt)
    if json and text is None:
        raise UserError("--json answers one prompt, and there is none", "give --prompt TEXT, or pipe text to stdin")
    runner = ToolRunner(load_tools(tools) if tools else [])
    if sys.stdin.isatty():
        runner.ask = ask_keyboard
    if yes:
        runner.consent_to_all()
    asked = _Asked(
        system=None if system is None else whole(system, "--system"),
        thinking=think,
        tools=tuple(tool.schema for tool in runner.tools),
        schema=None if schema is None else _read_schema(schema),
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        best_of=chooser,
    )
    models = _Models(runs_dir, backend, device, draft, asked)
    opened = models.get(model)
    conversation = opened.conversation
    if resume is not None:
        conversation.load(resume)
    note(opened.description)
    if at_keyboard:
        note("/help lists the commands; Ctrl-D or /exit exits")
        if resume is not None:
            show_conversation(conversation)
            note(f"{loaded(conversation)} from {resume}")
        Terminal(conversation, tools=runner, open_model=models.get, label=opened.label).run()
    elif text is None:
        note("stdin is empty: nothing to answer")
    elif json:
        values = _answer(conversation, text, runner)
        print_json({**values, "model": opened.label, "backend": models.backend(model), "seed": sampling.seed})
    else:
        try:
            stream(conversation, conversation.reply(text))
            runner.answer(conversation, stream)
        except BrokenPipeError:  # whoever read the reply has enough; the exit must not flush into the closed pipe
            drop_stdout()


@dataclass(frozen=True)
class _Asked:
    """What the command line asks of every conversation, whichever model it is with."""

    system: str | None
    thinking: bool | None
    tools: tuple[dict[str, Any], ...]
    schema: dict[str, Any] | None
    sampling: SamplingConfig
    max_new_tokens: int
    best_of: BestOf | None


def _best_of(n: int, reward: str | None, temperature: float, runs_dir: Path) -> BestOf | None:
    """What `--best-of` and `--reward` ask for; None without them."""
    from mmcli.generate.best_of import BestOf
    from mmcli.rewards import find_reward

    if n == 1 and reward is None:
        return None
    if n < 1:
        raise UserError(f"--best-of {n} is below 1", "give 2 or more, or leave it out")
    if reward is None:
        raise UserError(f"--best-of {n} needs what chooses", "give --reward, such as model=latest:reward")
    if n == 1:
        raise UserError(f"--reward {reward} chooses among replies, and one is written", "give --best-of 8")
    if temperature == 0:
        raise UserError(f"--best-of {n} at --temperature 0 writes one reply {n} times", "give a higher --temperature")
    return BestOf(n, find_reward(reward, runs_dir))


class _Models:
    """The models of one chat, each opened once."""

    def __init__(self, runs_dir: Path, backend: str, device: str, draft: str, asked: _Asked) -> None:
        self._runs_dir, self._backend, self._device, self._draft = runs_dir, backend, device, draft
        self._asked = asked
        self._opened: dict[Path, OpenModel] = {}

    def backend(self, name: str) -> str:
        """The backend that runs a model."""
        from mmcli.evaluation.engines import choose_backend
        from mmcli.find import find_language_model

        return choose_backend(find_language_model(name, self._runs_dir), self._backend)

    def get(self, name: str) -> OpenModel:
        """A model by what a person calls it, with a conversation.

        Raises:
            UserError: there is none, or it cannot do what the command line asks.
        """
        from mmcli.cli.console import err, interactive
        from mmcli.find import find_language_model

        found = find_language_model(name, self._runs_dir)
        if found.path not in self._opened:
            loading = err().status(f"loading {found.label}") if interactive() else contextlib.nullcontext()
            with loading:
                self._opened[found.path] = self._load(found, self.backend(name))
        return self._opened[found.path]

    def _load(self, found: ModelRef, backend: str) -> OpenModel:
        from mmcli.cli.console import reporter
        from mmcli.evaluation.engines import check_vocabulary, load_engine
        from mmcli.generate.conversation import Conversation, is_chat_model
        from mmcli.generate.grammar import Grammar
        from mmcli.text.prompt import knows_tools
        from mmcli.text.tokenizer import Tokenizer

        asked, tokenizer = self._asked, Tokenizer.load(found.path)
        grammar = None if asked.schema is None else Grammar.from_schema(tokenizer, asked.schema)
        slots = 1 if asked.best_of is None else asked.best_of.n
        engine = load_engine(found, backend, device=self._device, slots=slots, report=reporter())
        check_vocabulary(found, tokenizer, engine.vocab_size)
        answers = is_chat_model(found.path, tokenizer, stage=found.stage)
        conversation = Conversation(
            engine,
            tokenizer,
            sampling=asked.sampling,
            max_new_tokens=asked.max_new_tokens,
            system=asked.system,
            chat=answers,
            thinking=asked.thinking,
            tools=asked.tools,
            grammar=grammar,
            speculation=self._speculation(tokenizer, engine, backend) if asked.best_of is None else None,
            best_of=asked.best_of,
        )
        description = _describe(found, tokenizer, backend, engine)
        if not answers:
            description += "\n" + _why_it_continues(tokenizer)
        elif asked.tools and not knows_tools(tokenizer):
            description += "\nits chat template knows no tools: the system message describes them"
        return OpenModel(found.label, description, conversation)

    def _speculation(self, tokenizer: Tokenizer, engine: Engine, backend: str) -> Speculation | None:
        """What `--draft` asks for; without a model to draft, an export that cannot verify drafts goes without."""
        from mmcli.evaluation.engines import load_draft_model
        from mmcli.find import find_language_model
        from mmcli.generate.speculation import Speculation

        draft = self._draft
        if draft == "off":
            return None
        if draft == "lookup" and not engine.can_verify:
            note("this export cannot verify drafted tokens, so each token takes a pass of its own (--draft off)")
            return None
        if draft == "lookup" or not engine.can_verify:
            return Speculation(engine)
        found = find_language_model(draft, self._runs_dir)
        return Speculation(engine, load_draft_model(found, engine, tokenizer, backend, device=self._device))


def _read_schema(path: Path) -> Any:
    import json

    try:
        return json.loads(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "give a file with a JSON schema") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}", "fix the file") from None


def _answer(conversation: Conversation, text: str, runner: ToolRunner) -> dict[str, Any]:
    """One reply as values: text, reasoning and tool calls if there are any, mode, token counts and timings."""

    def drain(_: Conversation, pieces: Generator[str, None, None]) -> None:
        for _piece in pieces:
            pass

    drain(conversation, conversation.reply(text))
    runner.answer(conversation, drain)
    message, stats = conversation.messages[-1], conversation.stats
    assert stats is not None
    reasoning = {"reasoning": message["reasoning_content"]} if "reasoning_content" in message else {}
    mode = "chat" if conversation.chat else "continue"
    calls = [{"name": call.name, "arguments": call.arguments, "result": result} for call, result in runner.results]
    called = {"tool_calls": calls} if calls else {}
    rewards = {"rewards": conversation.rewards} if conversation.rewards else {}
    return {"reply": message["content"], **reasoning, **called, **rewards, "mode": mode, **asdict(stats)}


def _one_prompt(prompt: str | None) -> str | None:
    """The prompt: what is piped to stdin, then --prompt; None if both are empty."""
    if prompt is None:
        return _read_stdin()
    if not prompt.strip():
        raise UserError("--prompt is empty", 'write it like: --prompt "What is a cloud?"')
    prompt = whole(prompt, "--prompt")
    piped = _read_stdin() if _has_text_on_stdin() else None
    return prompt if piped is None else f"{piped}\n{prompt}"


def _has_text_on_stdin() -> bool:
    """True if stdin is a pipe or a file: what else it may be (a terminal, nothing at all) has no text for a prompt."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):  # closed, or no file of the system
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _read_stdin() -> str | None:
    """The text on stdin; None if it is empty."""
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"stdin is not UTF-8 (byte {error.start})", "convert it: iconv -t utf-8") from None
    return text.rstrip("\r\n") if text.strip() else None


def _describe(found: ModelRef, tokenizer: Tokenizer, backend: str, engine: Engine) -> str:
    """The model in one line: name, state, parameters, vocabulary, context length, engine."""
    from mmcli.model.count import count_parameters
    from mmcli.model.formats.hf_config import read_model_config

    state = f" ({found.run.info()['state']})" if found.run else ""
    parameters = count_parameters(read_model_config(found.path)).total
    sizes = f"{parameters:,} parameters, vocabulary {tokenizer.vocab_size:,}, context length {engine.max_len:,}"
    return f"{found.label}{state}: {sizes}, {backend}"


def _why_it_continues(tokenizer: Tokenizer) -> str:
    reason = "is a base model" if tokenizer.chat_template else "has no chat template"
    return f"this model {reason}: it completes your text instead of answering; fine-tune it with: mmcli sft"

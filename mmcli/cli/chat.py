"""`mmcli chat`: chat with a model in the terminal, or answer one prompt. The reply is on stdout, the rest on stderr."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Generator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcli.cli.help import App
from mmcli.cli.options import Backend, Device, Model, RunsDir
from mmcli.errors import MmcliError, UserError, did_you_mean

if TYPE_CHECKING:
    from mmcli.generate.conversation import Conversation
    from mmcli.generate.engine import Engine
    from mmcli.run import ModelRef
    from mmcli.text.tokenizer import Tokenizer

app = App()
PROMPT = "> "
HELP = """\
/reset         clear the conversation
/system TEXT   set the system message; without TEXT, remove it
/retry         regenerate the last reply
/save FILE     append the conversation to FILE as one JSONL record for training
/help          show this list
/exit          exit (also Ctrl-D)
Ctrl-C stops a reply, or clears the line. To send a message that begins with a slash, put a space before it."""
LEAVE = "Ctrl-D or /exit exits"
COMMANDS = ["/reset", "/system", "/retry", "/save", "/help", "/exit"]


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
    backend: Backend = "torch",
    device: Device = "auto",
    json: Annotated[bool, typer.Option("--json", help="Answer one prompt as one JSON document on stdout.")] = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Chat with a model in the terminal, or answer one prompt.

    A base model (only pretrained) completes the text instead of answering. In the chat, /help lists the commands.

    Example: mmcli chat; mmcli chat 7 --prompt "What is a cloud?"; mmcli chat latest:sft --temperature 0
    """
    from mmcli.cli.console import err, interactive, print_json
    from mmcli.cli.streams import drop_stdout
    from mmcli.evaluation.engines import choose_backend
    from mmcli.find import find_language_model
    from mmcli.generate.sampler import SamplingConfig

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
    at_keyboard = prompt is None and sys.stdin.isatty()
    text = None if at_keyboard else _one_prompt(prompt)
    if json and text is None:
        raise UserError("--json answers one prompt, and there is none", "give --prompt TEXT, or pipe text to stdin")
    found = find_language_model(model, runs_dir)
    backend = choose_backend(found, backend)
    loading = err().status(f"loading {found.label}") if interactive() else contextlib.nullcontext()
    with loading:
        tokenizer, engine = _load(found, backend, device)
        conversation = _converse(found, tokenizer, engine, system, think)
    conversation.sampling, conversation.max_new_tokens = sampling, max_new_tokens
    _note(_describe(found, tokenizer, backend, engine))
    if not conversation.chat:
        _note(_why_it_continues(tokenizer))
    if at_keyboard:
        _note("/help lists the commands; Ctrl-D or /exit exits")
        Terminal(conversation).run()
    elif text is None:
        _note("stdin is empty: nothing to answer")
    elif json:
        print_json({**_answer(conversation, text), "model": found.label, "backend": backend, "seed": sampling.seed})
    else:
        try:
            _stream(conversation, conversation.reply(text))
        except BrokenPipeError:  # whoever read the reply has enough; the exit must not flush into the closed pipe
            drop_stdout()


def _answer(conversation: Conversation, text: str) -> dict[str, Any]:
    """One reply as values: text, reasoning if there is any, mode, token counts and timings."""
    for _ in conversation.reply(text):
        pass
    message, stats = conversation.messages[-1], conversation.stats
    assert stats is not None
    reasoning = {"reasoning": message["reasoning_content"]} if "reasoning_content" in message else {}
    mode = "chat" if conversation.chat else "continue"
    return {"reply": message["content"], **reasoning, "mode": mode, **asdict(stats)}


def _one_prompt(prompt: str | None) -> str | None:
    """The prompt: what is piped to stdin, then --prompt; None if both are empty."""
    if prompt is None:
        return _read_stdin()
    if not prompt.strip():
        raise UserError("--prompt is empty", 'write it like: --prompt "What is a cloud?"')
    prompt = _checked(prompt, "--prompt")
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


def _checked(text: str, where: str) -> str:
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


def _load(found: ModelRef, backend: str, device: str) -> tuple[Tokenizer, Engine]:
    from mmcli.cli.console import reporter
    from mmcli.evaluation.engines import check_vocabulary, load_engine
    from mmcli.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(found.path)
    engine = load_engine(found, backend, device=device, report=reporter())
    check_vocabulary(found, tokenizer, engine.vocab_size)
    return tokenizer, engine


def _converse(
    found: ModelRef, tokenizer: Tokenizer, engine: Engine, system: str | None, think: bool | None = None
) -> Conversation:
    from mmcli.generate.conversation import Conversation, is_chat_model

    answers = is_chat_model(found.path, tokenizer, stage=found.stage)
    system = None if system is None else _checked(system, "--system")
    return Conversation(engine, tokenizer, system=system, chat=answers, thinking=think)


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


def _note(text: str) -> None:
    from mmcli.cli.console import err

    err().print(text, style="dim", markup=False)


# Control characters in a reply must not reach the terminal.
_CONTROL = {code: "\ufffd" for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}


def _stream(conversation: Conversation, pieces: Generator[str, None, None]) -> None:
    """Stream a reply to stdout, then its token count and speed to stderr."""
    at_terminal = sys.stdout.isatty()
    last = "\n"
    with contextlib.closing(pieces):  # an interrupt ends the reply and keeps what was generated
        try:
            for piece in pieces:
                sys.stdout.write(piece.translate(_CONTROL) if at_terminal else piece)
                sys.stdout.flush()
                last = piece
        finally:
            if not last.endswith("\n"):
                sys.stdout.write("\n")
                sys.stdout.flush()
    if conversation.notice:
        _note(conversation.notice)
    _note(_cost(conversation))


def _cost(conversation: Conversation) -> str:
    stats = conversation.stats
    assert stats is not None
    parts = [f"{stats.tokens} tokens"]
    if stats.tokens_per_second is not None:
        parts.append(f"{stats.tokens_per_second:.1f} tokens/s")
    if stats.time_to_first_token is not None:
        parts.append(f"first token after {stats.time_to_first_token:.2f} s")
    if stats.finish_reason == "length":
        parts.append(f"stopped at --max-new-tokens {conversation.max_new_tokens}")
    return ", ".join(parts)


def _ask(prompt: str) -> str:
    """One line from the keyboard, with line editing and history where the terminal has them."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # input() edits lines once it is imported; its history stays in memory
    if not sys.stdout.isatty():  # the prompt must not get into the file or pipe that takes the replies
        sys.stderr.write(prompt)
        sys.stderr.flush()
        prompt = ""
    return input(prompt)


class Terminal:
    """The interactive chat: reads lines, answers them, runs slash commands."""

    def __init__(self, conversation: Conversation, ask: Callable[[str], str] = _ask) -> None:
        self.conversation = conversation
        self._ask = ask

    def run(self) -> None:
        """Read and answer until the user exits: /exit or Ctrl-D. Ctrl-C stops a reply, or clears the line."""
        from mmcli.cli.console import print_error

        while True:
            try:
                line = self._ask(PROMPT)
            except EOFError:
                sys.stderr.write("\n")
                return
            except KeyboardInterrupt:
                sys.stderr.write("\n")
                _note(LEAVE)
                continue
            if line.strip() == "/exit":
                return
            try:
                self._handle(line)
            except KeyboardInterrupt:
                _note("stopped; " + LEAVE)
            except MmcliError as error:
                print_error(error)

    def _handle(self, line: str) -> None:
        if line.startswith("/"):
            name, _, rest = line.strip().partition(" ")
            self._command(name, rest.strip())
        elif line.strip():
            _stream(self.conversation, self.conversation.reply(_checked(line.strip(), "the message")))

    def _command(self, name: str, rest: str) -> None:
        """Run one slash command.

        Raises:
            UserError: there is no such command, or it cannot be done now.
        """
        conversation = self.conversation
        if name in ("/reset", "/retry", "/help") and rest:
            raise UserError(f'{name} takes no argument, but got "{rest}"', f"write only {name}")
        if name == "/reset":
            conversation.reset()
            _note("conversation cleared" + ("; the system message stays" if conversation.system else ""))
        elif name == "/system":
            conversation.set_system(_checked(rest, "the system message") or None)
            _note("system message set" if rest else "system message removed")
        elif name == "/retry":
            _stream(conversation, conversation.retry())
        elif name == "/save":
            if not rest:
                raise UserError("/save needs a file name", "write it like: /save chat.jsonl")
            conversation.save(Path(rest))
            _note(f"saved to {rest}")
        elif name == "/help":
            sys.stderr.write(HELP + "\n")
        else:
            raise UserError(f'there is no command "{name}"', did_you_mean(name, COMMANDS) + " (/help lists them)")

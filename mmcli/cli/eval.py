"""`mmcli eval`: right answers to questions nobody trained on, or the loss of a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmcli.cli.help import App
from mmcli.cli.options import AsJson, Columns, Model, RunsDir
from mmcli.errors import UserError

if TYPE_CHECKING:
    from mmcli.data.pack.batches import Batch
    from mmcli.data.sources.sources import Sources
    from mmcli.evaluation.questions import Reply, Score
    from mmcli.generate.engine import Engine
    from mmcli.run import ModelRef
    from mmcli.stage import Reporter
    from mmcli.text.tokenizer import Tokenizer

app = App()
SLOTS = 16  # questions answered at a time
SEQ_LEN = 2048  # longest window of a model that does not say how long its rows were
LANGUAGES = {"en": "English", "zh": "Chinese"}


@app.command()
def evaluate(
    model: Model = "latest",
    suite: Annotated[
        Literal["demo"] | None, typer.Option(help="Questions to ask. Default, if there is no --data: demo.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Questions of each family, at most. Default: all.")] = None,
    show: Annotated[int | None, typer.Option(help="Print so many wrong and so many right replies.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="A reply must end within so many tokens. [64]")] = None,
    data: Annotated[list[str] | None, typer.Option(help="The loss of these files instead; may be repeated.")] = None,
    columns: Columns = None,
    seq_len: Annotated[int | None, typer.Option(help="--data: window for longer texts. [as trained]")] = None,
    backend: Annotated[Literal["torch", "onnx"], typer.Option(help="What runs the model.")] = "torch",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    runs_dir: RunsDir = Path("runs"),
    json: AsJson = False,
) -> None:
    """Ask a model the held-out questions of the built-in corpus, or measure the loss of a text.

    Example: mmcli eval latest:sft --limit 20 --show 3; mmcli eval 7 --data held-out.jsonl
    """
    from mmcli.cli.console import reporter
    from mmcli.run import find_language_model

    if data is None:
        if seq_len is not None:
            raise UserError("--seq-len is for the loss of a text", "add --data FILE, or leave it out")
        if columns:
            raise UserError("--columns is for the loss of a text", "add --data FILE, or leave it out")
    else:
        for name, value in (("suite", suite), ("limit", limit), ("show", show), ("max-new-tokens", max_new_tokens)):
            if value is not None:
                raise UserError(f"--{name} is for questions, --data for the loss of a text", "give one of the two")
        if backend != "torch":
            raise UserError(f"--backend {backend} answers questions; the loss of a text is torch's", "leave it out")
    found = find_language_model(model, runs_dir)
    facts = {"model": found.label, "backend": backend}
    report = reporter()
    if data is None:
        _ask(found, facts, limit, show, max_new_tokens, device, json=json, report=report)
    else:
        _measure(found, facts, data, columns or [], seq_len, device, json=json, report=report)


def _ask(
    found: ModelRef,
    facts: dict[str, str],
    limit: int | None,
    show: int | None,
    max_new_tokens: int | None,
    device: str,
    *,
    json: bool,
    report: Reporter,
) -> None:
    """Put the questions to the model, and print the scores."""
    from mmcli.cli.console import print_json
    from mmcli.evaluation.questions import MAX_NEW_TOKENS, scores, total_score

    if show is not None and show < 1:
        raise UserError(f"--show {show} shows nothing", "give 1 or more, or leave it out")
    longest = MAX_NEW_TOKENS if max_new_tokens is None else max_new_tokens
    if longest < 1:
        raise UserError(f"--max-new-tokens {longest} leaves nothing to write", "give 1 or more")
    asked = ask_demo(found, limit, longest, backend=facts["backend"], device=device, report=report)
    replies = asked.replies
    families = scores(replies)
    total = total_score(families)
    unfinished = sum(not reply.ended for reply in replies) - asked.too_long
    examples = _examples(replies, show or 0)
    if json:
        by_family = {name: {key: _score(score) for key, score in each.items()} for name, each in families.items()}
        counts = {"correct": total.correct, "questions": total.total, "unfinished": unfinished}
        shown = {"examples": [_example(reply) for reply in examples]} if show is not None else {}
        print_json(
            {
                **facts,
                "suite": "demo",
                "mode": asked.mode,
                "score": total.share,
                **counts,
                "families": by_family,
                **shown,
            }
        )
        return
    _print_scores(families, total)
    if unfinished:
        report.note(f"{unfinished:,} replies did not end within {longest} tokens: counted as wrong")
    _print_examples(examples)


@dataclass(frozen=True)
class Asked:
    """The judged replies, how the questions were asked ("chat" or "continue"), and how many were too long to ask."""

    replies: list[Reply]
    mode: str
    too_long: int


def ask_demo(
    found: ModelRef,
    limit: int | None = None,
    longest: int | None = None,
    *,
    backend: str = "torch",
    device: str = "auto",
    report: Reporter,
) -> Asked:
    """Put the questions of the built-in corpus to a model."""
    from mmcli.data import demo
    from mmcli.evaluation.questions import MAX_NEW_TOKENS, answer_questions, choose_questions, encode_questions
    from mmcli.generate.conversation import is_chat_model
    from mmcli.text.tokenizer import Tokenizer

    longest = longest or MAX_NEW_TOKENS
    questions: Sequence[demo.Question] = demo.questions()
    if limit is not None:
        questions = choose_questions(questions, limit)
    tokenizer = Tokenizer.load(found.path)
    chat = is_chat_model(found.path, tokenizer, stage=found.run.stage if found.run else None)
    how = "as messages" if chat else '"Question: ... Answer:" to continue, for it was only pretrained'
    report.note(f"{found.label}: {len(questions):,} questions, {how}")
    prompts = encode_questions(tokenizer, questions, chat=chat)
    engine = _open_engine(found, tokenizer, backend, device, max(map(len, prompts)) + longest, report)
    too_long = sum(len(prompt) >= engine.max_len for prompt in prompts)
    if too_long:
        report.warn(
            f"{too_long:,} questions do not fit into the context of {engine.max_len:,} tokens: counted as wrong"
        )
    replies = answer_questions(engine, tokenizer, questions, prompts, chat=chat, max_new_tokens=longest, report=report)
    return Asked(replies, "chat" if chat else "continue", too_long)


def _open_engine(
    found: ModelRef, tokenizer: Tokenizer, backend: str, device: str, longest: int, report: Reporter
) -> Engine:
    """An engine with room for the longest question and its reply in each slot."""
    from mmcli.evaluation.engines import load_engine
    from mmcli.model.formats.hf_config import read_model_config

    config = read_model_config(found.path)
    _check_vocabulary(found, tokenizer, config.vocab_size)
    max_len = min(longest, config.max_seq_len)
    return load_engine(found, backend, slots=SLOTS, max_len=max_len, device=device, report=report)


def _check_vocabulary(found: ModelRef, tokenizer: Tokenizer, vocab_size: int) -> None:
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{found.path}: its tokenizer has {tokenizer.vocab_size:,} tokens, its model {vocab_size:,}",
            "put the tokenizer that the model was trained with into the folder",
        )


def _score(score: Score) -> dict[str, float]:
    return {"correct": score.correct, "total": score.total, "score": score.share}


def _print_scores(families: dict[str, dict[str, Score]], total: Score) -> None:
    """One line a family, one column a language."""
    from rich.table import Table

    from mmcli.cli.console import out
    from mmcli.evaluation.questions import add_scores

    languages = list(dict.fromkeys(language for family in families.values() for language in family))
    table = Table(box=None, pad_edge=False)
    table.add_column("family", overflow="fold")
    for name in (*(LANGUAGES.get(language, language) for language in languages), "together"):
        table.add_column(name, justify="right", no_wrap=True)
    for family, scores in families.items():
        cells = [_cell(scores.get(language)) for language in languages]
        table.add_row(family, *cells, _cell(add_scores(scores.values())))
    sums = [add_scores([each[name] for each in families.values() if name in each]) for name in languages]
    table.add_row("together", *map(_cell, sums), _cell(total), style="bold")
    out().print(table, soft_wrap=False)


def _cell(score: Score | None) -> str:
    return f"{score.correct}/{score.total} {score.share:6.1%}" if score else ""


def _examples(replies: Sequence[Reply], count: int) -> list[Reply]:
    """Up to `count` wrong and `count` right replies, evenly spread over the questions."""
    chosen = []
    for right in (False, True):
        group = [reply for reply in replies if reply.correct == right]
        some = min(count, len(group))
        chosen += [group[i * len(group) // some] for i in range(some)]
    return chosen


def _example(reply: Reply) -> dict[str, Any]:
    question = reply.question
    return {
        "id": question.id,
        "messages": list(question.messages),
        "reply": reply.text,
        "answers": list(question.answers),
        "correct": reply.correct,
        "ended": reply.ended,
    }


def _print_examples(replies: Sequence[Reply]) -> None:
    from rich.table import Table
    from rich.text import Text

    from mmcli.cli.console import out
    from mmcli.data.preview import printable

    for reply in replies:
        table = Table.grid(padding=(0, 1))
        table.add_column(width=9, justify="right")
        table.add_column(overflow="fold")
        for message in reply.question.messages:
            table.add_row(Text(message["role"], "dim"), Text(printable(message["content"])))
        verdict = "right" if reply.correct else "wrong"
        text = Text(printable(reply.text) or "(nothing)", "green" if reply.correct else "red")
        table.add_row(Text(verdict, "bold"), text.append("" if reply.ended else "... (did not end)"))
        if not reply.correct:
            table.add_row(Text("answer", "dim"), Text(" / ".join(reply.question.answers)))
        out().print(Text(f"\n{reply.question.id}", "dim"), soft_wrap=False, overflow="fold")
        out().print(table, soft_wrap=False)


def _measure(
    found: ModelRef,
    facts: dict[str, str],
    data: list[str],
    columns: list[str],
    seq_len: int | None,
    device: str,
    *,
    json: bool,
    report: Reporter,
) -> None:
    """The loss of a text (of the assistant's turns in conversations), and what it comes to a byte."""
    import tempfile

    from mmcli.cli.console import out, print_json
    from mmcli.data.encode.cache import TokenCache
    from mmcli.data.preview import open_any
    from mmcli.generate.conversation import is_chat_model
    from mmcli.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(found.path)
    chat = is_chat_model(found.path, tokenizer, stage=found.run.stage if found.run else None)
    sources = open_any(data, ("chat", "text") if chat else ("text", "chat"), columns=columns)
    sources.refuse_weights("the loss of a text")
    window = _window(found, seq_len)
    report.note(f"{found.label}: the loss of {sources.describe}, {_what(sources)}, in windows of {window:,} tokens")
    with tempfile.TemporaryDirectory(prefix="mmcli-", ignore_cleanup_errors=True) as folder:
        cache = TokenCache.build_or_open(Path(folder), sources, tokenizer, report=report)
        for line in cache.tally.lines():
            report.warn(line)
        values = _loss(found, tokenizer, cache, window, device, report)
        records = {"kept": cache.tally.kept, "rejected": cache.tally.rejected}
    if json:
        print_json({**facts, "kind": sources.kind, "seq_len": window, **records, **values})
        return
    shown = {name: f"{values[name]:,.4f}" for name in ("loss", "perplexity", "bits_per_byte")}
    shown |= {name: f"{int(values[name]):,}" for name in ("tokens", "bytes")}
    for name, unit in (
        ("loss", "nats a token"),
        ("perplexity", ""),
        ("bits_per_byte", ""),
        ("tokens", ""),
        ("bytes", ""),
    ):
        out().print(f"{name.replace('_', ' '):>13}  {shown[name]:>14}  {unit}".rstrip(), markup=False)


def _what(sources: Sources) -> str:
    return "the assistant's tokens only" if sources.kind == "chat" else "every token"


def _window(found: ModelRef, seq_len: int | None) -> int:
    """Tokens that are read together, at most: as asked, else as the model was trained.

    Raises:
        UserError: longer than the model's context, or too short to predict anything.
    """
    from mmcli.model.formats.hf_config import read_model_config

    longest = read_model_config(found.path).max_seq_len
    if seq_len is None:
        trained = found.run.read_config().get("data", {}).get("seq_len") if found.run else None
        return min(int(trained or SEQ_LEN), longest)
    if seq_len < 2:
        raise UserError(f"--seq-len {seq_len} is below 2", "give 2 or more, such as 512")
    if seq_len > longest:
        what = f"--seq-len {seq_len} is longer than the model's max_seq_len = {longest}"
        raise UserError(what, f"give --seq-len {longest} or less")
    return seq_len


def _loss(
    found: ModelRef, tokenizer: Tokenizer, cache: Any, window: int, device: str, report: Reporter
) -> dict[str, float]:
    import numpy as np

    from mmcli.data.pack.batches import evaluation_batches
    from mmcli.evaluation.questions import evaluation_rows
    from mmcli.model.device import choose_device
    from mmcli.model.formats.hf_folder import load_model
    from mmcli.stages.start import MICRO_BATCH_TOKENS
    from mmcli.train.lm import evaluate_tokens

    place = choose_device(device)
    model = load_model(found.path, device=place).eval()
    vocab_size = model.config.vocab_size
    _check_vocabulary(found, tokenizer, vocab_size)
    rows = evaluation_rows(cache, window)
    micro_batch = max(1, MICRO_BATCH_TOKENS.get(place.type, 1024) // rows.seq_len)
    lengths_V = np.zeros(vocab_size, dtype=np.int64)  # an id that the tokenizer lacks stands for no text
    lengths_V[: tokenizer.vocab_size] = tokenizer.byte_lengths()
    batches = _told(evaluation_batches(cache, rows, micro_batch), rows.tokens, report)
    return evaluate_tokens(model, batches, lengths_V, place)


def _told(batches: Iterator[Batch], total: int, report: Reporter) -> Iterator[Batch]:
    """The batches, each told to the reporter once it is done."""
    done = 0
    for batch in batches:
        yield batch
        done += batch.tokens
        report.progress("evaluate", done, total, "tokens")

"""`mmcli eval`: the score on a suite of held-out questions, or the loss of a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcli.cli.help import App
from mmcli.cli.options import AsJson, Backend, Columns, Device, Model, RunsDir
from mmcli.errors import UserError
from mmcli.evaluation.suites import SUITES

if TYPE_CHECKING:
    from mmcli.evaluation.questions import Reply, Score
    from mmcli.run import ModelRef
    from mmcli.stage import Reporter

app = App()
LANGUAGES = {"en": "English", "zh": "Chinese"}


@app.command()
def evaluate(
    model: Model = "latest",
    suite: Annotated[
        str | None,
        typer.Option(metavar=f"<{'|'.join(SUITES)}>", help="Suite of questions; default: demo."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Maximum questions of each family. Default: all.")] = None,
    show: Annotated[int | None, typer.Option(help="Show N wrong and N correct replies.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Maximum tokens per reply; default: 64.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Held-out loss on these files instead; repeatable.")] = None,
    columns: Columns = None,
    seq_len: Annotated[int | None, typer.Option(help="--data: context window; default: as trained.")] = None,
    backend: Backend = "torch",
    device: Device = "auto",
    runs_dir: RunsDir = Path("runs"),
    json: AsJson = False,
) -> None:
    """Score a model on held-out questions, or measure its loss on a text.

    Example: mmcli eval latest:sft --limit 20 --show 3; mmcli eval 7 --data held-out.jsonl
    """
    from mmcli.cli.console import reporter
    from mmcli.evaluation.engines import choose_backend
    from mmcli.find import find_language_model

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
    facts = {"model": found.label, "backend": choose_backend(found, backend)}
    report = reporter()
    if data is None:
        _ask(found, facts, suite or "demo", limit, show, max_new_tokens, device, json=json, report=report)
    else:
        _measure(found, facts, data, columns or [], seq_len, device, json=json, report=report)


def _ask(
    found: ModelRef,
    facts: dict[str, str],
    suite: str,
    limit: int | None,
    show: int | None,
    max_new_tokens: int | None,
    device: str,
    *,
    json: bool,
    report: Reporter,
) -> None:
    """Evaluate the model on a suite, and print the scores."""
    from mmcli.cli.console import print_json
    from mmcli.evaluation.evaluate import evaluate as evaluate_suite
    from mmcli.evaluation.questions import MAX_NEW_TOKENS

    if show is not None and show < 1:
        raise UserError(f"--show {show} shows nothing", "give 1 or more, or leave it out")
    longest = MAX_NEW_TOKENS if max_new_tokens is None else max_new_tokens
    if longest < 1:
        raise UserError(f"--max-new-tokens {longest} leaves nothing to write", "give 1 or more")
    backend = facts["backend"]
    result = evaluate_suite(
        found, suite, limit=limit, max_new_tokens=longest, backend=backend, device=device, report=report
    )
    families, total = result.families, result.total
    examples = result.examples(show or 0)
    if json:
        by_family = {name: {key: _score(score) for key, score in each.items()} for name, each in families.items()}
        counts = {"correct": total.correct, "questions": total.total, "unfinished": result.unfinished}
        shown = {"examples": [_example(reply) for reply in examples]} if show is not None else {}
        print_json(
            {
                **facts,
                "suite": result.suite,
                "mode": result.mode,
                "score": total.share,
                **counts,
                "families": by_family,
                **shown,
            }
        )
        return
    _print_scores(families, total)
    if result.unfinished:
        report.note(f"{result.unfinished:,} replies did not end within {longest} tokens: counted as wrong")
    _print_examples(examples)


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
        verdict = "correct" if reply.correct else "wrong"
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
    """Print the loss of a text (of the assistant's turns in conversations)."""
    from mmcli.cli.console import out, print_json
    from mmcli.evaluation.held_out import measure_loss

    measured = measure_loss(found, data, columns=columns, seq_len=seq_len, device=device, report=report)
    loss = measured.loss
    values = {
        "loss": loss.loss,
        "perplexity": loss.perplexity,
        "bits_per_byte": loss.bits_per_byte,
        "tokens": loss.tokens,
        "bytes": loss.bytes,
    }
    if json:
        how = {"kind": measured.kind, "seq_len": measured.seq_len}
        records = {"kept": measured.kept, "rejected": measured.rejected}
        print_json({**facts, **how, **records, **values})
        return
    for name, value in values.items():
        shown = f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"
        unit = "nats a token" if name == "loss" else ""
        out().print(f"{name.replace('_', ' '):>13}  {shown:>14}  {unit}".rstrip(), markup=False)

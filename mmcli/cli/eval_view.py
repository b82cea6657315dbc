"""What `mmcli eval` prints: the scores of one model, several models side by side, and replies."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmcli.data.preview import printable
from mmcli.evaluation.evaluate import SuiteResult, Which
from mmcli.evaluation.figures import SuiteFigures
from mmcli.evaluation.held_out import HeldOutLoss
from mmcli.evaluation.preferences import PreferenceAccuracy
from mmcli.evaluation.questions import Reply
from mmcli.evaluation.scores import Score, family_scores, language_scores
from mmcli.evaluation.suites import PREFERENCES
from mmcli.report.evaluations import share_text

if TYPE_CHECKING:
    from rich.table import Table

    from mmcli.evaluation.keep import Result
    from mmcli.run import ModelRef

LANGUAGES = {"en": "English", "zh": "Chinese"}
LABEL, CELL = 22, 15  # cells of a row's name and of a figure at most, in the table of several models


@dataclass(frozen=True)
class Shown:
    """Which replies are printed, and how many of each kind at most (None: all)."""

    which: Which
    count: int | None


def to_document(ref: ModelRef, result: Result, shown: Shown | None) -> dict[str, Any]:
    """A result as `--json` prints it."""
    document = {"model": ref.label, "backend": "torch", **result.to_json()}
    if isinstance(result, SuiteResult) and shown is not None:
        document["examples"] = [_example(reply) for reply in result.examples(shown.count, shown.which)]
    return document


def _example(reply: Reply) -> dict[str, Any]:
    question = reply.question
    return {
        "id": question.id,
        "messages": list(question.messages),
        **({"tools": list(question.tools)} if question.tools else {}),
        "reply": reply.text,
        "answers": list(question.answers),
        "correct": reply.correct,
        "ended": reply.ended,
    }


# One model


def print_result(result: Result, shown: Shown | None) -> None:
    """One result of one model."""
    if isinstance(result, SuiteResult):
        _print_scores(result)
        _tell_unfinished(result, "")
        _print_examples(result, shown)
    elif isinstance(result, SuiteFigures):
        _print_measured(result)
    elif isinstance(result, PreferenceAccuracy):
        _print_figures(
            {
                "preferred": (_share(result.by_sum), "pairs whose chosen reply is likelier"),
                "per token": (_share(result.by_token), "the same of the mean over tokens"),
                "margin": (f"{result.margin:,.4f}", "nats, chosen minus rejected"),
                "pairs": (f"{result.by_sum.total:,}", ""),
            }
        )
    elif isinstance(result, HeldOutLoss):
        loss = result.loss
        _print_figures(
            {
                "loss": (f"{loss.loss:,.4f}", "nats a token"),
                "perplexity": (f"{loss.perplexity:,.4f}", ""),
                "bits per byte": (f"{loss.bits_per_byte:,.4f}", ""),
                "tokens": (f"{loss.tokens:,}", ""),
                "bytes": (f"{loss.bytes:,}", ""),
            }
        )


def _print_figures(figures: Mapping[str, tuple[str, str]]) -> None:
    from mmcli.cli.console import out

    for name, (value, unit) in figures.items():
        out().print(f"{name:>13}  {value:>14}  {unit}".rstrip(), markup=False)


def _print_measured(result: SuiteFigures) -> None:
    """One line a figure."""
    from mmcli.cli.console import out

    table = _table()
    named = any(each.task for each in result.figures)
    if named:
        table.add_column("task", overflow="fold")
    table.add_column("measure", overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("questions", justify="right", no_wrap=True)
    for each in result.figures:
        count = "" if each.questions is None else f"{each.questions:,}"
        table.add_row(*([_text(each.task)] if named else []), _text(each.name), each.text, count)
    out().print(table, soft_wrap=False)


def _print_scores(result: SuiteResult) -> None:
    """One line a family, one column a language, and the interval of all languages together."""
    from mmcli.cli.console import out

    families, languages = result.families, language_scores(result.families)
    table = _table()
    table.add_column("family", overflow="fold")
    for name in (*(LANGUAGES.get(language, language) for language in languages), "together", "95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    for family, together in family_scores(families).items():
        cells = [_cell(families[family].get(language)) for language in languages]
        table.add_row(_text(family), *cells, _cell(together), _interval(together))
    table.add_row(
        "together", *map(_cell, languages.values()), _cell(result.total), _interval(result.total), style="bold"
    )
    out().print(table, soft_wrap=False)


def _tell_unfinished(result: SuiteResult, label: str) -> None:
    from mmcli.cli.console import reporter

    if result.unfinished:
        what = f"{result.unfinished:,} replies did not end within {result.max_new_tokens} tokens: counted as wrong"
        reporter().note(f"{label}{what}")


def _cell(score: Score | None) -> str:
    return f"{score.correct}/{score.total} {score.share:6.1%}" if score else ""


def _interval(score: Score) -> str:
    low, high = score.interval
    return f"{100 * low:.0f}-{100 * high:.0f}"


def _share(score: Score | None) -> str:
    return share_text(score.share, score.interval) if score is not None and score.total else ""


# Several models

Row = tuple[str, str]  # (suite, part of its score); the part of the whole is ""


def print_comparison(labels: Sequence[str], results: Sequence[Sequence[Result]], shown: Shown | None) -> None:
    """Models side by side: a column a model, a row a score; as many tables as the width of the terminal asks for."""
    from rich.cells import cell_len

    from mmcli.cli.console import out

    columns = [dict(_rows(each)) for each in results]
    names = list(dict.fromkeys(name for column in columns for name in column))
    width = min(LABEL, max(cell_len(part or suite) + 2 * bool(part) for suite, part in names))
    together = max(1, (out().width - width) // (CELL + 1))
    for first in range(0, len(labels), together):
        if first:
            out().print()
        _print_columns(names, labels[first : first + together], columns[first : first + together])
    for label, each in zip(labels, results, strict=True):
        for result in each:
            if isinstance(result, SuiteResult):
                _tell_unfinished(result, f"{label}: ")
                if shown is not None:
                    out().print(f"\n{label}, {result.suite}", style="bold", markup=False)
                _print_examples(result, shown)


def _print_columns(names: Sequence[Row], labels: Sequence[str], columns: Sequence[Mapping[Row, str]]) -> None:
    from mmcli.cli.console import out

    table = _table()
    table.add_column("", overflow="fold", max_width=LABEL)
    for label in labels:
        table.add_column(_text(_wrapped(label)), justify="right", overflow="fold", max_width=CELL)
    for name in names:
        suite, part = name
        label, style = (f"  {part}", "") if part else (suite, "bold")
        table.add_row(_text(label), *(column.get(name, "") for column in columns), style=style)
    out().print(table, soft_wrap=False)


def _wrapped(label: str) -> str:
    """A model's name in lines of `CELL` cells, broken after "-" and "/" where that is possible."""
    from rich.cells import cell_len

    lines = [""]
    for piece in re.split(r"(?<=[-/])", printable(label)):
        if lines[-1] and cell_len(lines[-1] + piece) > CELL:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def _rows(results: Sequence[Result]) -> Iterator[tuple[Row, str]]:
    """(row, figure) of all that was measured of one model."""
    for result in results:
        if isinstance(result, SuiteResult):
            suite = result.suite
            yield (suite, ""), _share(result.total)
            yield (suite, "asked"), "as chat" if result.mode == "chat" else "as text"
            for family, score in family_scores(result.families).items():
                yield (suite, family), _share(score)
            for language, score in language_scores(result.families).items():
                yield (suite, LANGUAGES.get(language, language)), _share(score)
        elif isinstance(result, SuiteFigures):
            yield (result.suite, ""), ""
            for each in result.figures:
                yield (result.suite, f"{each.task} {each.name}".strip()), each.text
        elif isinstance(result, PreferenceAccuracy):
            yield (PREFERENCES, ""), _share(result.by_sum)
            yield (PREFERENCES, "per token"), _share(result.by_token)
        elif isinstance(result, HeldOutLoss):
            loss = result.loss
            yield ("bits per byte", ""), f"{loss.bits_per_byte:,.4f}"
            yield ("bits per byte", "loss"), f"{loss.loss:,.4f}"


# Replies


def _print_examples(result: SuiteResult, shown: Shown | None) -> None:
    """Questions with the answers that are expected and the replies that were given."""
    from rich.text import Text

    from mmcli.cli.console import out

    replies = result.examples(shown.count, shown.which) if shown is not None else []
    if shown is not None and not replies:
        out().print(f"\nno reply is {shown.which}")
    for reply in replies:
        table = _table(grid=True)
        table.add_column(width=9, justify="right")
        table.add_column(overflow="fold")
        for message in reply.question.messages:
            table.add_row(Text(str(message["role"]), "dim"), Text(printable(_content(message))))
        if reply.question.tools:
            names = [str(tool.get("function", tool).get("name", "?")) for tool in reply.question.tools]
            table.add_row(Text("tools", "dim"), Text(printable(", ".join(names))))
        table.add_row(Text("expected", "dim"), Text(printable(" / ".join(reply.question.answers))))
        text = Text(printable(reply.text) or "(nothing)", "green" if reply.correct else "red")
        verdict = "right" if reply.correct else "wrong"
        table.add_row(Text(verdict, "bold"), text.append("" if reply.ended else "... (did not end)"))
        out().print(Text(f"\n{printable(reply.question.id)}", "dim"), soft_wrap=False, overflow="fold")
        out().print(table, soft_wrap=False)


def _content(message: Mapping[str, Any]) -> str:
    """What a message says, with its tool calls."""
    calls = message.get("tool_calls")
    said = str(message.get("content") or "")
    return f"{said} {json.dumps(calls, ensure_ascii=False)}".strip() if calls else said


def _table(*, grid: bool = False) -> Table:
    from rich.table import Table

    return Table.grid(padding=(0, 1)) if grid else Table(box=None, pad_edge=False)


def _text(name: str) -> Any:
    """A name as it is, without markup."""
    from rich.text import Text

    return Text("\n".join(map(printable, name.split("\n"))))

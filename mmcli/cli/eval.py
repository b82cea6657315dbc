"""`mmcli eval`: the score on suites of questions, the accuracy of preferences, and the loss of a text."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcli.cli.help import App
from mmcli.cli.options import AsJson, Backend, Columns, Device, RunsDir
from mmcli.errors import UserError
from mmcli.evaluation.suites import PREFERENCES

if TYPE_CHECKING:
    from mmcli.cli.eval_view import Shown
    from mmcli.evaluation.keep import Result
    from mmcli.run import ModelRef
    from mmcli.stage import Reporter

app = App()
SHOW = re.compile(r"(wrong|right|all)(?::(\d+))?|(\d+)")


@app.command()
def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Run number or name, model folder, latest or latest:STAGE; several are compared. Default: latest.",
        ),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="demo, preferences, a plugin's NAME or NAME:ARGUMENT; repeatable."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Maximum questions of each family. Default: all.")] = None,
    show: Annotated[
        str | None,
        typer.Option(
            metavar="WHICH[:N]", help="Print questions with their replies: wrong, right or all, N of each at most."
        ),
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Maximum tokens per reply; default: 64.")] = None,
    shuffle_answers: Annotated[
        bool, typer.Option("--shuffle-answers", help="Control: judge each reply by another question's answers.")
    ] = False,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Held-out loss of these files, or accuracy of their preference pairs; repeatable."),
    ] = None,
    columns: Columns = None,
    seq_len: Annotated[int | None, typer.Option(help="--data: context window; default: as trained.")] = None,
    backend: Backend = "torch",
    device: Device = "auto",
    runs_dir: RunsDir = Path("runs"),
    json: AsJson = False,
) -> None:
    """Score models on held-out questions, on preference pairs, or by their loss on a text.

    Example: mmcli eval latest:sft --limit 20 --show wrong:3; mmcli eval latest:pretrain latest:sft latest:dpo;
    mmcli eval 7 --data held-out.jsonl; mmcli eval 6 7 --suite demo --suite preferences
    """
    from mmcli.cli.console import print_json, reporter
    from mmcli.cli.eval_view import print_comparison, print_result, to_document
    from mmcli.evaluation.keep import keep_result
    from mmcli.find import find_language_model

    shown = _read_show(show)
    questions = {
        "limit": limit,
        "show": show,
        "max-new-tokens": max_new_tokens,
        "shuffle-answers": shuffle_answers or None,
    }
    _refuse_unused(suite, data, questions, columns, seq_len, backend)
    if max_new_tokens is not None and max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {max_new_tokens} leaves nothing to write", "give 1 or more")
    found = [find_language_model(name, runs_dir) for name in dict.fromkeys(models or ["latest"])]
    asked = {
        "limit": limit,
        "shuffle_answers": shuffle_answers,
        "backend": backend,
        **({} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}),
    }
    measures = _measures(suite, data, columns or [], seq_len, asked, show)
    results: list[list[Result]] = []
    for ref in found:
        report = reporter()
        results.append([measure(ref, device, report) for measure in measures])
        for result in results[-1]:
            keep_result(ref, result, report)
        report.close()
    documents = [[to_document(ref, result, shown) for result in each] for ref, each in zip(found, results, strict=True)]
    if json:
        alone = len(found) == len(measures) == 1
        labels = [ref.label for ref in found]
        pairs = zip(labels, documents, strict=True)
        print_json(documents[0][0] if alone else {"models": [{"model": name, "results": each} for name, each in pairs]})
    elif len(found) == len(measures) == 1:
        print_result(results[0][0], shown)
    else:
        print_comparison([ref.label for ref in found], results, shown)


def _read_show(show: str | None) -> Shown | None:
    """What `--show` asks for: wrong, right or all, each with a number or without; a number alone is of all.

    Raises:
        UserError: it is none of these.
    """
    from mmcli.cli.eval_view import Shown

    if show is None:
        return None
    match = SHOW.fullmatch(show)
    count = match[2] or match[3] if match else None
    if match is None or (count is not None and int(count) < 1):
        raise UserError(f"--show {show} shows nothing", "give wrong, right, all or such as wrong:5")
    which: Any = match[1] or "all"
    return Shown(which, int(count) if count is not None else None)


def _refuse_unused(
    suites: list[str] | None,
    data: list[str] | None,
    questions: dict[str, Any],
    columns: list[str] | None,
    seq_len: int | None,
    backend: str,
) -> None:
    """Refuse options that belong to what is not measured.

    Raises:
        UserError: there is one.
    """
    if data is None:
        for name, value in (("seq-len", seq_len), ("columns", columns)):
            if value:
                raise UserError(f"--{name} is for the loss of a text", "add --data FILE, or leave it out")
    asks = [name for name in suites or ([] if data is not None else ["demo"]) if name != PREFERENCES]
    if not asks:
        for name, value in questions.items():
            if value is not None:
                what = f"--{name} is for questions, and no suite of questions is asked for"
                raise UserError(what, "add --suite demo, or leave it out")
    if backend != "torch" and (data is not None or PREFERENCES in (suites or [])):
        raise UserError(f"--backend {backend} answers questions; losses and preferences are torch's", "leave it out")


Measure = Callable[["ModelRef", str, "Reporter"], "Result"]


def _measures(
    suites: list[str] | None,
    data: list[str] | None,
    columns: list[str],
    seq_len: int | None,
    asked: dict[str, Any],
    show: str | None,
) -> list[Measure]:
    """What is measured of each model, in the order in which it was asked for.

    Raises:
        UserError: a suite that there is not, or data that cannot be used.
    """
    from mmcli.evaluation.evaluate import evaluate
    from mmcli.evaluation.figures import measure_suite
    from mmcli.evaluation.held_out import measure_loss
    from mmcli.evaluation.preferences import measure_preferences, split_pairs
    from mmcli.evaluation.suites import find_suite

    names = list(dict.fromkeys(suites or ([] if data is not None else ["demo"])))
    pairs, texts = split_pairs(data or [], built_in=PREFERENCES in names, columns=columns)
    if seq_len is not None and not texts:
        raise UserError("--seq-len is for the loss of a text", "leave it out: pairs are read whole")
    if pairs and PREFERENCES not in names:
        names.append(PREFERENCES)

    def ask(name: str) -> Measure:
        if find_suite(name).measure:
            for option, value in (("--show", show), ("--shuffle-answers", asked["shuffle_answers"])):
                if value:
                    raise UserError(f"{option} is for suites of questions, and {name} is measured", "leave it out")
            given = {key: value for key, value in asked.items() if key != "shuffle_answers"}
            return lambda ref, device, report: measure_suite(ref, name, device=device, report=report, **given)
        return lambda ref, device, report: evaluate(ref, name, device=device, report=report, **asked)

    def prefer(ref: ModelRef, device: str, report: Reporter) -> Result:
        return measure_preferences(ref, pairs or ["demo"], columns=columns, device=device, report=report)

    def lose(ref: ModelRef, device: str, report: Reporter) -> Result:
        return measure_loss(ref, texts, columns=columns, seq_len=seq_len, device=device, report=report)

    measures = [prefer if name == PREFERENCES else ask(name) for name in names]
    return [*measures, lose] if texts else measures

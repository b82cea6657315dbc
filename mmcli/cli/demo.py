"""`mmcli demo`: the full pipeline on the built-in corpus, each stage a run of its own that can be resumed."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcli.cli.help import App
from mmcli.cli.options import AsJson, RunsDir

if TYPE_CHECKING:
    from mmcli.run import ModelRef, Run
    from mmcli.stage import Reporter

app = App()
LABEL = "demo"
VOCAB_SIZE = 2048  # the corpus is small: more tokens would glue names to their neighbours
STEPS = {"pretrain": 1600, "sft": 800, "dpo": 60}
OPENINGS = ("Once upon a time in ", "从前，在", "Monday, Tuesday, ")
QUESTIONS = ("Who are you?", "How much is 7 plus 6?", "小梅住在哪里？")


@app.command()
def demo(
    pretrain_steps: Annotated[int, typer.Option(help="Optimizer steps of pretraining.", min=1)] = STEPS["pretrain"],
    sft_steps: Annotated[int, typer.Option(help="Optimizer steps of SFT.", min=1)] = STEPS["sft"],
    dpo_steps: Annotated[int, typer.Option(help="Optimizer steps of DPO.", min=1)] = STEPS["dpo"],
    limit: Annotated[int, typer.Option(help="Held-out questions of each family for the scores.", min=1)] = 40,
    runs_dir: RunsDir = Path("runs"),
    json: AsJson = False,
) -> None:
    """Run every stage on the built-in corpus: tokenizer, pretrain, sft, dpo, ONNX; with scores and replies.

    Resumes if interrupted. Example: mmcli demo
    """
    from mmcli.cli.console import print_json, reporter
    from mmcli.find import find_model

    report = reporter()
    steps = {"pretrain": pretrain_steps, "sft": sft_steps, "dpo": dpo_steps}
    runs = {"tokenizer": _tokenizer(runs_dir, report)}
    for stage, count in steps.items():
        runs[stage] = _stage(stage, count, runs, runs_dir, report)
    models = {stage: find_model(runs[stage].name, runs_dir) for stage in steps}
    models["dpo, ONNX int8"] = _export(models["dpo"], report)
    report.note("\n6. the held-out questions")
    scores = {name: _score(model, limit, report) for name, model in models.items()}
    continued = _write(models["pretrain"], OPENINGS, chat=False)
    replies = _write(models["dpo, ONNX int8"], QUESTIONS, chat=True)
    if json:
        names = {stage: run.name for stage, run in runs.items()}
        print_json({"runs": names, "scores": scores, "continuations": continued, "replies": replies})
        return
    _show(scores, continued, replies, runs_dir)


def _newest(stage: str, runs_dir: Path) -> tuple[Run | None, str]:
    """The demo's newest run of a stage, and its state."""
    from mmcli.run import list_runs

    for run in reversed(list_runs(runs_dir)):
        if run.stage == stage and run.name.endswith(f"-{LABEL}"):
            return run, str(run.info()["state"])
    return None, ""


def _tokenizer(runs_dir: Path, report: Reporter) -> Run:
    from mmcli.stages.tokenizer import save_run, train_on

    run, state = _newest("tokenizer", runs_dir)
    if run is not None and state == "finished":
        report.note(f"1. tokenizer: done, {run.name}")
        return run
    report.note("1. a tokenizer from the built-in corpus")
    return save_run(train_on(["demo"], report, vocab_size=VOCAB_SIZE), runs_dir, LABEL)


def _stage(stage: str, steps: int, before: Mapping[str, Run], runs_dir: Path, report: Reporter) -> Run:
    """Run one stage of the demo, resume it, or take it as done."""
    from mmcli import runner
    from mmcli.cli.console import reporter
    from mmcli.config import Layer

    number = len(before) + 1
    run, state = _newest(stage, runs_dir)
    if run is not None and state == "finished":
        report.note(f"{number}. {stage}: done, {run.name}")
        return run
    report.note(f"\n{number}. {stage}")
    if run is not None and (run.path / "config.toml").is_file():
        return runner.resume(run, reporter(run.metrics))
    source = "data.tokenizer" if stage == "pretrain" else "train.start_from"
    own = [Layer("demo", {"train.steps": steps, source: list(before.values())[-1].name})]
    return runner.start(runner.load_stage(stage), own, runs_dir=runs_dir, name=LABEL, report=report)


def _export(model: ModelRef, report: Reporter) -> ModelRef:
    """The proven int8 export of the last model."""
    from mmcli.export.locate import default_folder, find_export
    from mmcli.export.onnx_export import export_onnx
    from mmcli.run import ModelRef

    folder = find_export(model, "int8")
    if folder is not None:
        report.note("5. export: done")
    else:
        report.note("\n5. export to ONNX, int8")
        folder = default_folder(model, "int8")
        proof = export_onnx(model.path, folder, dtype="int8", stage="dpo", report=report).proof
        report.note(f"proven: perplexity {proof.perplexity_torch:.4g} in torch, {proof.perplexity_onnx:.4g} in ONNX")
    return ModelRef(folder, None)


def _score(model: ModelRef, limit: int, report: Reporter) -> dict[str, Any]:
    """The held-out score of a model: of all questions, and by family."""
    from mmcli.evaluation.evaluate import evaluate
    from mmcli.evaluation.keep import keep_result
    from mmcli.evaluation.scores import family_scores

    result = evaluate(model, "demo", limit=limit, backend=_backend(model), report=report)
    keep_result(model, result, report)
    by_family = {name: score.share for name, score in family_scores(result.families).items()}
    return {"score": result.total.share, "families": by_family}


def _backend(model: ModelRef) -> str:
    return "torch" if (model.path / "model.safetensors").is_file() else "onnx"


def _write(model: ModelRef, prompts: Sequence[str], *, chat: bool) -> list[dict[str, str]]:
    """The greedy reply of a model to each prompt."""
    from mmcli.evaluation.engines import load_engine
    from mmcli.generate.conversation import Conversation
    from mmcli.generate.sampler import SamplingConfig
    from mmcli.text.tokenizer import Tokenizer

    engine, tokenizer = load_engine(model, _backend(model)), Tokenizer.load(model.path)
    # A small model's continuation runs in circles; an answer such as "7 + 7 = 14" has to repeat.
    sampling = SamplingConfig(temperature=0.0, repetition_penalty=1.0 if chat else 1.1)
    said = []
    for prompt in prompts:
        talk = Conversation(engine, tokenizer, sampling=sampling, max_new_tokens=48, chat=chat)
        said.append({"prompt": prompt, "text": "".join(talk.reply(prompt))})
    return said


def _show(
    scores: Mapping[str, Any],
    continued: Sequence[Mapping[str, str]],
    replies: Sequence[Mapping[str, str]],
    runs_dir: Path,
) -> None:
    from rich.table import Table

    from mmcli.cli.console import out
    from mmcli.cli.progress import one_line, sample_text

    console = out()
    table = Table(box=None, pad_edge=False)
    table.add_column("correct answers by stage")
    for name in scores:
        table.add_column(name, justify="right")
    families = next(iter(scores.values()))["families"]
    for family in families:
        table.add_row(family, *(f"{score['families'][family]:.0%}" for score in scores.values()))
    table.add_row("all", *(f"{score['score']:.0%}" for score in scores.values()), style="bold")
    console.print(table, soft_wrap=False)
    console.print("\nafter pretrain, it continues texts (torch)", style="bold")
    for each in continued:
        console.print(one_line(sample_text(each["prompt"], each["text"]), 240), markup=False)
    console.print("\nafter dpo, it answers (ONNX Runtime, int8)", style="bold")
    for each in replies:
        console.print(f"> {each['prompt']}\n{one_line(each['text'], 240)}", markup=False)
    where = "" if runs_dir == Path("runs") else f" --runs-dir {shlex.quote(str(runs_dir))}"
    console.print(f"\ntalk to it: {_program()} chat{where}", markup=False, soft_wrap=True)


def _program() -> str:
    """How a person calls mmcli: `make demo` has it in a folder of its own, which is not on PATH."""
    here = Path(sys.argv[0])
    return "mmcli" if shutil.which("mmcli") or here.name != "mmcli" else shlex.quote(str(here))

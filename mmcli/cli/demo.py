"""`mmcli demo`: the whole way on the built-in corpus, each part a run of its own that can be resumed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcli.cli.options import HELP, AsJson, RunsDir

if TYPE_CHECKING:
    from mmcli.run import ModelRef, Run
    from mmcli.stage import Reporter

app = typer.Typer(context_settings=HELP)
LABEL = "demo"
STEPS = {"pretrain": 300, "sft": 150, "dpo": 40}
PROMPTS = ("Once upon a time in ", "从前，在", "5 + 3 = ")
QUESTIONS = ("Who are you?", "Where does Adam live?", "小梅住在哪里？", "7 + 6 = ?")


@app.command()
def demo(
    pretrain_steps: Annotated[int, typer.Option(help="Optimizer steps of pretraining.", min=1)] = STEPS["pretrain"],
    sft_steps: Annotated[int, typer.Option(help="Optimizer steps of learning to answer.", min=1)] = STEPS["sft"],
    dpo_steps: Annotated[int, typer.Option(help="Optimizer steps of learning to prefer.", min=1)] = STEPS["dpo"],
    limit: Annotated[int, typer.Option(help="Held-out questions of each family for the scores.", min=1)] = 60,
    runs_dir: RunsDir = Path("runs"),
    json: AsJson = False,
) -> None:
    """Go the whole way on the built-in corpus: tokenizer, pretrain, sft, dpo, scores and replies.

    Stopped in the middle, it goes on where it was. Example: mmcli demo
    """
    from mmcli.cli.console import print_json, reporter
    from mmcli.run import find_model

    report = reporter()
    _tokenizer(runs_dir)
    steps = {"pretrain": pretrain_steps, "sft": sft_steps, "dpo": dpo_steps}
    runs: dict[str, Run] = {}
    for stage, count in steps.items():
        runs[stage] = _stage(stage, count, runs, runs_dir)
    report.note("")
    scores = {stage: _score(find_model(run.name, runs_dir), limit, report) for stage, run in runs.items()}
    texts = _write(runs["pretrain"], PROMPTS), _write(runs["dpo"], QUESTIONS)
    if json:
        print_json(
            {
                "runs": {stage: run.name for stage, run in runs.items()},
                "scores": scores,
                "continuations": texts[0],
                "replies": texts[1],
            }
        )
        return
    _show(scores, *texts)


def _finished(stage: str, runs_dir: Path) -> tuple[Run | None, bool]:
    """(the demo's newest run of this stage, is it finished)."""
    from mmcli.run import list_runs

    for run in reversed(list_runs(runs_dir)):
        if run.stage == stage and run.name.endswith(f"-{LABEL}"):
            return run, run.info()["state"] == "finished"
    return None, False


def _tokenizer(runs_dir: Path) -> None:
    from mmcli.cli.console import reporter
    from mmcli.cli.tokenizer import train

    run, finished = _finished("tokenizer", runs_dir)
    if run is not None and finished:
        reporter().note(f"done already: {run.name}")
        return
    reporter().note("1. a tokenizer, from the built-in corpus")
    train(data=["demo"], vocab_size=6400, pretokenizer="qwen2", out=None, name=LABEL, runs_dir=runs_dir, json=False)


def _stage(stage: str, steps: int, before: dict[str, Run], runs_dir: Path) -> Run:
    """Run one stage of the demo, go on with it, or take it as done."""
    from mmcli.cli.console import reporter
    from mmcli.cli.stages import load_stage
    from mmcli.cli.training import execute, resume_run, stage_layers
    from mmcli.config import Layer, resolve

    run, finished = _finished(stage, runs_dir)
    if run is not None and finished:
        reporter().note(f"done already: {run.name}")
        return run
    number = list(STEPS).index(stage) + 2
    reporter().note(f"\n{number}. {stage}")
    if run is not None and (run.path / "config.toml").is_file() and run.info()["state"] != "running":
        return resume_run(run)
    loaded = load_stage(stage)
    values: dict[str, Any] = {"train.steps": steps}
    if stage == "pretrain":
        values["data.tokenizer"] = _named("tokenizer", runs_dir)
    else:
        values["train.start_from"] = list(before.values())[-1].name
    flags = [Layer("demo", values)]
    preset = "tiny" if stage == "pretrain" else None
    layers, preset = stage_layers(loaded, flags, config=None, set=[], preset=preset, runs_dir=runs_dir)
    return execute(loaded, resolve(loaded.config, layers), runs_dir, name=LABEL, preset=preset)


def _named(stage: str, runs_dir: Path) -> str:
    run, _ = _finished(stage, runs_dir)
    assert run is not None
    return run.name


def _score(found: ModelRef, limit: int, report: Reporter) -> dict[str, Any]:
    """The held-out score of a run: of all questions, and by family."""
    from mmcli.cli.eval import ask_demo
    from mmcli.generate.evaluate import add_scores, scores, total_score

    families = scores(ask_demo(found, limit, report=report).replies)
    by_family = {name: add_scores(languages.values()).share for name, languages in families.items()}
    return {"score": total_score(families).share, "families": by_family}


def _write(run: Run, prompts: Sequence[str]) -> list[dict[str, str]]:
    """What the model of a run says to each prompt, greedily."""
    from mmcli.generate.conversation import Conversation
    from mmcli.generate.sampler import SamplingConfig
    from mmcli.generate.torch_engine import TorchEngine
    from mmcli.text.tokenizer import Tokenizer

    engine, tokenizer = TorchEngine.load(run.model), Tokenizer.load(run.model)
    said = []
    for prompt in prompts:
        talk = Conversation(
            engine,
            tokenizer,
            sampling=SamplingConfig(temperature=0.0, repetition_penalty=1.1),
            max_new_tokens=60,
            chat=run.stage != "pretrain",
        )
        said.append({"prompt": prompt, "text": "".join(talk.reply(prompt))})
    return said


def _show(scores: dict[str, Any], continued: list[dict[str, str]], replies: list[dict[str, str]]) -> None:
    from rich.table import Table

    from mmcli.cli.console import one_line, out

    console = out()
    families = sorted({family for score in scores.values() for family in score["families"]})
    table = Table(title="held-out questions, share answered right", box=None, pad_edge=False, title_justify="left")
    table.add_column("after")
    for family in [*families, "all"]:
        table.add_column(family, justify="right")
    for stage, score in scores.items():
        shares = [f"{score['families'][family]:.0%}" for family in families]
        table.add_row(stage, *shares, f"{score['score']:.0%}")
    console.print(table)
    console.print("\nafter pretrain, it continues texts", style="bold")
    for each in continued:
        console.print(one_line(each["prompt"] + each["text"], 240), markup=False)
    console.print("\nafter dpo, it answers", style="bold")
    for each in replies:
        console.print(f"> {each['prompt']}", markup=False)
        console.print(one_line(each["text"], 240), markup=False)
    console.print("\ntalk to it: mmcli chat", markup=False)

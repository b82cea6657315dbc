"""`mmcli demo`: the full pipeline on the built-in corpus, each stage a run of its own that can be resumed."""

from __future__ import annotations

import json as json_module
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcli.cli.help import App
from mmcli.cli.options import AsJson, RunsDir

if TYPE_CHECKING:
    from mmcli.cli.demo_view import Facts
    from mmcli.run import ModelRef, Run
    from mmcli.stage import Reporter

app = App()
LABEL = "demo"
VOCAB_SIZE = 4096  # a word to translate is one token, in both languages
TOKEN_BYTES = 9  # three Chinese characters: a clause in one token could not be put in another way
BUDGET = "10m"
SHARES = {"pretrain": 0.68, "sft": 0.32}  # of the steps of both, and of their time
FEWEST, MOST = 2300, 5000  # of the steps of both, where no time and no steps are asked for
DPO_STEPS = 60
SEQ_LEN, ROWS = 320, 4  # a conversation with tools fits into a row
TEXT, CHATS = "demo:text", "demo:chat"
# What this model learns soonest with; asked from its first step, it answers from what it read. See
# docs/decisions/008-demo-recipe.md.
MODEL = {"model.qk_norm": True, "model.tie_embeddings": False, "model.n_kv_heads": 4}
OPTIM = {
    "optim.optimizer": "muon",
    "optim.schedule": "linear",
    "optim.beta2": 0.99,
    "optim.embedding_lr_factor": 8.0,
    "optim.head_lr_factor": 2.0,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "pretrain": {
        "data.sources": [TEXT, CHATS],
        "data.seq_len": SEQ_LEN,
        "train.batch_size": ROWS,
        "optim.lr": 4e-3,
        "optim.min_lr_ratio": 0.3,
        **MODEL,
        **OPTIM,
    },
    "sft": {
        "data.sources": [f"{TEXT}:0.35", f"{CHATS}:0.65"],
        "data.seq_len": SEQ_LEN,
        "train.batch_size": ROWS,
        "optim.lr": 1.2e-3,
        "optim.min_lr_ratio": 0.0,
        **OPTIM,
    },
    "dpo": {},
}
KEPT = "demo.json"  # in the folder of the runs: what the demo showed last
ONNX = "dpo, ONNX int8"
PASSES = 0.8  # of the time of a step are forward and backward passes over its rows; the rest is the update
OTHER_SECONDS = 100.0  # tokenizer, encoding, dpo, export, questions
RESERVE = 0.03  # of the budget
LEAST_TRAINING_SECONDS = 60.0


@app.command()
def demo(
    budget: Annotated[
        str | None,
        typer.Option(help="Time for all of it, such as 20m; default: 10m, or what a good model takes.", metavar="TIME"),
    ] = None,
    pretrain_steps: Annotated[
        int | None, typer.Option(help="Optimizer steps of pretraining, whatever time they take.", min=1)
    ] = None,
    sft_steps: Annotated[int | None, typer.Option(help="Optimizer steps of SFT, likewise.", min=1)] = None,
    dpo_steps: Annotated[int, typer.Option(help="Optimizer steps of DPO.", min=1)] = DPO_STEPS,
    limit: Annotated[
        int | None, typer.Option(help="Held-out questions of each family for the scores; default: all.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the training.", min=0)] = 0,
    runs_dir: RunsDir = Path("runs"),
    json: AsJson = False,
) -> None:
    """Run every stage on the built-in corpus: tokenizer, pretrain, sft, dpo, ONNX; with scores and replies.

    Resumes if interrupted. Example: mmcli demo
    """
    from mmcli.cli.console import print_json, reporter
    from mmcli.cli.demo_view import Facts, announcement, converse, show
    from mmcli.files import write_json
    from mmcli.find import find_model

    began, report = time.perf_counter(), reporter()
    kept = runs_dir / KEPT
    facts = _read_facts(kept, limit, runs_dir)
    if facts is not None:
        report.note("the demo is done; this is what it made (mmcli runs remove takes runs away)")
    else:
        length = _length(budget, {"pretrain": pretrain_steps, "sft": sft_steps})
        report.note(announcement(length.seconds, length.parameters))
        runs = {"tokenizer": _tokenizer(runs_dir, report)}
        trained = {**length.stages, "dpo": {"train.steps": dpo_steps}}
        for stage, values in trained.items():
            runs[stage] = _stage(stage, {**values, "train.seed": seed}, runs, runs_dir, report)
        models = {stage: find_model(runs[stage].name, runs_dir) for stage in trained}
        models[ONNX] = _export(models["dpo"], report)
        report.note("\n6. the held-out questions")
        scores = {name: _score(model, limit, report) for name, model in models.items()}
        preferred = {name: _preferred(models[name], report) for name in ("sft", "dpo")}
        said = converse(models[ONNX])
        names = {stage: run.name for stage, run in runs.items()}
        spent = sum(float(run.info().get("elapsed_seconds", 0.0)) for run in runs.values())
        facts = Facts(names, scores, preferred, said, length.parameters, max(spent, time.perf_counter() - began))
        write_json(kept, {"limit": limit, **facts.to_json()})
    if json:
        print_json(facts.to_json())
    else:
        show(facts, runs_dir)


def _read_facts(path: Path, limit: int | None, runs_dir: Path) -> Facts | None:
    """What a demo made before, where all its runs are still there and finished."""
    from mmcli.cli.demo_view import Facts

    try:
        value = json_module.loads(path.read_text(encoding="utf-8"))
        if value.pop("limit") != limit:
            return None
        facts = Facts.from_json(value)
        newest = {stage: _newest(stage, runs_dir) for stage in facts.runs}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    same = all(run is not None and run.name == facts.runs[stage] for stage, (run, _) in newest.items())
    return facts if same and all(state == "finished" for _, state in newest.values()) else None


@dataclass(frozen=True)
class _Length:
    """How long the demo is going to take, and how much its stages train in that."""

    parameters: int
    seconds: float  # of everything
    stages: Mapping[str, Mapping[str, Any]]  # stage -> configuration of its steps and its time


def _length(budget: str | None, asked: Mapping[str, int | None]) -> _Length:
    """What fits into the time, by the speed of a few passes of such a model here.

    Without a budget it is `BUDGET`, or longer where the fewest steps of a good model take longer.

    Args:
        asked: steps of a stage, whatever time they take; None: what fits.

    Raises:
        UserError: the budget leaves no time for training.
    """
    from mmcli.config import Layer, preset_layers, resolve
    from mmcli.errors import UserError
    from mmcli.model.count import count_parameters
    from mmcli.model.transformer import Transformer
    from mmcli.stages import PretrainConfig
    from mmcli.train.bench import bench_train
    from mmcli.train.config import duration, parse_duration
    from mmcli.train.device import choose_accelerator

    training = (1.0 - RESERVE) * parse_duration(budget or BUDGET, "--budget") - OTHER_SECONDS
    if training < LEAST_TRAINING_SECONDS and None in asked.values():
        rest = f"all but the training takes about {duration(OTHER_SECONDS)}"
        raise UserError(f"--budget {budget} is too short: {rest}", "give 4m or more, or leave --budget out")
    layers = [*preset_layers("tiny", "pretrain"), Layer("demo", {"model.vocab_size": VOCAB_SIZE, **MODEL})]
    config = resolve(PretrainConfig, layers).config.model
    accelerator = choose_accelerator("auto", "auto", width=config.dim)
    speed = bench_train(Transformer(config), accelerator, batch_size=ROWS, seq_len=SEQ_LEN)
    step_seconds = ROWS * SEQ_LEN / (PASSES * speed.tokens_per_second)
    if budget is None:
        training = max(training, FEWEST * step_seconds)
    seconds, stages = OTHER_SECONDS, dict[str, dict[str, Any]]()
    for stage, share in SHARES.items():
        steps, time_given = asked[stage], share * training
        most = round(share * MOST) if budget is None else None
        if steps is not None:
            stages[stage] = {"train.steps": steps}
            time_given = steps * step_seconds
        else:
            stages[stage] = {"train.steps": most, "train.budget": duration(time_given)}
            time_given = min(time_given, most * step_seconds) if most else time_given
        seconds += time_given
    return _Length(count_parameters(config).total, seconds, stages)


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
    return save_run(
        train_on([TEXT, CHATS], report, vocab_size=VOCAB_SIZE, max_token_bytes=TOKEN_BYTES), runs_dir, LABEL
    )


def _stage(stage: str, values: Mapping[str, Any], before: Mapping[str, Run], runs_dir: Path, report: Reporter) -> Run:
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
    own = [Layer("demo", {**SETTINGS[stage], **values, source: list(before.values())[-1].name})]
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
        read = proof.perplexity["tokens"]
        report.note(f"verified: perplexity {read.torch:.4g} in torch, {read.onnx:.4g} in ONNX")
    return ModelRef(folder, None)


def _score(model: ModelRef, limit: int | None, report: Reporter) -> dict[str, Any]:
    """The held-out score of a model: of all questions, and by family."""
    from mmcli.evaluation.evaluate import evaluate
    from mmcli.evaluation.keep import keep_result
    from mmcli.evaluation.scores import family_scores

    result = evaluate(model, "demo", limit=limit, report=report)
    keep_result(model, result, report)
    families = {name: score.share for name, score in family_scores(result.families).items()}
    total = result.total
    return {"score": total.share, "interval": list(total.interval), "questions": total.total, "families": families}


def _preferred(model: ModelRef, report: Reporter) -> float:
    """The share of held-out pairs whose better reply is the likelier one."""
    from mmcli.evaluation.keep import keep_result
    from mmcli.evaluation.preferences import measure_preferences

    result = measure_preferences(model, report=report)
    keep_result(model, result, report)
    return result.by_sum.share

"""Runs and models by what a person calls them: a number, a name, a folder, `latest`, `latest:STAGE`, and of a run that
`/best`. No torch here."""

from __future__ import annotations

import json
import os
from pathlib import Path

from mmcli.errors import UserError, did_you_mean
from mmcli.run import BEST, ONNX_GRAPH, RUN_NAME, ModelRef, Run, formerly, list_runs, model_at, where_now


class References:
    """The models that a person's words name, each looked for once: `latest` is the same run in all of one command."""

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir = runs_dir
        self._found: dict[str, ModelRef] = {}

    def model(self, ref: str) -> ModelRef:
        """The model (see `find_model`).

        Raises:
            UserError: there is none.
        """
        if ref not in self._found:
            self._found[ref] = find_model(ref, self.runs_dir)
        return self._found[ref]


def find_run(ref: str, runs_dir: Path) -> Run:
    """A run by number, name (also a former one), the name that it was given, folder, `latest` or `latest:STAGE`.

    Raises:
        UserError: there is none.
    """
    if _is_path(ref):
        return _run_at(ref)
    runs = list_runs(runs_dir)
    newest, _, of_stage = ref.partition(":")
    if newest == "latest" and runs:
        chosen = [run for run in runs if not of_stage or run.stage == of_stage]
        if not chosen:
            stages = ", ".join(dict.fromkeys(run.stage for run in runs))
            raise UserError(f'there is no run of stage "{of_stage}" in {runs_dir}', f"stages with runs: {stages}")
        return chosen[-1]
    for run in runs:
        if ref in (run.name, str(run.number), f"{run.number:04d}"):
            return run
    named = [run for run in runs if run.given_name == ref]
    if len(named) > 1:
        names = ", ".join(run.name for run in named)
        raise UserError(f'"{ref}" is the name of {len(named)} runs: {names}', "give the number of one of them")
    if named:
        return named[0]
    if RUN_NAME.match(ref) and (former := formerly(ref, runs_dir)) is not None:
        return former
    if Path(ref).is_dir():
        return _run_at(ref)
    if not runs:
        raise UserError(f"there is no run in {runs_dir}", "train one: mmcli pretrain")
    raise UserError(f'there is no run "{ref}" in {runs_dir}', "see them with: mmcli runs list")


def _is_path(ref: str) -> bool:
    """True for what can be nothing but a path."""
    return ref.startswith("~") or ref in (".", "..") or any(each in ref for each in ("/", os.sep))


def _run_at(ref: str) -> Run:
    """The run whose folder a person named.

    Raises:
        UserError: there is no such folder, or it is not one of a run.
    """
    folder = where_now(Path(ref).expanduser())
    if not folder.is_dir():
        raise UserError(f"there is no folder {ref}", "see the runs with: mmcli runs list")
    folder = folder if RUN_NAME.match(folder.name) else folder.resolve()
    if not RUN_NAME.match(folder.name):
        raise UserError(f"{ref} is not a run folder", "give one such as runs/0007-sft-small")
    return Run(folder)


def find_model(ref: str, runs_dir: Path) -> ModelRef:
    """The model a person named: a run (see `find_run`) that has a `model/`, or a model folder.

    `RUN/best` is the model with the best held-out value of a run: its `best/`, or its `model/` where it ended with it.
    `latest` passes over runs without a language model; `latest:tokenizer` finds a tokenizer run, `latest:reward` a
    reward model.

    Raises:
        UserError: there is none.
    """
    if ref.endswith(f"/{BEST}") and not Path(ref).expanduser().is_dir():
        return _find_best(ref.removesuffix(f"/{BEST}"), runs_dir)
    newest, _, of_stage = ref.partition(":")
    if newest == "latest":
        runs = list_runs(runs_dir)
        for run in runs:
            run.recover_model()
        runs = [run for run in runs if (run.model / "tokenizer.json").is_file()]
        chosen = [run for run in runs if (run.stage == of_stage if of_stage else _writes(run.model))]
        if not chosen:
            kind = f'run of stage "{of_stage}" with a model' if of_stage else "trained model yet"
            raise UserError(f"there is no {kind} in {runs_dir}", _how_to_get(of_stage, runs_dir))
        return ModelRef(chosen[-1].model, chosen[-1])
    folder = where_now(Path(ref).expanduser())
    if _is_model(folder):
        return model_at(folder)
    if _is_path(ref) and folder.is_dir() and not RUN_NAME.match(folder.resolve().name):
        if _is_model(folder / "model"):
            return ModelRef(folder / "model", None)
        raise UserError(f"{ref} holds no model", "give a folder with config.json and model.safetensors, or a run")
    run = find_run(ref, runs_dir)
    run.recover_model()
    if not (run.model / "tokenizer.json").is_file():
        what = f"{run.name} has no saved model (state: {run.info()['state']})"
        raise UserError(what, f"resume it: mmcli resume {ref}")
    return ModelRef(run.model, run)


def _find_best(ref: str, runs_dir: Path) -> ModelRef:
    newest = ref.partition(":")[0] == "latest"
    run = find_model(ref, runs_dir).run if newest else find_run(ref, runs_dir)
    assert run is not None  # `latest` is one
    run.recover_model()
    if run.best.is_dir():
        return ModelRef(run.best, run)
    if "best" in run.info():
        return find_model(str(run.path), runs_dir)
    what = f"{run.name} has no best model: it takes data that are held out (--val), and train.keep_best"
    raise UserError(what, f"take the model that it ended with: {ref}")


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "tokenizer.json", ONNX_GRAPH))


def find_language_model(ref: str, runs_dir: Path) -> ModelRef:
    """The model a person named (see `find_model`), which must be one that writes.

    Raises:
        UserError: there is none, or it is a tokenizer or a reward model.
    """
    found = find_model(ref, runs_dir)
    if not (found.path / "config.json").is_file():
        raise UserError(f"{found.label} is a tokenizer without a model", "train one: mmcli pretrain")
    if is_reward_model(found.path):
        raise UserError(f"{found.label} is a reward model: it scores replies and writes none", "give a language model")
    return found


def is_reward_model(folder: Path) -> bool:
    """True of a model whose config.json says that it classifies sequences, as reward models do."""
    try:
        names = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
        return str(names[0]).endswith("ForSequenceClassification")
    except (OSError, ValueError, KeyError, TypeError, IndexError):  # whoever reads the file says what is wrong with it
        return False


def _writes(folder: Path) -> bool:
    return (folder / "config.json").is_file() and not is_reward_model(folder)


def _how_to_get(stage: str, runs_dir: Path) -> str:
    """Advice where `latest` or `latest:STAGE` finds no model: the command that makes one, or the closest stage."""
    commands = {"pretrain": "pretrain", "sft": "sft", "dpo": "dpo", "tokenizer": "tokenizer train", "import": "import"}
    commands = {**{run.stage: run.stage for run in list_runs(runs_dir)}, **commands}  # stages of plugins, too
    if not stage or stage in commands:
        return f"run: mmcli {commands[stage or 'pretrain']}"
    return did_you_mean(stage, list(commands))


def find_unfinished(runs_dir: Path, stage: str | None = None) -> Run:
    """The newest run of `stage` that can be resumed: not finished, with a stored config.

    Raises:
        UserError: there is none, or it is still running.
    """
    of = f" of stage {stage}" if stage else ""
    for run in reversed(list_runs(runs_dir)):
        if (stage is None or run.stage == stage) and (run.path / "config.toml").is_file():
            state = run.info()["state"]
            if state in ("stopped", "failed"):
                return run
            if state == "running":
                raise run.still_running()
    raise UserError(f"there is no unfinished run{of} in {runs_dir}", f"start one: mmcli {stage or 'pretrain'}")

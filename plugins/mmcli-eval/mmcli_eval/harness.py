"""`mmcli eval --suite lm-eval:TASK`: tasks of lm-evaluation-harness, asked of mmcli's engine."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcli.api import ConfigError, Figure, SuiteRequest, UserError, did_you_mean, option
from mmcli_eval.argument import read_argument

EXAMPLE = "lm-eval:arc_easy,num_fewshot=5"
SHARES = ("acc", "exact_match", "em", "f1", "mcc", "mc1", "mc2", "pass@")
_TASK = re.compile(r"^task:\s*[\"']?([^\s\"'#]+)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class HarnessConfig:
    """What may follow the names of tasks."""

    num_fewshot: int | None = option(None, "examples before each question; default: as the task has it")
    chat: bool = option(False, "ask through the model's chat template")
    bos: bool = option(True, "begin each text with the bos token, as documents do in training")

    def __post_init__(self) -> None:
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise ConfigError("num_fewshot", f"num_fewshot = {self.num_fewshot} is below 0", "give 0 or more")


def measure(request: SuiteRequest) -> list[Figure]:
    """Every measure of every task, in the order of lm_eval.

    Raises:
        UserError: lm_eval is not installed, there is no such task or file, or its data cannot be had.
    """
    names, config = read_argument("lm-eval", request.argument, HarnessConfig, EXAMPLE)
    if request.backend != "torch":
        raise UserError(f"lm-eval needs the likelihoods of torch, not --backend {request.backend}", "leave it out")
    os.environ.setdefault("TQDM_DISABLE", "1")  # progress is told through the report
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(f"lm-eval: {error}", "install it: pip install 'mmcli-eval[lm-eval]'") from None
    from mmcli_eval.engine_lm import EngineLM

    files = [Path(name) for name in names if name.endswith((".yaml", ".yml"))]
    tasks = [_task_of(Path(name)) if Path(name) in files else name for name in names]
    folder = _folder_of(files)
    manager = TaskManager(include_path=None if folder is None else str(folder))
    for task in tasks:
        if not manager.match_tasks([task]):
            raise UserError(f"lm_eval has no task {task}", did_you_mean(task, list(manager.all_tasks)))
    lm = EngineLM.load(request.model, device=request.device, chat=config.chat, bos=config.bos, report=request.report)
    request.report.note(f"{request.model.label}: {', '.join(tasks)} of lm_eval {lm_eval.__version__}")
    # Data files that a task of your own names lie beside it.
    with contextlib.chdir(folder) if folder is not None else contextlib.nullcontext():
        try:
            found = lm_eval.simple_evaluate(
                model=lm,
                tasks=tasks,
                num_fewshot=config.num_fewshot,
                limit=request.limit,
                log_samples=False,
                apply_chat_template=config.chat,
                fewshot_as_multiturn=config.chat,
                gen_kwargs=None if request.max_new_tokens is None else {"max_gen_toks": request.max_new_tokens},
                task_manager=manager,
                bootstrap_iters=1000,
                verbosity="ERROR",
            )
        except (UserError, KeyboardInterrupt):
            raise
        except Exception as error:
            line = (str(error).splitlines() or [""])[0]
            what = f"lm_eval cannot measure {', '.join(tasks)}: {type(error).__name__}: {line}"
            raise UserError(what, "check the task; data of the hub needs the network") from error
    assert found is not None
    return read_figures(found)


def _task_of(file: Path) -> str:
    """The name of the task in a YAML file.

    Raises:
        UserError: there is no such file, or no task in it.
    """
    try:
        match = _TASK.search(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}", "name a YAML file of lm_eval, or one of its tasks") from None
    except UnicodeDecodeError:
        match = None
    if match is None:
        raise UserError(f"{file} names no task", "begin it with a line such as: task: my_task")
    return match[1]


def _folder_of(files: list[Path]) -> Path | None:
    """The folder of the task files; None without any.

    Raises:
        UserError: they lie in several.
    """
    folders = list(dict.fromkeys(file.resolve().parent for file in files))
    if len(folders) > 1:
        raise UserError(f"task files in {folders[0]} and in {folders[1]}", "give them as two --suite, or in one folder")
    return folders[0] if folders else None


def read_figures(found: Mapping[str, Any]) -> list[Figure]:
    """The figures of what `lm_eval.simple_evaluate` gives: `acc,none` with its `acc_stderr,none`."""
    figures = []
    for task, values in found["results"].items():
        count = found.get("n-samples", {}).get(task, {}).get("effective")
        for key, value in values.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            figures.append(
                Figure(
                    task=task,
                    name=metric if kind == "none" else f"{metric} ({kind})",
                    value=float(value),
                    error=float(error) if isinstance(error, int | float) else None,
                    questions=count,
                    format=".1%" if metric.startswith(SHARES) and 0 <= value <= 1 else ".4f",
                )
            )
    return figures

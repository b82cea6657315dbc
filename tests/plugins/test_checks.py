"""The conformance kit: what is right passes, and each kind of fault is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mmcli.cli import run
from mmcli.config import ConfigError, option
from mmcli.errors import MmcliError, UserError
from mmcli.run import Run
from mmcli.testing import check_adapter, check_reward, check_stage, check_suite, tiny_corpus
from mmcli.testing.checks import Check, attempt, check_values, two_lines
from mmcli.testing.trainings import difference, not_finite


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain", "sft", "dpo", "continue"])
def test_the_stages_here_do_what_every_stage_must(
    name: str, real: Any, see: Callable[[Any], None], tmp_path: Path
) -> None:
    see(real)
    checks = list(check_stage(name, folder=tmp_path))
    assert [check for check in checks if check.problem] == []
    assert len(checks) == 7


@pytest.mark.slow
def test_lora_does_what_every_adapter_must(real: Any, see: Callable[[Any], None], tmp_path: Path) -> None:
    see(real)
    checks = list(check_adapter("lora", ["rank=4"], folder=tmp_path))
    assert [check for check in checks if check.problem] == []
    assert len(checks) == 10


def test_the_built_in_suite_does_what_every_suite_must(tmp_path: Path) -> None:
    assert [check for check in check_suite("demo", folder=tmp_path) if check.problem] == []


def test_whatever_a_check_raises_is_its_problem() -> None:
    def leave() -> None:
        raise SystemExit(3)

    def refuse() -> None:
        raise UserError("wrong", "do it right")

    assert attempt("fine", lambda: None).problem == ""
    assert attempt("leaves", leave).problem == "SystemExit: 3"
    assert attempt("refused", refuse).problem == "wrong (do it right)"


def test_an_error_that_is_not_two_lines_is_found() -> None:
    def refuse(what: str, fix: str) -> Callable[[], None]:
        def work() -> None:
            raise UserError(what, fix)

        return work

    assert two_lines(refuse("wrong", "do it right")) is None
    assert two_lines(lambda: None) == "it is not refused"
    assert "what to do is not one line" in str(two_lines(refuse("wrong", "")))
    assert "what is wrong is not one line" in str(two_lines(refuse("wrong\nvery", "do it right")))


@dataclass(frozen=True, kw_only=True)
class Careless:
    """A config that divides by what it is given."""

    share: float = option(0.5, "a share")
    label: str | None = option(None, "a text")

    def __post_init__(self) -> None:
        assert 1 / self.share


@dataclass(frozen=True, kw_only=True)
class Careful:
    """A config that refuses what it cannot use."""

    share: float = option(0.5, "a share")

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError("share", f"share = {self.share} is not between 0 and 1", "give a share such as 0.5")


def test_odd_values_that_a_config_does_not_refuse_in_two_lines_are_found() -> None:
    assert check_values(Careful, []).problem == ""
    assert check_values(Careless, []).problem.startswith("share = 0.0 raises ZeroDivisionError")
    assert check_values(Careless, [], own=lambda key: key == "label").problem == ""


def made_run(folder: Path, losses: list[float | None], weights: bytes = b"w") -> Run:
    made = Run.create(folder, "pretrain", "made")
    made.update(metrics=[{"name": "loss"}, {"name": "val_loss"}])
    lines = [json.dumps({"step": step, "loss": loss}) for step, loss in enumerate(losses, 1)]
    made.metrics.write_text("\n".join(lines), encoding="utf-8")
    made.model.mkdir()
    (made.model / "model.safetensors").write_bytes(weights)
    return made


def test_what_differs_between_two_runs_is_named(tmp_path: Path) -> None:
    run = made_run(tmp_path, [2.0, 1.0])
    assert difference(run, made_run(tmp_path, [2.0, 1.0])) is None
    assert difference(run, made_run(tmp_path, [2.0, 1.000001])) == "step 2: loss is 1.000001 instead of 1.0"
    assert difference(run, made_run(tmp_path, [2.0, 1.000001]), tolerance=1e-5) is None
    assert difference(run, made_run(tmp_path, [2.0, 1.1]), tolerance=1e-5) == "step 2: loss is 1.1 instead of 1.0"
    assert difference(run, made_run(tmp_path, [2.0, None])) == "step 2: loss is None instead of 1.0"
    assert difference(run, made_run(tmp_path, [2.0])) == "1 lines of metrics instead of 2"
    assert difference(run, made_run(tmp_path, [2.0, 1.0], b"other")) == "model/model.safetensors has other bytes"


def test_a_metric_that_is_missing_or_not_finite_is_named(tmp_path: Path) -> None:
    assert not_finite(made_run(tmp_path, [2.0, 1.0])) is None
    assert not_finite(made_run(tmp_path, [2.0, float("nan")])) == "the metric loss is not finite"
    assert not_finite(made_run(tmp_path, [None])) == "the metric loss is never logged"


SUITE = """
from mmcli.api import Suite, SuiteItem
SUITE = Suite(name="odd", summary="Odd.", items="p_odd:items", judge="p_odd:judge")
asked = ({"role": "user", "content": "What colour is snow?"},)
def items():
    return [SuiteItem(id="snow", messages=asked, answers=("white",))] * 2
def judge(item, reply):
    return True
"""


def test_faults_of_a_suite_are_found_and_end_with_exit_code_1(
    tmp_path: Path, new_site: Any, see: Callable[[Any], None], capsys: pytest.CaptureFixture[str]
) -> None:
    site = new_site(tmp_path)
    site.add("p-odd", {"mmcli.suites": {"odd": "p_odd:SUITE"}}, SUITE)
    see(site)
    assert run(["plugins", "check", "odd", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [row["problem"] for row in rows] == [
        *("", "2 questions have the id snow", "snow: an empty reply is judged right", "")
    ]
    assert {row["kind"] for row in rows} == {"suite"} and {row["package"] for row in rows} == {"p-odd"}
    assert run(["plugins", "check", "odd"]) == 1
    shown = capsys.readouterr().out
    assert shown.startswith('suite "odd" of p-odd 1.0\n')
    assert "  failed  its judge takes each first answer, and no empty reply\n" in shown
    assert max(map(len, shown.splitlines())) <= 80


REWARD = """
import math
from mmcli.api import Reward
REWARD = Reward(name="odd", summary="Odd.", function="p_odd:score")
seen = []
def score(attempt):
    seen.append(attempt)
    return 1.0
"""


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("1.0", ""),
        ("len(seen)", "then another number"),
        ("None", "gives NoneType, not a number"),
        ("math.log(len(attempt.reply))", "raises ValueError"),
        ("float(attempt.reply == '1e999 nan') * math.inf", "it gives nan"),
        ("attempt.record.clear() or 1", "it changes what it is given"),
    ],
)
def test_faults_of_a_reward_are_found(
    value: str, problem: str, tmp_path: Path, new_site: Any, see: Callable[[Any], None]
) -> None:
    site = new_site(tmp_path)
    site.add("p-odd", {"mmcli.rewards": {"odd": "p_odd:REWARD"}}, REWARD.replace("1.0", value))
    see(site)
    checks = list(check_reward("odd"))
    assert len(checks) == 3 and checks[0].problem == ""
    assert problem in " ".join(check.problem for check in checks)
    assert any(check.problem for check in checks) == bool(problem)


def test_the_rewards_here_do_what_every_reward_must(real: Any, see: Callable[[Any], None]) -> None:
    see(real)
    for name in ("exact-answer", "format", "length"):
        assert [check for check in check_reward(name) if check.problem] == []
    with pytest.raises(UserError, match="no model is named"):
        next(check_reward("model"))


FORGETFUL = """
from dataclasses import dataclass, replace
from mmcli.api import PretrainConfig, Stage
STAGE = Stage(name="forget", summary="Pretrain.", config=PretrainConfig, run="p_forget:run", example="mmcli forget")
seen = 0
def run(config, context):
    import mmcli.api as mm
    data = mm.open_data("text", config.data)
    start = mm.prepare_start(config.model, data, config.train, context)
    rows = mm.open_rows(data, config.train, start.tokenizer, context)
    task = mm.token_task(start, rows, config.train, context)
    def loss(model, batch):
        global seen
        seen += 1
        out = mm.language_model_loss(model, batch, start.model.config)
        return replace(out, terms={**out.terms, "loss": replace(out.terms["loss"], coef=1 + seen)})
    return mm.train(replace(task, loss=loss), config.optim, config.train, context)
"""


@pytest.mark.slow
def test_a_stage_that_keeps_state_of_its_own_does_not_resume_exactly(
    tmp_path: Path, new_site: Any, see: Callable[[Any], None]
) -> None:
    (tmp_path / "site").mkdir()
    site = new_site(tmp_path / "site")
    site.add_stage("p-forget", "forget", FORGETFUL)
    see(site)
    problems = {check.name: check.problem for check in check_stage("forget", folder=tmp_path / "work")}
    assert problems["trains, and every metric that it shows is finite"] == ""
    assert problems["resumes bit-exactly"] != ""


def test_a_stage_that_has_no_example_and_loads_torch_is_found(
    tmp_path: Path, new_site: Any, see: Callable[[Any], None]
) -> None:
    (tmp_path / "site").mkdir()
    site = new_site(tmp_path / "site")
    code = FORGETFUL.replace(', example="mmcli forget"', "").replace("seen = 0", "import torch")
    site.add_stage("p-forget", "forget", code)
    see(site)
    checks = check_stage("forget", folder=tmp_path / "work")
    assert "it imports torch" in next(checks).problem
    assert "its help imports torch" in next(checks).problem


def test_what_cannot_be_checked_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plugins", "check", "pretrian"]) == 2
    assert 'did you mean "pretrain"?' in capsys.readouterr().err
    with pytest.raises(MmcliError, match='no stage "nothing"'):
        next(check_stage("nothing", folder=Path("x")))


def test_the_tiny_corpus_has_records_of_each_kind(tmp_path: Path) -> None:
    files = tiny_corpus(tmp_path / "corpus")
    first = {kind: json.loads(path.read_text(encoding="utf-8").splitlines()[0]) for kind, path in files.items()}
    assert "text" in first["text"] and "messages" in first["chat"] and "chosen" in first["preference"]


def test_a_long_problem_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """Piped, too, where other lines are not wrapped."""
    from mmcli.cli.plugins import _show_check

    problem = "no data is taken: " + "; ".join(f"kind {n}: a reason of some words" for n in range(9))
    _show_check(Check("trains", problem))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "  failed  trains" and " ".join(line.strip() for line in lines[1:]) == problem
    assert all(line.startswith(" " * 10) and len(line) <= 80 for line in lines[1:])

"""lm-evaluation-harness on mmcli's engine: the numbers of its own Hugging Face model on the same weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mmcli_eval.harness import measure, read_figures

from mmcli.api import ModelRef, SuiteRequest, UserError, export_hf
from mmcli.cli import run
from mmcli.testing import tiny_model

REASON = "lm_eval is not installed (pip install 'lm_eval>=0.4.10'): 38 packages, so no part of the dev extra"


def test_figures_are_read_with_their_standard_errors() -> None:
    values = {
        "alias": "colours",
        "acc,none": 0.5,
        "acc_stderr,none": 0.25,
        "exact_match,strict": 1.0,
        "exact_match_stderr,strict": "N/A",
        "word_perplexity,none": 12.3456,
    }
    found = read_figures({"results": {"colours": values}, "n-samples": {"colours": {"effective": 4}}})
    assert [(each.task, each.name, each.text, each.questions) for each in found] == [
        ("colours", "acc", "50.0% ± 25.0%", 4),
        ("colours", "exact_match (strict)", "100.0%", 4),
        ("colours", "word_perplexity", "12.3456", 4),
    ]


def test_without_lm_eval_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError) as caught:
        measure(SuiteRequest(model=None, argument="arc_easy"))  # type: ignore[arg-type]  # refused before that
    assert "pip install 'mmcli-eval[lm-eval]'" in caught.value.fix


CHOICES = """\
task: my_choices
dataset_path: json
dataset_kwargs:
  data_files:
    test: choices.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""
WRITTEN = """\
task: my_written
dataset_path: json
dataset_kwargs:
  data_files:
    test: choices.jsonl
test_split: test
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{choices[answer]}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 8
metric_list:
  - metric: exact_match
"""
READ = """\
task: my_read
dataset_path: json
dataset_kwargs:
  data_files:
    test: choices.jsonl
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list:
  - metric: bits_per_byte
"""
QUESTIONS = [
    {"question": f"What is {n} plus {n}? " + "It is asked again. " * n, "choices": [str(n), str(2 * n), f"{n} {n}"]}
    for n in range(1, 7)
]


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three task files and their data, read without a network."""
    pytest.importorskip("lm_eval", reason=REASON)
    for name, value in {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, text in {"choices": CHOICES, "written": WRITTEN, "read": READ}.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    lines = [json.dumps({**each, "answer": 1}) + "\n" for each in QUESTIONS]
    (folder / "choices.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def asked(*arguments: Any) -> list[Any]:
    return [SimpleNamespace(args=each) for each in arguments]


def test_log_likelihoods_and_replies_are_those_of_lm_evals_own_model(tmp_path: Path, tasks: Path) -> None:
    from lm_eval.models.huggingface import HFLM
    from mmcli_eval.engine_lm import EngineLM

    from mmcli.api import Tokenizer, TorchEngine, load_model

    model = tiny_model(tmp_path / "model")
    exported = export_hf(model, tmp_path / "exported").folder
    engine = TorchEngine(load_model(model), slots=3, max_len=128)
    ours = EngineLM(engine, Tokenizer.load(model), bos=False, batch_tokens=300)
    begun, bos = EngineLM(engine, Tokenizer.load(model)), ours.prefix_token_id
    assert begun.tok_encode("cat") == [bos, *ours.tok_encode("cat")]
    assert begun.tok_encode("cat", add_special_tokens=False) == ours.tok_encode("cat")
    theirs = HFLM(str(exported), dtype="float32", device="cpu", max_length=128, batch_size=2)
    pairs = [(f"Question: {each['question']}", f" {choice}") for each in QUESTIONS for choice in each["choices"]]
    pairs += [("", "The cat sleeps."), ("a ", "b"), ("x " * 200, "the end of it"), ("Who?", " I am nobody at all.")]
    found, expected = ours.loglikelihood(asked(*pairs)), theirs.loglikelihood(asked(*pairs))
    for pair, (value, greedy), (wanted, wanted_greedy) in zip(pairs, found, expected, strict=True):
        assert value == pytest.approx(wanted, abs=1e-4), pair
        assert greedy == wanted_greedy
    texts = [(each["question"],) for each in QUESTIONS] + [("A long text of words. " * 60,)]
    for value, wanted in zip(
        ours.loglikelihood_rolling(asked(*texts)), theirs.loglikelihood_rolling(asked(*texts)), strict=True
    ):
        assert value == pytest.approx(wanted, abs=1e-3 if wanted < -1000 else 1e-4)
    wanted_kwargs = {"until": ["\n", "cat"], "max_gen_toks": 12}
    prompts = [(each["question"], wanted_kwargs) for each in QUESTIONS]
    assert ours.generate_until(asked(*prompts)) == theirs.generate_until(asked(*prompts))


def test_tasks_of_your_own_files_are_measured_and_shown(
    tmp_path: Path, tasks: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(tmp_path / "model")
    named = ",".join(str(tasks / f"{name}.yaml") for name in ("choices", "written", "read"))
    argv = ["eval", str(model), "--suite", f"lm-eval:{named},num_fewshot=1", "--limit", "4", "--device", "cpu"]
    assert run([*argv, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    figures = {(each["task"], each["name"]): each for each in document["figures"]}
    assert {("my_choices", "acc"), ("my_choices", "acc_norm"), ("my_written", "exact_match")} <= set(figures)
    assert figures["my_read", "bits_per_byte"]["value"] > 0
    assert all(each["questions"] == 4 for each in document["figures"])
    chat = SuiteRequest(model=ModelRef(model, None), argument=f"{tasks / 'written.yaml'},chat=true", device="cpu")
    assert [each.name for each in measure(chat)] == ["exact_match"]


def test_what_lm_eval_cannot_measure_gives_two_lines(tmp_path: Path, tasks: Path) -> None:
    (tasks / "other").mkdir()
    (tasks / "other" / "bad.yaml").write_text("group: x\n", encoding="utf-8")
    (tasks / "other" / "gone.yaml").write_text(CHOICES.replace("choices.jsonl", "gone.jsonl"), encoding="utf-8")
    model = ModelRef(tiny_model(tmp_path / "model"), None)
    for argument, said in {
        "": "does not say what to measure",
        "arc_eazy": "has no task arc_eazy",
        "none.yaml": "No such file",
        str(tasks / "other" / "bad.yaml"): "names no task",
        f"{tasks / 'choices.yaml'},{tasks / 'other' / 'gone.yaml'}": "in one folder",
        str(tasks / "other" / "gone.yaml"): "lm_eval cannot measure my_choices",
        f"{tasks / 'choices.yaml'},num_fewshot=-1": "num_fewshot = -1 is below 0",
    }.items():
        with pytest.raises(UserError) as caught:
            measure(SuiteRequest(model=model, argument=argument, device="cpu"))
        assert said in f"{caught.value.what} {caught.value.fix}", argument

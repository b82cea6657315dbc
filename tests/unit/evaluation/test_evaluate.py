"""The score on a suite and the loss of a text as a library calls them, without a command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mmcli.errors import MmcliError, UserError
from mmcli.evaluation import questions, suites
from mmcli.evaluation.engines import ENGINES, load_engine
from mmcli.evaluation.evaluate import SuiteResult, evaluate
from mmcli.evaluation.held_out import measure_loss
from mmcli.evaluation.questions import Reply
from mmcli.evaluation.scores import Score
from mmcli.generate.engine import Engine
from mmcli.generate.torch_engine import TorchEngine, open_torch_engine
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_folder import save_model
from mmcli.model.transformer import Transformer
from mmcli.run import ModelRef
from mmcli.text.tokenizer import Tokenizer

CONFIG = ModelConfig(dim=32, n_layers=2, n_heads=4, vocab_size=400, max_seq_len=200, init_std=0.2)


def few_questions() -> list[suites.SuiteItem]:
    """A suite of two families."""
    return [
        suites.SuiteItem(
            id=f"{family}-{number}",
            language="en",
            family=family,
            messages=({"role": "user", "content": f"Is {number} {family}?"},),
            answers=("yes",),
        )
        for family in ("odd", "even")
        for number in range(3)
    ]


def is_odd(question: suites.SuiteItem, reply: str) -> bool:
    """A judge that does not read the reply."""
    return question.family == "odd"


@pytest.fixture
def ref(tokenizer: Tokenizer, tmp_path: Path) -> ModelRef:
    save_model(tmp_path / "model", Transformer(CONFIG, seed=3), CONFIG, tokenizer)
    return ModelRef(tmp_path / "model", None)


FEW = suites.Suite(name="few", summary="Few.", items=f"{__name__}:few_questions", judge=f"{__name__}:is_odd")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(suites._BUILT_IN, "few", (__name__, "FEW"))


def test_a_suite_is_questions_and_a_judge(ref: ModelRef, few: None) -> None:
    result = evaluate(ref, "few", max_new_tokens=5, device="cpu")
    assert (result.suite, result.mode, result.too_long, len(result.replies)) == ("few", "chat", 0, 6)
    ended = [reply.ended for reply in result.replies]
    assert [reply.correct for reply in result.replies] == [*ended[:3], False, False, False]
    assert result.total == Score(sum(ended[:3]), 6) and result.unfinished == 6 - sum(ended)
    assert [each.question for each in evaluate(ref, "few", limit=1, max_new_tokens=5, device="cpu").replies] == [
        few_questions()[0],
        few_questions()[3],
    ]


def test_a_result_says_what_was_asked(ref: ModelRef, few: None) -> None:
    result = evaluate(ref, "few", max_new_tokens=5, device="cpu")
    found = result.to_json()
    assert (found["suite"], found["version"], found["questions"], found["limit"]) == ("few", "1", 6, None)
    assert found["interval"] == list(result.total.interval) and "shuffled" not in found
    assert found["family_scores"]["odd"]["total"] == found["families"]["odd"]["en"]["total"] == 3
    assert len(found["digest"]) == 12 and evaluate(ref, "few", limit=1, device="cpu").digest != found["digest"]
    assert evaluate(ref, "few", max_new_tokens=5, shuffle_answers=True, device="cpu").to_json()["shuffled"] is True


def nothing() -> list[suites.SuiteItem]:
    return []


def strange() -> list[str]:
    return ["a question"]


def fails(*_: object) -> bool:
    raise KeyError("answers")


@pytest.mark.parametrize(
    ("items", "judge", "what"),
    [
        ("nothing", "is_odd", "gives none"),
        ("strange", "is_odd", "str is no SuiteItem"),
        ("fails", "is_odd", "KeyError: 'answers'"),
        ("gone", "is_odd", "cannot run: AttributeError"),
        ("few_questions", "fails", 'the suite "bad" cannot judge odd-0: KeyError'),
        ("few_questions", "gone", "cannot run: AttributeError"),
    ],
)
def test_a_broken_suite_is_named(
    ref: ModelRef, monkeypatch: pytest.MonkeyPatch, items: str, judge: str, what: str
) -> None:
    bad = suites.Suite(name="bad", summary="Bad.", items=f"{__name__}:{items}", judge=f"{__name__}:{judge}")
    monkeypatch.setitem(globals(), "BAD", bad)
    monkeypatch.setitem(suites._BUILT_IN, "bad", (__name__, "BAD"))
    monkeypatch.setattr(questions, "stop_ids", lambda tokenizer: frozenset(range(400)))  # every reply ends at once
    with pytest.raises(MmcliError, match=re.escape(what)) as refused:
        evaluate(ref, "bad", max_new_tokens=5, device="cpu")
    assert refused.value.fix


def test_a_backend_is_one_line_of_the_table(ref: ModelRef, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "mine", f"{__name__}:open_mine")
    assert isinstance(load_engine(ref, "mine", slots=3, device="cpu"), Mine)
    assert isinstance(load_engine(ref, device="cpu"), TorchEngine)


class Mine(TorchEngine):
    pass


def open_mine(ref: ModelRef, **options: object) -> Engine:
    found = open_torch_engine(ref, **options)  # type: ignore[arg-type]
    assert found.slots == 3
    return Mine(found.model)


def test_unknown_names_are_refused_with_the_known_ones(ref: ModelRef) -> None:
    with pytest.raises(UserError, match='no suite "trivia"') as refused:
        evaluate(ref, "trivia")
    assert refused.value.fix == "choose one of: demo, preferences"
    with pytest.raises(UserError, match='no backend "tpu"') as refused:
        load_engine(ref, "tpu")
    assert refused.value.fix == "give one of: torch, onnx"
    with pytest.raises(UserError, match="max_new_tokens = 0"):
        evaluate(ref, max_new_tokens=0)


def test_examples_are_spread_over_wrong_and_correct_replies() -> None:
    replies = [Reply(question, "", True, number % 3 == 0) for number, question in enumerate(few_questions() * 2)]
    result = SuiteResult("few", "chat", 5, replies, 0)
    assert result.examples(2) == [replies[1], replies[7], replies[0], replies[6]]
    assert result.examples(2, "right") == [replies[0], replies[6]]
    assert result.examples(2, "wrong") == [replies[1], replies[7]]
    assert len(result.examples(100)) == len(result.examples()) == 12 and result.examples(0) == []


def test_the_loss_of_a_file(ref: ModelRef, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    texts = ["The rain falls.", "Hello"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts) + "broken\n", encoding="utf-8")
    found = measure_loss(ref, [str(path)], seq_len=50, device="cpu")
    assert (found.kind, found.seq_len, found.kept, found.rejected) == ("text", 50, 2, 1)
    assert found.loss.tokens == sum(len(tokenizer.encode_document(text)) - 1 for text in texts)
    assert found.loss.bytes == sum(map(len, texts))
    assert 0 < found.loss.text_nats < found.loss.nats

"""Questions through an engine, and the rows of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmcli.data.encode.cache import TokenCache
from mmcli.data.pack.batches import NO_LABEL, Batch, evaluation_batches
from mmcli.data.sources.sources import open_sources
from mmcli.errors import UserError
from mmcli.evaluation.demo_suite import demo_items
from mmcli.evaluation.demo_suite import judge as demo_judge
from mmcli.evaluation.held_out import evaluation_rows
from mmcli.evaluation.loss import TextLoss, model_losses, sum_losses
from mmcli.evaluation.questions import answer_questions, encode_questions, shuffled_questions
from mmcli.evaluation.scores import family_scores, scores, total_score
from mmcli.evaluation.suites import SuiteItem, choose_items
from mmcli.generate.conversation import Conversation
from mmcli.generate.generate import generate, generate_batch
from mmcli.generate.sampler import SamplingConfig
from mmcli.generate.torch_engine import TorchEngine
from mmcli.model.config import ModelConfig
from mmcli.model.transformer import Transformer
from mmcli.text.tokenizer import Tokenizer

from ..conftest import ListEngine

GREEDY = SamplingConfig(temperature=0, repetition_penalty=1)


def question(text: str, *answers: str, language: Any = "en", before: Sequence[dict[str, str]] = ()) -> SuiteItem:
    messages = (*before, {"role": "user", "content": text})
    return SuiteItem(id=text, language=language, family="facts", messages=messages, answers=answers)


def names_an_answer(item: SuiteItem, reply: str) -> bool:
    """A plain judge."""
    return any(answer in reply.casefold() for answer in item.answers)


class HashEngine(ListEngine):
    """Many slots; the next token is a hash of all the slot holds, so a slot that holds anything else shows."""

    def __init__(self, *, slots: int, vocab_size: int = 50, max_len: int = 40) -> None:
        super().__init__(vocab_size=vocab_size, max_len=max_len, slots=slots)
        self.together = 0

    def _logits(self, slot: int) -> np.ndarray:
        logits_V = np.zeros(self.vocab_size, dtype=np.float32)
        logits_V[hash(tuple(self.held[slot])) % self.vocab_size] = 1
        return logits_V

    def decode(self, slots: Sequence[int], ids: Sequence[int]) -> np.ndarray:
        self.together = max(self.together, len(slots))
        return super().decode(slots, ids)


def one_by_one(engine: Any, prompts: Sequence[list[int]], max_new_tokens: int, stop_ids: set[int]) -> list[Any]:
    results = []
    for prompt in prompts:
        generation = generate(engine, 0, prompt, GREEDY, max_new_tokens=max_new_tokens, stop_ids=stop_ids)
        ids = list(generation)
        results.append((ids, generation.sequence.stop_id))
    return results


def complete(engine: Any, prompts: Sequence[list[int]], **limits: Any) -> list[Any]:
    """(new ids, stop id) of each prompt, all of them at a time."""
    found = sorted(generate_batch(engine, prompts, GREEDY, **limits), key=lambda each: each.prompt)
    assert [each.prompt for each in found] == list(range(len(prompts)))
    return [(each.ids, each.stop_id) for each in found]


@pytest.mark.parametrize("slots", [1, 3, 8, 100])
def test_many_at_a_time_are_each_as_alone(slots: int) -> None:
    prompts = [[n % 50, *range(n % 7)] for n in range(30)]
    engine = HashEngine(slots=slots)
    found = complete(engine, prompts, max_new_tokens=12, stop_ids={0, 1, 2, 3})
    assert found == one_by_one(HashEngine(slots=1), prompts, 12, {0, 1, 2, 3})
    assert {stop is None for _, stop in found} == {True, False}
    assert engine.together == slots if slots < 30 else 20 < engine.together <= 30


def test_on_a_model_too() -> None:
    model = Transformer(ModelConfig(dim=32, n_layers=2, n_heads=4, vocab_size=60, max_seq_len=64, init_std=0.2), seed=3)
    prompts = [[n + 1, *range(5, 5 + n)] for n in range(9)]
    found = complete(TorchEngine(model, slots=4, max_len=32), prompts, max_new_tokens=10, stop_ids={7, 8, 9})
    alone = one_by_one(TorchEngine(model, max_len=32), prompts, 10, {7, 8, 9})
    assert found == alone


def test_a_prompt_that_fills_the_context_gets_nothing_and_a_long_one_is_cut() -> None:
    engine = HashEngine(slots=2, max_len=10)
    full, nearly = complete(engine, [[1] * 10, [1] * 8], max_new_tokens=20, stop_ids=set())
    assert full == ([], None)
    assert len(nearly[0]) == 2 and nearly[1] is None
    with pytest.raises(UserError, match="max_new_tokens = 0"):
        complete(engine, [[1]], max_new_tokens=0, stop_ids=set())


def test_a_chat_model_is_asked_as_in_a_conversation(tokenizer: Tokenizer, scripted: Callable[..., Any]) -> None:
    asked = question("How are you?", "fine", before=[{"role": "system", "content": "Be brief."}])
    [prompt] = encode_questions(tokenizer, [asked], chat=True)
    engine = scripted("fine")
    conversation = Conversation(engine, tokenizer, sampling=GREEDY, system="Be brief.")
    assert "".join(conversation.reply("How are you?")) == "fine"
    assert engine.held[0][: len(prompt)] == prompt and engine.prefills == [len(prompt)]


def test_a_pretrained_model_gets_a_text_to_continue(tokenizer: Tokenizer) -> None:
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Tom."}]
    asked = [question("Where?", "here", before=turns), question("在哪里？", "这里", language="zh")]
    first, second = encode_questions(tokenizer, asked, chat=False)
    assert first[0] == second[0] == tokenizer.bos_id
    assert tokenizer.decode(first) == "Question: Who?\nAnswer: Tom.\nQuestion: Where?\nAnswer:"
    assert tokenizer.decode(second) == "问：在哪里？\n答："


def test_replies_are_judged_and_must_end(tokenizer: Tokenizer, scripted: Callable[..., Any]) -> None:
    asked = [question(f"{number}?", "the rain") for number in range(3)]
    prompts = encode_questions(tokenizer, asked, chat=True)
    never_ends = [*tokenizer.encode_text("The rain falls on"), *[tokenizer.encode_text(" a")[0]] * 20]
    engine = scripted(" The rain.\n", "The hills.", never_ends, end=True)
    found = answer_questions(engine, tokenizer, asked, prompts, chat=True, judge=names_an_answer, max_new_tokens=12)
    assert [(each.text[:10], each.ended, each.correct) for each in found] == [
        ("The rain.", True, True),
        ("The hills.", True, False),
        ("The rain f", False, False),
    ]


def test_a_continued_text_is_judged_by_its_first_line(tokenizer: Tokenizer, scripted: Callable[..., Any]) -> None:
    asked = [question("What falls?", "the rain"), question("What falls down?", "the rain")]
    prompts = encode_questions(tokenizer, asked, chat=False)
    engine = scripted(" The rain.\nQuestion: What is a cloud?", "\nThe rain.")
    right, late = answer_questions(engine, tokenizer, asked, prompts, chat=False, judge=names_an_answer)
    assert (right.text, right.correct) == ("The rain.", True)
    assert (late.text, late.ended, late.correct) == ("", True, False)


def test_a_limit_spreads_over_families_and_languages() -> None:
    everything = demo_items()
    chosen = choose_items(everything, 6)
    for family in {each.family for each in everything}:
        languages = [each.language for each in chosen if each.family == family]
        assert (languages.count("en"), languages.count("zh")) == (3, 3)
    ids = [each.id for each in everything]
    places = [ids.index(each.id) for each in chosen]
    assert places == sorted(set(places))
    facts = [place for place, each in zip(places, chosen, strict=True) if each.family == "facts"]
    assert facts[1] - facts[0] > 10  # not the first three
    assert choose_items(everything, 10**6) == list(everything)
    with pytest.raises(UserError, match="--limit 0"):
        choose_items(everything, 0)


def test_a_small_language_leaves_its_part_to_the_others() -> None:
    few = [question("a", "x", language="zh"), *[question(str(number), "x") for number in range(9)]]
    assert [each.language for each in choose_items(few, 6)].count("en") == 5


def test_tools_are_given_to_the_template_and_a_tool_call_to_the_judge(
    tokenizer: Tokenizer, scripted: Callable[..., Any]
) -> None:
    asked = next(item for item in demo_items() if item.tools)
    plain, shown = (
        tokenizer.decode(encode_questions(tokenizer, [item], chat=True)[0])
        for item in (replace(asked, tools=None), asked)
    )
    assert asked.tools is not None
    name = asked.tools[0]["function"]["name"]
    assert f'"{name}"' in shown and f'"{name}"' not in plain
    heard: list[str] = []

    def judge(item: SuiteItem, reply: str) -> bool:
        heard.append(reply)
        return demo_judge(item, reply)

    [call] = asked.answers
    marks = {mark: tokenizer.control_id(mark) for mark in ("<tool_call>", "</tool_call>")}
    inside = tokenizer.encode_text(call.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    ids = [id for id in (marks["<tool_call>"], *inside, marks["</tool_call>"]) if id is not None]
    prompts = encode_questions(tokenizer, [asked, asked], chat=True)
    engine = scripted([*ids, tokenizer.eos_id], "It is 12.", end=True)
    found = answer_questions(engine, tokenizer, [asked, asked], prompts, chat=True, judge=judge, max_new_tokens=200)
    assert heard[0] == call
    assert [each.correct for each in found] == [True, False]


def test_a_question_with_a_tool_result_can_be_a_text(tokenizer: Tokenizer) -> None:
    turns = [
        {"role": "user", "content": "What is 6 * 7?"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        {"role": "tool", "content": "42"},
    ]
    asked = SuiteItem(id="a", messages=tuple(turns), answers=("42",), language="fr")
    [ids] = encode_questions(tokenizer, [asked], chat=False)
    assert tokenizer.decode(ids) == "Question: What is 6 * 7?\nAnswer: \n42\nAnswer:"


def test_shuffled_questions_are_others_of_the_same_family_and_language() -> None:
    everything = demo_items()
    judges = shuffled_questions(everything)
    assert judges == shuffled_questions(everything)
    assert sorted(each.id for each in judges) == sorted(each.id for each in everything)
    for item, other in zip(everything, judges, strict=True):
        assert (item.family, item.language) == (other.family, other.language) and item.id != other.id
    few = [question("a", "x"), question("b", "y", language="zh"), replace(question("c", "z"), family="other")]
    assert [each.id for each in shuffled_questions(few)] == ["b", "a", "c"]


def test_right_replies_score_at_chance_by_shuffled_answers() -> None:
    """But for the questions that nobody can answer: all of them have the same answers."""
    items = demo_items()
    own, others = (
        scores(
            (item.family, item.language, demo_judge(other, item.answers[0]))
            for item, other in zip(items, by, strict=True)
        )
        for by in (items, shuffled_questions(items))
    )
    assert total_score(own).share == 1.0 and total_score(others).share < 0.1
    shares = {name: score.share for name, score in family_scores(others).items()}
    assert shares.pop("unknown") == 1.0 and max(shares.values()) < 0.4


def test_replies_are_judged_by_shuffled_answers(tokenizer: Tokenizer, scripted: Callable[..., Any]) -> None:
    asked = [question(f"{number}?", answer) for number, answer in enumerate(("rain", "hills"))]
    prompts = encode_questions(tokenizer, asked, chat=True)
    for judged_as, correct in ((None, True), (shuffled_questions(asked), False)):
        engine = scripted("rain", "hills", end=True)
        found = answer_questions(
            engine, tokenizer, asked, prompts, chat=True, judge=names_an_answer, judged_as=judged_as
        )
        assert [each.correct for each in found] == [correct, correct]
        assert [each.question for each in found] == asked


# The loss of a text

TEXTS = ["The rain falls on the hills.", "Hello", "你好，世界。" * 9, "A cloud is water 🙂", "The rain " * 40]


@pytest.fixture
def model(tokenizer: Tokenizer) -> Transformer:
    config = ModelConfig(dim=32, n_layers=2, n_heads=4, vocab_size=tokenizer.vocab_size, max_seq_len=512, init_std=0.2)
    return Transformer(config, seed=5).eval()


def cache_of(folder: Path, tokenizer: Tokenizer, values: Sequence[dict[str, Any]], kind: Any) -> TokenCache:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return TokenCache.build_or_open(folder / "cache", open_sources([str(path)], kind=kind), tokenizer)


def alone(cache: TokenCache, document: int, start: int, stop: int) -> Batch:
    """A part of one document as a row of its own."""
    ids = cache.ids(document, start, stop).astype(np.int64)
    labels = np.where(cache.trained(document, start, stop)[1:] == 1, ids[1:], NO_LABEL)
    return Batch(ids[None, :-1], labels[None], np.arange(len(labels))[None], np.zeros((1, len(labels)), dtype=np.int64))


def measure(model: Transformer, tokenizer: Tokenizer, batches: Any) -> TextLoss:
    return sum_losses(model_losses(model, batches), tokenizer.byte_lengths())


@pytest.mark.parametrize("seq_len", [400, 16, 7])
def test_the_loss_of_a_text_does_not_depend_on_packing(
    tmp_path: Path, tokenizer: Tokenizer, model: Transformer, seq_len: int
) -> None:
    cache = cache_of(tmp_path, tokenizer, [{"text": text} for text in TEXTS], "text")
    windows = [
        alone(cache, document, start, start + seq_len + 1)
        for document, length in enumerate(cache.lengths.tolist())
        for start in range(0, length - 1, seq_len)
    ]
    assert (len(windows) == len(TEXTS)) == (seq_len == 400)
    rows = evaluation_rows(cache, seq_len)
    packed = measure(model, tokenizer, evaluation_batches(cache, rows, 2))
    each = measure(model, tokenizer, windows)
    assert packed.tokens == each.tokens == sum(cache.lengths - 1)
    assert packed.bytes == each.bytes
    assert packed.loss == pytest.approx(each.loss, rel=1e-6)
    assert packed.bits_per_byte == pytest.approx(each.bits_per_byte, rel=1e-6)
    assert len(rows) < len(windows) or seq_len == 7


def test_of_conversations_the_assistant_alone_counts(tmp_path: Path, tokenizer: Tokenizer, model: Transformer) -> None:
    pairs = [{"instruction": text, "output": reply} for text, reply in zip(TEXTS, ["a", "b", *TEXTS[:3]], strict=True)]
    cache = cache_of(tmp_path, tokenizer, pairs, "chat")
    whole = [alone(cache, document, 0, int(length)) for document, length in enumerate(cache.lengths)]
    packed = measure(model, tokenizer, evaluation_batches(cache, evaluation_rows(cache, 512), 2))
    each = measure(model, tokenizer, whole)
    replies = sum(len(tokenizer.encode_text(pair["output"])) + 1 for pair in pairs)  # each with its end token
    assert packed.tokens == each.tokens == replies
    assert packed.bytes == sum(len(pair["output"].encode()) for pair in pairs)
    assert packed.loss == pytest.approx(each.loss, rel=1e-6)
    cut = measure(model, tokenizer, evaluation_batches(cache, evaluation_rows(cache, 20), 2))
    assert cut.tokens == replies  # what is past a window is read in the next one

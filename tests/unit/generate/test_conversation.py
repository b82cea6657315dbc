"""Conversations: what is sent, what is reused, what is kept when the context fills or a reply is stopped."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmcli.errors import MmcliError, UserError
from mmcli.generate.conversation import Conversation, is_chat_model
from mmcli.generate.engine import PromptTooLong, common_prefix
from mmcli.generate.grammar import Grammar
from mmcli.generate.reply import ReplyStream
from mmcli.generate.sampler import SamplingConfig
from mmcli.generate.torch_engine import TorchEngine
from mmcli.model.config import ModelConfig
from mmcli.model.transformer import Transformer
from mmcli.text.chat import encode_chat
from mmcli.text.definition import Definition
from mmcli.text.tokenizer import Tokenizer

Make = Callable[..., Any]


def say(conversation: Conversation, text: str) -> str:
    return "".join(conversation.reply(text))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def prompt_ids(tokenizer: Tokenizer, *messages: dict[str, str]) -> list[int]:
    return encode_chat(tokenizer, messages, add_generation_prompt=True).ids


def test_a_reply_is_streamed_and_kept(tokenizer: Tokenizer, scripted: Make) -> None:
    conversation = Conversation(scripted("I am well."), tokenizer)
    pieces = list(conversation.reply("How are you?"))
    assert len(pieces) > 1 and "".join(pieces) == "I am well."
    assert conversation.messages == [user("How are you?"), assistant("I am well.")]
    stats = conversation.stats
    assert stats is not None
    assert stats.tokens == len(tokenizer.encode_text("I am well."))
    assert stats.finish_reason == "stop"
    assert stats.tokens_per_second is not None and stats.tokens_per_second > 0
    assert stats.time_to_first_token is not None and 0 < stats.time_to_first_token <= stats.seconds


def test_the_prompt_is_the_training_sequence(tokenizer: Tokenizer, scripted: Make) -> None:
    """What the model sees in a chat is, id by id, what SFT trains it on."""
    engine = scripted("I am well.", "It rains.")
    conversation = Conversation(engine, tokenizer, system="Be kind.")
    say(conversation, "How are you?")
    say(conversation, "And the weather?")
    whole = [{"role": "system", "content": "Be kind."}, *conversation.messages]
    trained = encode_chat(tokenizer, whole).ids
    held = engine.held[0]
    assert held == trained[: len(held)]
    assert trained[len(held)] == tokenizer.eos_id


SWITCHED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}{% endif %}"
)


@pytest.mark.parametrize("thinking", [True, False, None])
def test_thinking_is_asked_of_the_template(tokenizer: Tokenizer, scripted: Make, thinking: bool | None) -> None:
    switched = Tokenizer(dataclasses.replace(tokenizer.definition, chat_template=SWITCHED))
    engine = scripted("I am well.")
    say(Conversation(engine, switched, thinking=thinking), "Hi")
    closed = switched.control_id("</think>")
    assert (closed in engine.held[0]) is (thinking is False)


def test_thinking_is_refused_where_it_has_no_effect(tokenizer: Tokenizer, scripted: Make) -> None:
    with pytest.raises(UserError, match="no switch for thinking"):
        Conversation(scripted("x"), tokenizer, thinking=True)
    with pytest.raises(UserError, match="only continues text"):
        Conversation(scripted("x"), tokenizer, thinking=False, chat=False)


def test_only_the_new_turn_is_prefilled(tokenizer: Tokenizer, scripted: Make) -> None:
    engine = scripted("I am well.", "It rains.", "Yes.")
    conversation = Conversation(engine, tokenizer)
    for text in ("How are you?", "And the weather?", "Really?"):
        held = len(engine.held[0])
        say(conversation, text)
        prompt = prompt_ids(tokenizer, *conversation.messages[:-1])
        assert engine.prefills[-1] == len(prompt) - held
        assert conversation.stats is not None
        assert (conversation.stats.prompt_tokens, conversation.stats.reused_tokens) == (len(prompt), held)


def test_a_reply_in_unusual_tokens_is_read_anew_where_it_differs(tokenizer: Tokenizer, scripted: Make) -> None:
    """A model may spell "the" letter by letter; the next prompt has it as training has it."""
    letters = [tokenizer.encode_text(letter)[0] for letter in "the"]
    assert tokenizer.encode_text("the") != letters
    engine = scripted(letters, "Yes.")
    conversation = Conversation(engine, tokenizer)
    assert say(conversation, "What?") == "the"
    held = list(engine.held[0])
    say(conversation, "Again?")
    prompt = prompt_ids(tokenizer, *conversation.messages[:-1])
    assert engine.held[0][: len(prompt)] == prompt
    assert engine.prefills[-1] == len(prompt) - common_prefix(held, prompt)


def test_characters_are_streamed_whole(tokenizer: Tokenizer, scripted: Make) -> None:
    text = "你好🙂é!"
    ids = byte_ids(tokenizer, text)
    conversation = Conversation(scripted(ids), tokenizer)
    assert list(conversation.reply("Hi")) == list(text)
    cut = Conversation(scripted(ids[:5]), tokenizer)
    assert list(cut.reply("Hi")) == ["你", "\ufffd"]
    assert cut.messages[-1] == assistant("你\ufffd")


def byte_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """One id for each byte of `text`."""
    of_byte = {tokenizer.token_bytes(id): id for id in range(tokenizer.vocab_size)}
    return [of_byte[bytes([byte])] for byte in text.encode()]


def test_the_oldest_turns_are_left_out_when_the_context_is_full(tokenizer: Tokenizer, scripted: Make) -> None:
    replies = [f"Answer {i}." for i in range(8)]
    engine = scripted(*replies, max_len=120)
    conversation = Conversation(engine, tokenizer, system="Be kind.", max_new_tokens=30)
    system = {"role": "system", "content": "Be kind."}
    notices = []
    for i, reply in enumerate(replies):
        assert say(conversation, f"Question {i}?") == reply
        kept = [system, *conversation.messages[conversation.dropped : -1]]
        prompt = prompt_ids(tokenizer, *kept)
        assert engine.held[0][: len(prompt)] == prompt
        assert len(prompt) + 30 <= 120
        notices.append(conversation.notice)
    assert conversation.dropped > 0 and conversation.dropped % 2 == 0
    longer = prompt_ids(tokenizer, system, *conversation.messages[conversation.dropped - 2 : -1])
    assert len(longer) + 30 > 120  # no more than needed
    assert notices[0] is None
    told = [notice for notice in notices if notice]
    assert told and f"the oldest {conversation.dropped} messages" in told[-1]
    assert len(conversation.messages) == 16  # for saving, all are there


def test_a_message_that_cannot_fit_changes_nothing(tokenizer: Tokenizer, scripted: Make) -> None:
    conversation = Conversation(scripted("Yes.", "No.", max_len=60), tokenizer)
    say(conversation, "Well?")
    before = list(conversation.messages)
    with pytest.raises(PromptTooLong, match="the context holds 60"):
        say(conversation, "long " * 100)
    assert (conversation.messages, conversation.dropped) == (before, 0)
    assert say(conversation, "Well?") == "No."


def test_a_reply_that_fills_the_context_says_so(tokenizer: Tokenizer, scripted: Make) -> None:
    conversation = Conversation(scripted([60] * 90, max_len=50), tokenizer)
    say(conversation, "Well?")
    assert conversation.stats is not None and conversation.stats.finish_reason == "context"
    assert conversation.notice is not None and "context of 50 tokens is full" in conversation.notice


def test_retry_replaces_the_newest_reply(tokenizer: Tokenizer, scripted: Make) -> None:
    engine = scripted("One.", "Two.", "Three.", "Four.")
    conversation = Conversation(engine, tokenizer)
    say(conversation, "Count!")
    say(conversation, "Go on!")
    assert "".join(conversation.retry()) == "Three."
    assert conversation.messages == [user("Count!"), assistant("One."), user("Go on!"), assistant("Three.")]
    assert engine.prefills[-1] == 1  # the prompt is still there; only its last id is run for the logits
    with pytest.raises(UserError, match="there is no reply"):
        Conversation(scripted(), tokenizer).retry()


def test_each_retry_has_its_own_seed_and_all_can_be_repeated(tokenizer: Tokenizer) -> None:
    def three() -> list[str]:
        conversation = Conversation(random_engine(tokenizer), tokenizer, sampling=WARM, max_new_tokens=12)
        return [say(conversation, "Hello"), "".join(conversation.retry()), "".join(conversation.retry())]

    first = three()
    assert len(set(first)) == 3
    assert three() == first
    other = Conversation(
        random_engine(tokenizer), tokenizer, sampling=SamplingConfig(temperature=1.5, seed=8), max_new_tokens=12
    )
    assert say(other, "Hello") == first[1]  # the next seed


def test_a_retry_at_temperature_zero_says_why_nothing_changes(tokenizer: Tokenizer, scripted: Make) -> None:
    conversation = Conversation(scripted("One.", "One."), tokenizer, sampling=SamplingConfig(temperature=0))
    say(conversation, "Count!")
    assert conversation.notice is None
    list(conversation.retry())
    assert conversation.notice is not None and "temperature 0" in conversation.notice


WARM = SamplingConfig(temperature=1.5, seed=7)


def random_engine(tokenizer: Tokenizer) -> TorchEngine:
    torch.manual_seed(0)
    shape = {"dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": tokenizer.vocab_size, "max_seq_len": 256}
    return TorchEngine(Transformer(ModelConfig(**shape, init_std=0.1)))


def test_reusing_the_cache_changes_no_reply(tokenizer: Tokenizer) -> None:
    reusing = Conversation(random_engine(tokenizer), tokenizer, sampling=WARM, max_new_tokens=10)
    fresh_engine = random_engine(tokenizer)
    for text in ("Hello", "How are you?", "你好"):
        fresh = Conversation(fresh_engine, tokenizer, sampling=WARM, max_new_tokens=10)
        fresh.messages = list(reusing.messages)
        assert say(reusing, text) == say(fresh, text)
        assert fresh.stats is not None and fresh.stats.reused_tokens == 0
    assert reusing.stats is not None and reusing.stats.reused_tokens > 10


def test_an_interrupt_keeps_what_was_written(tokenizer: Tokenizer, scripted: Make) -> None:
    engine = scripted("Hello, how are you today?", "Yes.")
    conversation = Conversation(engine, tokenizer)
    engine.interrupt_in = 3
    pieces = []
    with pytest.raises(KeyboardInterrupt):
        for piece in conversation.reply("Hi"):
            pieces.append(piece)
    assert conversation.messages == [user("Hi"), assistant("".join(pieces))]
    assert conversation.stats is not None
    assert (conversation.stats.finish_reason, conversation.stats.tokens) == ("interrupted", 4)
    assert say(conversation, "Go on") == "Yes."
    prompt = prompt_ids(tokenizer, *conversation.messages[:-1])
    assert engine.held[0][: len(prompt)] == prompt


def test_a_closed_reply_keeps_what_was_written(tokenizer: Tokenizer, scripted: Make) -> None:
    conversation = Conversation(scripted("Hello, how are you today?"), tokenizer)
    pieces = conversation.reply("Hi")
    first = next(pieces)
    pieces.close()
    assert conversation.messages == [user("Hi"), assistant(first)]


def test_a_retry_stopped_before_its_first_token_leaves_the_old_reply(
    tokenizer: Tokenizer, scripted: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = scripted("One.", "Two.")
    conversation = Conversation(engine, tokenizer)
    say(conversation, "Count!")

    def interrupted(slot: int, ids: list[int]) -> np.ndarray:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine, "prefill", interrupted)
        list(conversation.retry())
    assert conversation.messages == [user("Count!"), assistant("One.")]
    assert "".join(conversation.retry()) == "Two."


def test_a_failure_of_the_model_leaves_the_conversation_as_it_was(
    tokenizer: Tokenizer, scripted: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = scripted("One.")
    conversation = Conversation(engine, tokenizer)
    with monkeypatch.context() as patch, pytest.raises(MmcliError, match="not finite"):
        patch.setattr(engine, "prefill", lambda slot, ids: np.full(engine.vocab_size, np.nan))
        say(conversation, "Count!")
    assert conversation.messages == []
    assert say(conversation, "Count!") == "One."


def test_reset_and_system(tokenizer: Tokenizer, scripted: Make) -> None:
    engine = scripted("One.", "Two.", "Three.")
    conversation = Conversation(engine, tokenizer, system="Count.")
    say(conversation, "Go")
    conversation.reset()
    assert conversation.messages == [] and conversation.stats is None
    say(conversation, "Go")
    system = {"role": "system", "content": "Count."}
    assert engine.held[0][: engine.prefills[0]] == prompt_ids(tokenizer, system, user("Go"))
    conversation.set_system(None)
    say(conversation, "On")
    prompt = prompt_ids(tokenizer, user("Go"), assistant("Two."), user("On"))
    assert engine.held[0][: len(prompt)] == prompt


def test_an_empty_reply_does_not_break_the_next(tokenizer: Tokenizer, scripted: Make) -> None:
    conversation = Conversation(scripted("", "Yes."), tokenizer)
    assert list(conversation.reply("Well?")) == []
    assert conversation.stats is not None
    assert (conversation.stats.tokens, conversation.stats.time_to_first_token) == (0, None)
    assert say(conversation, "Well?") == "Yes."


def test_save_writes_training_data(tokenizer: Tokenizer, scripted: Make, tmp_path: Path) -> None:
    conversation = Conversation(scripted("你好。", "Two."), tokenizer, system="Be kind.")
    path = tmp_path / "chat.jsonl"
    with pytest.raises(UserError, match="nothing to save"):
        conversation.save(path)
    say(conversation, "One")
    conversation.save(path)
    say(conversation, "More")
    conversation.save(path)  # its own file
    (line,) = path.read_text(encoding="utf-8").splitlines()
    assert "你好" in line
    saved = json.loads(line)["messages"]
    assert saved == [{"role": "system", "content": "Be kind."}, *conversation.messages]
    assert any(encode_chat(tokenizer, saved).trained)
    other = Conversation(scripted("Yes."), tokenizer)
    say(other, "Hi")
    with pytest.raises(UserError, match=r"chat\.jsonl exists"):
        other.save(path)
    with pytest.raises(UserError, match="there is no folder"):
        conversation.save(tmp_path / "no" / "chat.jsonl")


def test_reasoning_is_kept_apart_and_goes_back_as_trained(tokenizer: Tokenizer, scripted: Make) -> None:
    think, end_think = tokenizer.control_id("<think>"), tokenizer.control_id("</think>")
    ids = [think, *tokenizer.encode_text("\nhow?\n"), end_think, *tokenizer.encode_text("\n\nWell.")]
    engine = scripted(ids, tokenizer.encode_text("<think>no</think>"))
    conversation = Conversation(engine, tokenizer)
    assert say(conversation, "Hi") == "<think>\nhow?\n</think>\n\nWell."
    assert conversation.messages[-1] == {"role": "assistant", "reasoning_content": "how?", "content": "Well."}
    held = list(engine.held[0])
    say(conversation, "And?")
    assert engine.held[0][: len(held)] == held
    assert conversation.messages[-1] == assistant("<think>no</think>")  # spelled as text it is text


CALCULATOR = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}},
}


def call_ids(tokenizer: Tokenizer, call: str) -> list[int]:
    opened, closed = (tokenizer.control_id(mark) for mark in ("<tool_call>", "</tool_call>"))
    assert opened is not None and closed is not None
    return [opened, *tokenizer.encode_text(f"\n{call}\n"), closed]


def with_tools(tokenizer: Tokenizer, engine: Any, **options: Any) -> Conversation:
    return Conversation(engine, tokenizer, tools=[CALCULATOR], **options)


def test_a_tool_call_is_kept_and_its_result_answered(tokenizer: Tokenizer, scripted: Make, tmp_path: Path) -> None:
    engine = scripted(call_ids(tokenizer, '{"name": "add", "arguments": {"a": 1}}'), "It is 3.", "Again.")
    conversation = with_tools(tokenizer, engine)
    say(conversation, "1 + 2?")
    called = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    assert conversation.messages[-1] == {"role": "assistant", "content": "", "tool_calls": [called]}
    assert "".join(conversation.answer_calls(["3"])) == "It is 3."
    assert [each["role"] for each in conversation.messages] == ["user", "assistant", "tool", "assistant"]
    expected = encode_chat(tokenizer, conversation.messages[:3], tools=[CALCULATOR], add_generation_prompt=True).ids
    assert engine.held[0][: len(expected)] == expected
    conversation.save(tmp_path / "chat.jsonl")
    assert json.loads((tmp_path / "chat.jsonl").read_text()) == {
        "messages": conversation.messages,
        "tools": [CALCULATOR],
    }
    assert "".join(conversation.retry()) == "Again."  # the whole turn anew, its calls included
    assert conversation.messages == [user("1 + 2?"), assistant("Again.")]


def test_tools_of_a_model_whose_template_knows_none(toolless: Tokenizer, scripted: Make) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    engine = scripted('<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>', "It is 3.")
    conversation = with_tools(toolless, engine, system="Be kind.")
    say(conversation, "1 + 2?")
    assert conversation.messages[-1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert "".join(conversation.answer_calls(["3"])) == "It is 3."
    held = toolless.decode(engine.held[0], keep_special=True)
    assert held.startswith("<|im_start|>system\nBe kind.\n\n# Tools\n") and '"name": "add"' in held
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>' in held
    assert "<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>" in held


def test_tools_are_for_models_that_answer(tokenizer: Tokenizer, scripted: Make) -> None:
    with pytest.raises(UserError, match="it calls no tools"):
        with_tools(tokenizer, scripted("x"), chat=False)


def test_turns_with_tools_are_dropped_as_a_whole(tokenizer: Tokenizer, scripted: Make) -> None:
    call = call_ids(tokenizer, '{"name": "add"}')
    engine = scripted(call, "Three.", "Yes.", "Well.", max_len=560)
    conversation = with_tools(tokenizer, engine, system="Be kind.", max_new_tokens=20)
    say(conversation, "1 + 2?")
    list(conversation.answer_calls(["3"]))
    for text in ("How are you today? " * 4, "The rain falls on the hills. " * 3):
        say(conversation, text)
        if conversation.dropped == 4:
            break
    assert conversation.dropped == 4
    kept = [{"role": "system", "content": "Be kind."}, *conversation.messages[conversation.dropped : -1]]
    assert kept[1]["role"] == "user"
    expected = encode_chat(tokenizer, kept, tools=[CALCULATOR], add_generation_prompt=True).ids
    assert engine.held[0][: len(expected)] == expected
    assert conversation.notice is not None and f"the oldest {conversation.dropped} messages" in conversation.notice


def test_edit_answers_another_text_in_place_of_the_newest_turn(tokenizer: Tokenizer, scripted: Make) -> None:
    conversation = Conversation(scripted("One.", "Two.", "Three."), tokenizer)
    with pytest.raises(UserError, match="no reply to write anew"):
        conversation.edit("Hello")
    say(conversation, "Hello")
    say(conversation, "How?")
    assert conversation.asked == "How?"
    assert "".join(conversation.edit("Why?")) == "Three."
    assert conversation.messages == [user("Hello"), assistant("One."), user("Why?"), assistant("Three.")]


def test_load_goes_on_with_what_was_saved(tokenizer: Tokenizer, scripted: Make, tmp_path: Path) -> None:
    first = Conversation(scripted("One."), tokenizer, system="Be kind.")
    say(first, "Hello")
    first.save(tmp_path / "chat.jsonl")
    second = Conversation(scripted("Two."), tokenizer)
    second.load(tmp_path / "chat.jsonl")
    assert (second.system, second.messages) == (first.system, first.messages)
    say(second, "More")
    second.save(tmp_path / "chat.jsonl")
    assert len(json.loads((tmp_path / "chat.jsonl").read_text())["messages"]) == 5


def test_load_where_the_next_role_ends_a_turn(
    templated: Callable[..., Tokenizer], scripted: Make, tmp_path: Path
) -> None:
    turns = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% endfor %}"
    tokenizer = templated(turns + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
    saved = tmp_path / "chat.jsonl"
    saved.write_text(json.dumps({"messages": [user("Hello"), assistant("Well.")]}) + "\n")
    conversation = Conversation(scripted("x"), tokenizer)
    conversation.load(saved)
    assert conversation.messages == [user("Hello"), assistant("Well.")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot read"),
        ("{", "is not JSONL"),
        ("", "holds 0 records"),
        ('{"messages": [{"role": "user", "content": "a"}]}\n' * 2, "holds 2 records"),
        ('{"text": "a"}', "holds no messages"),
        ('{"messages": [{"role": "pirate", "content": "a"}]}', "there is no role"),
        ('{"messages": [{"role": "user"}]}', "messages[0] has no content"),
    ],
)
def test_what_is_no_conversation_is_not_loaded(
    tokenizer: Tokenizer, scripted: Make, tmp_path: Path, text: str | None, said: str
) -> None:
    conversation = Conversation(scripted("One."), tokenizer, system="Be kind.")
    say(conversation, "Hello")
    if text is not None:
        (tmp_path / "chat.jsonl").write_text(text)
    with pytest.raises(UserError) as caught:
        conversation.load(tmp_path / "chat.jsonl")
    assert said in caught.value.what
    assert (conversation.system, len(conversation.messages)) == ("Be kind.", 2)


def test_another_model_takes_a_conversation_over(tokenizer: Tokenizer, scripted: Make) -> None:
    first, second = (Conversation(scripted(text), tokenizer) for text in ("One.", "Two."))
    say(first, "Hello")
    first.set_system("Be kind.")
    second.take_over(first)
    assert "".join(second.retry()) == "Two." and second.system == "Be kind."
    assert first.messages == [user("Hello"), assistant("One.")]
    with pytest.raises(UserError, match="only continues text"):
        Conversation(scripted("x"), tokenizer, chat=False).take_over(first)


def test_replies_fit_a_grammar_which_leaves_no_place_for_reasoning_and_tools(tokenizer: Tokenizer) -> None:
    pytest.importorskip("llguidance", reason="needs the extra mmcli[schema]")
    grammar = Grammar.from_schema(tokenizer, {"enum": [1, "好"]})
    for chat in (True, False):
        conversation = Conversation(random_engine(tokenizer), tokenizer, grammar=grammar, chat=chat)
        assert json.loads(say(conversation, "Hello")) in (1, "好")
    with pytest.raises(UserError, match="calls no tools"):
        with_tools(tokenizer, random_engine(tokenizer), grammar=grammar)


def test_a_stream_knows_what_is_reasoning(tokenizer: Tokenizer) -> None:
    think, end = (tokenizer.control_id(mark) for mark in ("<think>", "</think>"))
    assert think is not None and end is not None
    word = tokenizer.encode_text("a")[0]
    stream = ReplyStream(tokenizer)
    states = []
    for id in (think, word, end, word):
        stream.push(id)
        states.append(stream.reasoning)
    assert states == [True, True, False, False]
    assert ReplyStream(tokenizer, [word, think, word]).reasoning
    assert not ReplyStream(tokenizer, [think, end, word]).reasoning


def test_a_pretrained_model_continues_each_text_by_itself(tokenizer: Tokenizer, scripted: Make, tmp_path: Path) -> None:
    engine = scripted(" on the hills.", " of water")
    conversation = Conversation(engine, tokenizer, chat=False)
    for text, more in (("The rain falls", " on the hills."), ("A cloud is full", " of water")):
        assert say(conversation, text) == more
        parts = tokenizer.encode_text(text), tokenizer.encode_text(more)
        assert engine.held[0] == [tokenizer.bos_id, *parts[0], *parts[1]]
    conversation.save(tmp_path / "texts.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    assert rows == [{"text": "The rain falls on the hills."}, {"text": "A cloud is full of water"}]
    with pytest.raises(UserError, match="only continues text"):
        conversation.set_system("Be kind.")
    with pytest.raises(UserError, match="only continues text"):
        Conversation(engine, tokenizer, chat=False, system="Be kind.")


def test_which_models_answer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert not is_chat_model(tmp_path, tokenizer, stage="pretrain")
    assert is_chat_model(tmp_path, tokenizer, stage="sft")
    assert is_chat_model(tmp_path, tokenizer)
    for text, answers in (('{"mmcli_stage": "pretrain"}', False), ('{"mmcli_stage": "dpo"}', True), ("broken", True)):
        (tmp_path / "config.json").write_text(text)
        assert is_chat_model(tmp_path, tokenizer) is answers
    definition = tokenizer.definition
    plain = Tokenizer(Definition(definition.tokenizer, definition.config, None))
    assert not is_chat_model(tmp_path, plain, stage="sft")


def test_all_but_the_torch_engine_runs_without_torch() -> None:
    code = """
import sys
sys.modules["torch"] = None  # importing it now fails
import mmcli.generate.conversation, mmcli.generate.generate, mmcli.generate.sampler
"""
    subprocess.run([sys.executable, "-c", code], check=True)

from __future__ import annotations

from typing import Any

import pytest

from mmcli.data.encode.encoders import encode_conversations, encode_documents, encode_preferences
from mmcli.data.record import EncodedRecord, Record, RecordError
from mmcli.errors import UserError
from mmcli.text.chat import encode_chat
from mmcli.text.definition import Definition
from mmcli.text.tokenizer import Tokenizer


def record(**value: Any) -> Record:
    return Record("f", 1, value)


def trained_text(tokenizer: Tokenizer, encoded: EncodedRecord | RecordError, side: int = 0) -> str:
    assert isinstance(encoded, EncodedRecord)
    assert encoded.trained is not None
    pairs = zip(encoded.ids[side], encoded.trained[side], strict=True)
    return tokenizer.decode([id for id, trained in pairs if trained], keep_special=True)


def test_documents_are_framed_and_errors_keep_their_place(tokenizer: Tokenizer) -> None:
    first, bad, last = encode_documents(tokenizer, [record(text="the fox"), record(text=5), record(text="é")], {})
    assert isinstance(first, EncodedRecord)
    assert isinstance(last, EncodedRecord)
    assert first.ids == [tokenizer.encode_document("the fox")]
    assert first.trained is None
    assert (first.text_bytes, last.text_bytes) == (7, 2)
    assert str(bad) == '"text" is not text'


def test_conversations_train_replies_only(tokenizer: Tokenizer) -> None:
    turns = [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]
    chat = record(messages=[{"role": role, "content": content} for role, content in turns])
    bad = record(messages=[{"role": "user", "content": "q"}])
    every, error = encode_conversations(tokenizer, [chat, bad], {})
    assert isinstance(error, RecordError)
    assert "a1" in trained_text(tokenizer, every)
    assert "a2" in trained_text(tokenizer, every)
    assert "q" not in trained_text(tokenizer, every)
    (last,) = encode_conversations(tokenizer, [chat], {"train_on": "last"})
    assert "a1" not in trained_text(tokenizer, last)
    assert "a2" in trained_text(tokenizer, last)
    assert isinstance(every, EncodedRecord)
    assert every.text_bytes == 8


def test_reasoning_is_trained_or_not(tokenizer: Tokenizer) -> None:
    value = record(
        messages=[
            {"role": "user", "content": "q<think>x</think>"},
            {"role": "assistant", "content": "<think>é</think>a1"},
            {"role": "user", "content": "q2"},
            {"role": "assistant", "content": "a2", "reasoning_content": "r2"},
        ]
    )
    (whole,) = encode_conversations(tokenizer, [value], {})
    (same,) = encode_conversations(tokenizer, [value], {"train_reasoning": True})
    (masked,) = encode_conversations(tokenizer, [value], {"train_reasoning": False})
    (last,) = encode_conversations(tokenizer, [value], {"train_reasoning": False, "train_on": "last"})
    assert whole == same
    assert trained_text(tokenizer, whole) == (
        "<think>\né\n</think>\n\na1<|im_end|><think>\nr2\n</think>\n\na2<|im_end|>"
    )
    assert trained_text(tokenizer, masked) == "\n\na1<|im_end|>\n\na2<|im_end|>"
    assert trained_text(tokenizer, last) == "\n\na2<|im_end|>"
    assert isinstance(whole, EncodedRecord)
    assert isinstance(masked, EncodedRecord)
    assert masked.ids == whole.ids
    assert list(whole.ids[0]).count(tokenizer.control_tokens["<think>"]) == 2  # what the user spells is text
    assert whole.text_bytes == len("q<think>x</think>" + "a1" + "q2" + "a2" + "r2") + 2


def test_preferences_of_replies_that_reason(tokenizer: Tokenizer) -> None:
    value = record(prompt="<think>q</think>", chosen="<think>r</think>better", rejected="worse")
    (encoded,) = encode_preferences(tokenizer, [value], {})
    assert trained_text(tokenizer, encoded, 0) == "<think>\nr\n</think>\n\nbetter<|im_end|>"
    assert trained_text(tokenizer, encoded, 1) == "worse<|im_end|>"


def test_preferences_are_two_sequences_of_one_prompt(tokenizer: Tokenizer) -> None:
    prompt = [
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "a1"},
        {"role": "user", "content": "q2"},
    ]
    better, worse = {"role": "assistant", "content": "better"}, {"role": "assistant", "content": "worse"}
    more = [{"role": "user", "content": "and"}, {"role": "assistant", "content": "then"}]
    value = record(chosen=[*prompt, better, *more], rejected=[*prompt, worse])
    (encoded,) = encode_preferences(tokenizer, [value], {})
    assert isinstance(encoded, EncodedRecord)
    assert list(encoded.ids[1]) == encode_chat(tokenizer, [*prompt, worse]).ids
    chosen, rejected = trained_text(tokenizer, encoded, 0), trained_text(tokenizer, encoded, 1)
    assert "better" in chosen
    assert "then" in chosen
    assert "worse" in rejected
    assert not any(part in chosen + rejected for part in ("q1", "a1", "q2", "and"))


def test_template_that_refuses_one_conversation_rejects_only_it(tokenizer: Tokenizer) -> None:
    definition = tokenizer.definition
    source = (
        "{%- for m in messages %}{%- if m.role == 'tool' %}{{ raise_exception('no tools here') }}{%- endif %}"
        "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    )
    other = Tokenizer(Definition(definition.tokenizer, {**definition.config, "chat_template": source}, source))
    reply = {"role": "assistant", "content": "a"}
    good = record(messages=[{"role": "user", "content": "q"}, reply])
    bad = record(messages=[{"role": "user", "content": "q"}, {"role": "tool", "content": "x"}, reply])
    results = encode_conversations(other, [good, bad], {})
    assert isinstance(results[0], EncodedRecord)
    assert str(results[1]).startswith("the chat template does not take it: ")
    assert "no tools here" in str(results[1])


def test_missing_template_is_one_error(tokenizer: Tokenizer) -> None:
    definition = tokenizer.definition
    config = {key: value for key, value in definition.config.items() if key != "chat_template"}
    bare = Tokenizer(Definition(definition.tokenizer, config, None))
    with pytest.raises(UserError):
        encode_conversations(bare, [record(instruction="q", output="a")], {})

"""Chat templates of others: the ids of transformers, or refused; what is trained; stop ids; the prompt of chat."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmcli.errors import UserError
from mmcli.text.chat import check_switch, encode_chat, prompt_mismatch, shows_reasoning, stop_ids
from mmcli.text.template import CHATML
from mmcli.text.tokenizer import Tokenizer

Message = dict[str, Any]
Load = Callable[..., tuple[Tokenizer, Any]]

CONTROLS = ["<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<think>", "</think>"]
TURN = "'<|' + m.role + '|>' + {content} + '<|end|>'"
PROMPT = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"


def template(content: str, prompt: str = PROMPT, before: str = "") -> str:
    """A template that writes `content`, an expression, in every turn."""
    turns = "{% for m in messages %}{{ " + TURN.format(content=content) + " }}{% endfor %}"
    return before + turns + prompt


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> Message:
    return {"role": "assistant", "content": text, **more}


@pytest.fixture
def load(write_folder: Any) -> Load:
    """The tokenizer with a template, here and as transformers loads it."""
    from transformers import AutoTokenizer

    def load(source: str, controls: Any = CONTROLS) -> tuple[Tokenizer, Any]:
        names = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|eos|>"}
        config = {**names, "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": source}
        folder = write_folder([*controls, "<|bos|>"], config)
        return Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)

    return load


def spelled(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, keep_special=True)


def trained_text(tokenizer: Tokenizer, messages: list[Message], **options: Any) -> list[str]:
    """The trained stretches of a conversation."""
    encoded = encode_chat(tokenizer, messages, **options)
    text = ""
    for id, trained, before in zip(encoded.ids, encoded.trained, [False, *encoded.trained], strict=False):
        text += ("\0" if trained and not before else "") + (spelled(tokenizer, [id]) if trained else "")
    return text.split("\0")[1:]


# Templates that look into texts

MACRO = "{% macro show(content) %}{{ content }}{% endmacro %}"
REASONED = (
    "(('<think>' + m.content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') + '</think>'"
    " + m.content.split('</think>')[-1].lstrip('\n')) if '</think>' in m.content else m.content)"
)
LOOKS = {
    "strip after a macro": template("show(m.content) | trim", before=MACRO),
    "strip of a sum": template("(m.content + ' ') | trim"),
    "in and split": template(REASONED),
    "replace": template("m.content | replace('a', 'bb')"),
    "replace method": template("m.content.replace('\n', ' ')"),
    "slice": template("m.content[:3] + m.content[3:]"),
    "starts and ends": template("('!' if m.content.startswith('r') and m.content.endswith('a') else '?') + m.content"),
    "length": template("m.content | length ~ m.content"),
    "characters": template("m.content | list | join('')"),
    "lines": template("m.content.splitlines() | join('\n')"),
    "parts": template("m.content.partition('\n') | join('')"),
    "upper": template("m.content | upper"),
    "find": template("m.content.find('a') ~ m.content"),
    "equal": template("('same' if m.content == 'Hello' else 'other') + m.content"),
    "in words": template("('yes' if m.content in 'Hello, a' else 'no') + m.content"),
    "filter block": "{% for m in messages %}<|{{ m.role }}|>{% filter trim %} {{ m.content }} {% endfilter %}<|end|>"
    "{% endfor %}" + PROMPT,
    "set block": "{% for m in messages %}{% set c %} {{ m.content }}{% endset %}<|{{ m.role }}|>{{ c | trim }}<|end|>"
    "{% endfor %}" + PROMPT,
    "title": template("m.content | title"),
    "format": template("'%8s' % m.content"),
    "padded": template("m.content.ljust(8)"),
    "cut off": template("m.content | truncate(5)"),
}
TEXTS = ["Hello", "Hello\n", " r\n</think>\n\na", "<think>\nr\n</think>\n\na", "a\nb\r\nc", "aXaXa", "<|end|>a", "ra"]


@pytest.mark.parametrize("looks", LOOKS)
@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_transformers_or_the_record_is_refused(load: Load, looks: str, text: str) -> None:
    ours, theirs = load(LOOKS[looks])
    messages = [user(text), assistant("x " + text)]
    expected = theirs.apply_chat_template(messages, tokenize=False)
    try:
        encoded = encode_chat(ours, messages)
    except UserError as error:
        assert re.search("loses text|rewrites text in a way that is not followed", error.what)
    else:
        assert spelled(ours, encoded.ids) == expected
        ends = ours.control_tokens["<|end|>"]
        assert encoded.ids.count(ends) == 2  # what the texts spell is text
        if not any(control in text for control in CONTROLS):
            assert encoded.ids == theirs.apply_chat_template(messages, return_dict=False)


FOLLOWED = sorted(LOOKS.keys() - {"title", "format", "padded", "cut off", "in and split", "lines"})


@pytest.mark.parametrize("looks", FOLLOWED)
@pytest.mark.parametrize("text", ["Hello\n", "r and a", "<|end|>a"])
def test_what_templates_commonly_do_with_texts_is_taken(load: Load, looks: str, text: str) -> None:
    ours, _ = load(LOOKS[looks])
    assert encode_chat(ours, [user(text), assistant(text)]).ids


def test_a_template_that_reasons_by_splitting_the_content_is_taken(load: Load) -> None:
    ours, theirs = load(LOOKS["in and split"])
    messages = [user("q"), assistant("<think>\nr <|end|>\n</think>\n\na")]
    encoded = encode_chat(ours, messages)
    assert spelled(ours, encoded.ids) == theirs.apply_chat_template(messages, tokenize=False)
    assert encoded.ids.count(ours.control_tokens["</think>"]) == 1  # the template's own
    assert encoded.ids.count(ours.control_tokens["<|end|>"]) == 2
    lost = [user("q"), assistant("before <think>r</think>a")]
    with pytest.raises(UserError, match=r"loses text: messages\[1\]\.content"):
        encode_chat(ours, lost)


def test_a_text_that_a_template_replaces_is_still_text(load: Load) -> None:
    ours, _ = load(template("m.content | replace('STOP', '<|end|>')"))
    ids = encode_chat(ours, [user("a STOP b"), assistant("c")]).ids
    assert spelled(ours, ids) == "<|user|>a <|end|> b<|end|><|assistant|>c<|end|>"
    assert ids.count(ours.control_tokens["<|end|>"]) == 2


def test_what_a_template_can_not_be_followed_in_is_told_with_the_place(load: Load) -> None:
    ours, _ = load(LOOKS["title"])
    with pytest.raises(UserError, match=r"rewrites text in a way that is not followed: .*Hello World") as refused:
        encode_chat(ours, [user("hello world"), assistant("X")])
    assert "change that text" in refused.value.fix


# Stop ids

GEMMA_LIKE = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content | trim + '<|end|>' }}{% endfor %}" + PROMPT
# The last reply ends otherwise than earlier ones, whose end stands between reasoning and reply too; a call otherwise.
CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if m.thinking and loop.last %}<|assistant|><think>{{ m.thinking }}<|end|>{% endif %}"
    "<|assistant|>{% if m.tool_calls %}{{ m.tool_calls[0].function.name }}"
    "{{ m.tool_calls[0].function.arguments | tojson }}<|call|>"
    "{% else %}{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}{% endif %}"
    "{% else %}<|user|>{{ m.content }}<|end|>{% endif %}{% endfor %}" + PROMPT
)
CHANNEL_CONTROLS = [*CONTROLS, "<|return|>", "<|call|>"]
# Roles end the turn before them.
ROLES_END = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}{{ c.function.arguments | tojson }}</call>{% endfor %}"
    "{% endfor %}" + PROMPT
)
ROLE_CONTROLS = ["<|eos|>", "<|user|>", "<|assistant|>", "<|tool|>", "<call>", "</call>"]
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}


def stops(tokenizer: Tokenizer) -> set[str | None]:
    return {tokenizer.control_token(id) for id in stop_ids(tokenizer)}


def test_stop_ids_hold_every_end_of_a_turn(load: Load) -> None:
    assert stops(load(GEMMA_LIKE)[0]) == {"<|eos|>", "<|end|>"}
    assert stops(load(CHANNELS, CHANNEL_CONTROLS)[0]) == {"<|eos|>", "<|return|>", "<|call|>"}
    assert stops(load(ROLES_END, ROLE_CONTROLS)[0]) == {"<|eos|>", "<|user|>", "<|tool|>"}


def test_a_reply_of_several_parts_is_one_turn(load: Load) -> None:
    ours, theirs = load(CHANNELS, CHANNEL_CONTROLS)
    turns = [user("a"), assistant("b"), user("c"), assistant("d", reasoning_content="hm")]
    encoded = encode_chat(ours, turns)
    assert encoded.ids == theirs.apply_chat_template(turns, return_dict=False)
    last = "<think>hm<|end|><|assistant|>d<|return|>"
    assert trained_text(ours, turns) == ["b", last]  # chat goes on after the <|end|> of an earlier turn
    assert trained_text(ours, turns, train_reasoning=False) == ["b", "<|assistant|>d<|return|>"]
    called = [user("a"), assistant("", tool_calls=[CALL])]
    assert trained_text(ours, called) == ['look{"at": "sky"}<|call|>']


def test_a_last_turn_that_the_next_role_would_end_is_ended(load: Load) -> None:
    ours, theirs = load(ROLES_END, ROLE_CONTROLS)
    turns = [user("a"), assistant("b"), user("c"), assistant("d")]
    user_id, tool_id = ours.control_tokens["<|user|>"], ours.control_tokens["<|tool|>"]
    encoded = encode_chat(ours, turns)
    assert encoded.ids == [*theirs.apply_chat_template(turns, return_dict=False), user_id]
    assert trained_text(ours, turns) == ["b<|user|>", "d<|user|>"]
    called = [user("a"), assistant("", tool_calls=[CALL])]
    assert encode_chat(ours, called).ids[-1] == tool_id
    result = {"role": "tool", "content": "blue"}
    whole = encode_chat(ours, [*called, result, assistant("d")])
    assert whole.ids[:-1] == theirs.apply_chat_template([*called, result, assistant("d")], return_dict=False)
    assert trained_text(ours, [*called, result, assistant("d")], train_on="last") == ["d<|user|>"]
    prompt = encode_chat(ours, turns[:3], add_generation_prompt=True).ids
    assert prompt == encoded.ids[: len(prompt)]


# The prompt of chat

OPENS = template(
    "('<think>' + (m.reasoning_content or '') + '</think>' if m.role == 'assistant' else '') + m.content",
    prompt="{% if add_generation_prompt %}{{ '<|assistant|><think>' }}"
    "{% if enable_thinking is defined and enable_thinking %}{% else %}{{ '</think>' }}{% endif %}{% endif %}",
)
R1 = template("m.content", prompt="{% if add_generation_prompt %}{{ '<|assistant|><think>' }}{% endif %}")


def test_chat_that_asks_otherwise_than_rows_are_trained_is_told(load: Load) -> None:
    ours, _ = load(OPENS)
    plain, thought = ([user("q"), assistant("a", **more)] for more in ({}, {"reasoning_content": "hm"}))
    assert prompt_mismatch(ours, [(plain, None)]) is None
    reason = prompt_mismatch(ours, [(plain, None), (thought, None)])
    assert reason is not None
    assert "'<|assistant|><think></think>'" in reason and "'<|assistant|><think>hm" in reason and "--think" in reason
    ours, _ = load(R1)
    reason = prompt_mismatch(ours, [(plain, None)])
    assert reason is not None and "'<|assistant|><think>'" in reason and "may not come out" in reason


def test_our_template_asks_as_it_trains(tokenizer: Tokenizer) -> None:
    turns = [user("q"), assistant("a", reasoning_content="hm"), user("q"), assistant("", tool_calls=[CALL])]
    assert prompt_mismatch(tokenizer, [(turns, None), (turns[:2], [CALL])]) is None


def test_thinking_reaches_templates_with_a_switch(load: Load) -> None:
    ours, theirs = load(OPENS)
    for thinking in (True, False, None):
        given = {} if thinking is None else {"enable_thinking": thinking}
        expected = theirs.apply_chat_template([user("q")], add_generation_prompt=True, return_dict=False, **given)
        assert encode_chat(ours, [user("q")], add_generation_prompt=True, thinking=thinking).ids == expected
    check_switch(ours)


def test_thinking_is_refused_without_a_switch(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="no switch for thinking") as refused:
        encode_chat(tokenizer, [user("q")], add_generation_prompt=True, thinking=False)
    assert "--no-think" in refused.value.fix
    with pytest.raises(UserError, match="no switch for thinking"):
        check_switch(tokenizer)


# What is trained


def test_a_message_can_be_left_untrained(tokenizer: Tokenizer) -> None:
    turns = [user("a"), assistant("bad", train=False), user("b"), assistant("good")]
    assert trained_text(tokenizer, turns) == ["good<|im_end|>"]
    plain = [{key: value for key, value in turn.items() if key != "train"} for turn in turns]
    assert encode_chat(tokenizer, turns).ids == encode_chat(tokenizer, plain).ids
    assert trained_text(tokenizer, [*turns[:3], assistant("x", train=False)], train_on="last") == []


def test_reasoning_is_asked_for_under_each_of_its_names(load: Load) -> None:
    shown = template("('<think>' + m.NAME + '</think>' if m.NAME else '') + m.content")
    for name in ("reasoning_content", "thinking"):
        ours, theirs = load(shown.replace("NAME", name))
        assert shows_reasoning(ours)
        for given in ("reasoning_content", "thinking", "reasoning"):
            turns = [user("q"), assistant("a", **{given: "hm"})]
            assert encode_chat(ours, turns).ids == theirs.apply_chat_template(turns, return_dict=False)
    ours, _ = load(template("m.content"))
    assert not shows_reasoning(ours)
    with pytest.raises(UserError, match=r"messages\[1\]\.reasoning_content \(it shows no reasoning\)") as refused:
        encode_chat(ours, [user("q"), assistant("a", reasoning_content="hm")])
    assert "<think>" in refused.value.fix


def test_our_template_marks_what_is_trained_for_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert "{%- generation %}" in CHATML
    result = {"role": "tool", "content": "blue"}
    turns = [user("Hi\n"), assistant("Hello", reasoning_content="hm"), user("Look")]
    turns += [assistant("", tool_calls=[CALL]), result, assistant("你好 blue\n")]
    for length in range(1, len(turns) + 1):
        for tools in (None, [CALL]):
            output = theirs.apply_chat_template(
                turns[:length], tools=tools, return_dict=True, return_assistant_tokens_mask=True
            )
            encoded = encode_chat(tokenizer, turns[:length], tools=tools)
            assert output["input_ids"] == encoded.ids
            assert [bool(flag) for flag in output["assistant_masks"]] == encoded.trained


# The templates of models that others trained, as TRL ships them

STOCK = Path(*(importlib.util.find_spec("trl") or pytest).submodule_search_locations or ["none"]) / "chat_templates"  # type: ignore[union-attr,attr-defined]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Looks somewhere",
            "parameters": {
                "type": "object",
                "properties": {"at": {"type": "string", "description": "A place"}},
                "required": ["at"],
            },
        },
    }
]
SYSTEM = {"role": "system", "content": "Be brief.\n"}
RESULT = {"role": "tool", "name": "look", "content": "blue"}
SPOKEN = [user("Hi <|im_end|>\n"), assistant("Hello."), user(" Bye\n"), assistant("See\nyou")]
THOUGHT = [
    user("Hi"),
    assistant("Hello", reasoning_content="Hm,\nso"),
    user("x"),
    assistant("y", reasoning_content="Hm"),
]
CALLED = [user("Sky?"), assistant("", tool_calls=[CALL]), RESULT, assistant("It is blue")]
CONVERSATIONS: dict[str, tuple[list[Message], Any]] = {
    "several turns": (SPOKEN, None),
    "system": ([SYSTEM, *SPOKEN], None),
    "reasoning": (THOUGHT, None),
    "tools": (CALLED, TOOLS),
    "system and tools": ([SYSTEM, *CALLED], TOOLS),
    "tags in the content": ([user("Hi"), assistant("<think>\nr\n</think>\n\na")], None),
    "half a tag": ([user("Hi"), assistant("r\n</think>\n\na")], None),
}
CHATTING = ["several turns", "system", "tags in the content", "half a tag"]
EVERYTHING = list(CONVERSATIONS)
TAKEN = {
    **dict.fromkeys(("qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6"), EVERYTHING),
    "gptoss": [name for name in EVERYTHING if name != "tags in the content"],
    "llama3_1": [*CHATTING, "tools", "system and tools"],
    "glm4moe": EVERYTHING,
    "qwen2_5": [*CHATTING, "tools", "system and tools"],
    "llama3": CHATTING,
    "phi3": CHATTING,
    "gemma3": CHATTING,
}
CONTROL = re.compile(
    r"<[|｜][^<>{}'\"\s]*[|｜]>|</?think>|</?tool_call>|</?tool_response>|<start_of_turn>|<end_of_turn>|\[gMASK\]|<sop>"
)


def stock(load: Load, name: str) -> tuple[Tokenizer, Any]:
    file = STOCK / f"{name}.jinja"
    if not file.is_file():
        pytest.skip(f"the installed trl has no {name}.jinja")
    source = file.read_text(encoding="utf-8")
    return load(source, list(dict.fromkeys([*CONTROL.findall(source), "<|eos|>"])))


@pytest.mark.parametrize(("name", "conversation"), [(name, each) for name, taken in TAKEN.items() for each in taken])
def test_stock_templates_are_taken_exactly(load: Load, name: str, conversation: str) -> None:
    ours, theirs = stock(load, name)
    messages, tools = CONVERSATIONS[conversation]
    expected = theirs.apply_chat_template(copy.deepcopy(messages), tools=tools, tokenize=False)
    encoded = encode_chat(ours, messages, tools=tools)
    if name == "glm4moe":  # the end of its last turn is for the next one to write
        assert ours.control_token(encoded.ids.pop()) == "<|user|>"
    assert spelled(ours, encoded.ids) == expected
    written = json.dumps(messages)
    # Where the prompt opens a reasoning, a cut after it keeps it a prefix, also of rows whose reasoning is empty.
    is_cut = name in ("qwen3_5_think", "qwen3_6") and "reasoning_content" not in written
    if not is_cut and "<|im_end|>" not in written and "think>" not in written:
        assert encoded.ids == theirs.apply_chat_template(copy.deepcopy(messages), tools=tools, return_dict=False)
    for turn in messages[1:]:
        if turn["role"] == "assistant":
            assert any(turn["content"].split("\n")[-1] in text for text in trained_text(ours, messages, tools=tools))


def test_our_mask_for_glm_is_that_of_its_training_template(load: Load) -> None:
    ours, _ = stock(load, "glm4moe")
    _, theirs = stock(load, "glm4moe_training")
    for messages, tools in (CONVERSATIONS["several turns"], CONVERSATIONS["tools"]):
        messages = [turn for turn in messages if "<|" not in turn["content"]][-4:]
        messages = messages if messages[0]["role"] == "user" else messages[1:]
        output = theirs.apply_chat_template(
            copy.deepcopy(messages), tools=tools, return_dict=True, return_assistant_tokens_mask=True
        )
        encoded = encode_chat(ours, messages, tools=tools)
        assert output["input_ids"] == encoded.ids
        assert [bool(flag) for flag in output["assistant_masks"]] == encoded.trained

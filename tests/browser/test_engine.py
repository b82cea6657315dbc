"""The web export's JavaScript engine in Node: the ids, prompts, replies and samples that Python gives."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmcli.errors import UserError
from mmcli.export.web.folder import ENGINE
from mmcli.export.web.tokenizer_form import description, refuse_unreadable
from mmcli.export.web.turns import find_turns
from mmcli.generate.reply import read_reply
from mmcli.generate.sampler import SamplingConfig, sample, uniform
from mmcli.text.chat import encode_chat
from mmcli.text.definition import Definition
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import QWEN2_PATTERN, train_tokenizer

NODE = shutil.which("node")
TEXTS = [
    "",
    " ",
    "Hello, world! It's 12345 o'clock; they'll've seen, I'M HERE'S.",
    "  two  spaces\tand\ttabs \n\n new lines\r\n end  ",
    "你好，世界。今天天气很好，我们去公园散步吧！２０２６年",
    "日本語のテキストと한국어 텍스트, العربية, עברית, हिन्दी, ไทย, Ελληνικά, Русский",
    "emoji 🙂👩‍👩‍👧‍👦🇩🇪 and ½ ² Ⅷ ①",
    "<|im_start|>user\n<think></think><|endoftext|>",
    "def f(x):\n    return {'a': [1, 2.5e-3]}  # ok\n",
    "\ufeffBOM \u00a0nbsp \u2028ls \u0085nel \u200bzw \u3000wide \x1c\x1d fs",
    "'ſ 'S 'Ll 'ſt don'T e\u0301 é ñ n\u0303 K'k",
    "\ud83d lone surrogate \udc00",
    "a" * 3000 + "的" * 500,
    "\x00\x01\x7f\U000f0000",
]
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
SPLIT = {"type": "Split", "pattern": {"Regex": QWEN2_PATTERN}, "behavior": "Isolated", "invert": False}
CORPUS = [*TEXTS[2:-3], "The rain falls on the hills. It's raining, they'll say.", "今天天气很好。"] * 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """run(tokenizer, **asked): what the engine answers."""
    if NODE is None:
        pytest.skip("there is no Node")
    folder = tmp_path_factory.mktemp("engine")
    for path in ENGINE.glob("*.js"):
        shutil.copy(path, folder)
    (folder / "package.json").write_text('{"type": "module"}')

    def call(tokenizer: Tokenizer | None = None, **asked: Any) -> dict[str, Any]:
        if tokenizer is not None:
            definition = json.loads(json.dumps(tokenizer.definition.tokenizer))
            asked |= {"definition": definition, **description(tokenizer)}
        command = [str(NODE), str(Path(__file__).with_name("engine.mjs")), str(folder)]
        done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    return call


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(CORPUS, vocab_size=700)


def changed(tokenizer: Tokenizer, **parts: Any) -> Tokenizer:
    """The tokenizer with other parts of its tokenizer.json."""
    definition = tokenizer.definition
    return Tokenizer(Definition({**definition.tokenizer, **parts}, definition.config, definition.chat_template))


def forms(tokenizer: Tokenizer) -> dict[str, Tokenizer]:
    split = {**SPLIT, "pattern": {"Regex": QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")}}
    digits = {"type": "Digits", "individual_digits": True}
    model = tokenizer.definition.tokenizer["model"]
    return {
        "qwen2": tokenizer,
        "gpt2": train_tokenizer(CORPUS, vocab_size=700, pretokenizer="gpt2"),
        "llama3": changed(
            tokenizer,
            pre_tokenizer={"type": "Sequence", "pretokenizers": [split, BYTES]},
            model={**model, "ignore_merges": True},
        ),
        "digits": changed(
            tokenizer, pre_tokenizer={"type": "Sequence", "pretokenizers": [digits, {**BYTES, "use_regex": True}]}
        ),
        "nfc": changed(tokenizer, normalizer={"type": "NFC"}),
    }


@pytest.mark.parametrize("form", ["qwen2", "gpt2", "llama3", "digits", "nfc"])
def test_texts_have_the_ids_of_python(run: Callable[..., dict[str, Any]], tokenizer: Tokenizer, form: str) -> None:
    each = forms(tokenizer)[form]
    refuse_unreadable(each)
    ids = [each.encode_text(text) for text in TEXTS]
    answer = run(each, texts=TEXTS, decode=ids)
    assert answer["ids"] == ids
    assert answer["decoded"] == [each.decode(row) for row in ids]


def test_every_character_is_cut_alike(run: Callable[..., dict[str, Any]], tokenizer: Tokenizer) -> None:
    """Between a letter, a digit, a space and after an apostrophe."""
    known = [chr(code) for code in range(1, 0x30000) if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")]
    texts = [f"a{char}b 1{char}{char} {char}'{char} \n{char}" for char in known if not "\u3400" < char < "\u9fff"][::23]
    assert run(tokenizer, texts=texts)["ids"] == [tokenizer.encode_text(text) for text in texts]


def test_conversations_have_the_ids_of_the_template(run: Callable[..., dict[str, Any]], tokenizer: Tokenizer) -> None:
    ask, more = ({"role": "user", "content": text} for text in ("  云是什么? <|im_end|>\n", "\n3 + 4"))
    say = {"role": "assistant", "content": "\nWater.\n", "reasoning_content": "a cloud\n\nis"}
    system = {"role": "system", "content": "Be brief.<|im_start|>"}
    conversations = [[ask], [system, ask], [ask, say, more], [system, ask, say, more, {**say, "content": ""}, ask]]
    turns = find_turns(tokenizer)
    answer = run(tokenizer, turns=dataclasses.asdict(turns), conversations=conversations)
    expected = [encode_chat(tokenizer, messages, add_generation_prompt=True).ids for messages in conversations]
    assert answer["prompts"] == expected


TEMPLATES = {
    # A default system prompt, bos at the start, reasoning left out: in the manner of Qwen2.5, Llama 3, Qwen3.
    "default": "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "bos": "{{ bos_token }}{% for m in messages %}<think>{{ m.role }}</think>\n\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<think>assistant</think>\n\n{% endif %}",
}


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_foreign_templates_of_fixed_text_are_followed(
    run: Callable[..., dict[str, Any]], tokenizer: Tokenizer, name: str
) -> None:
    definition = dataclasses.replace(tokenizer.definition, chat_template=TEMPLATES[name])
    foreign = Tokenizer(definition)
    turns = find_turns(foreign)
    ask, say = {"role": "user", "content": " x "}, {"role": "assistant", "content": "y"}
    conversations = [[ask], [ask, say, ask], [{"role": "system", "content": "s"}, ask, say, ask]]
    answer = run(foreign, turns=dataclasses.asdict(turns), conversations=conversations)
    assert answer["prompts"] == [encode_chat(foreign, each, add_generation_prompt=True).ids for each in conversations]


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATES["default"].replace("{{ m.content }}", "{{ m.content | trim }}"),
        TEMPLATES["default"].replace("{{ m.content }}", "{{ loop.index }}: {{ m.content }}"),
        TEMPLATES["default"].replace("{{ m.role }}", "{{ m.role }} of {{ messages | length }}"),
    ],
    ids=["trim", "numbered", "counted"],
)
def test_a_template_that_does_more_is_refused(tokenizer: Tokenizer, template: str) -> None:
    foreign = Tokenizer(dataclasses.replace(tokenizer.definition, chat_template=template))
    with pytest.raises(UserError, match="the chat template") as caught:
        find_turns(foreign)
    assert "mmcli serve" in caught.value.fix


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "its normalizer is Lowercase"),
        ({"pre_tokenizer": {**BYTES, "add_prefix_space": True, "use_regex": True}}, "its pre-tokenizer is"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{**SPLIT, "pattern": {"Regex": "x+"}}, BYTES]}},
            "x[+]",
        ),
    ],
)
def test_a_tokenizer_of_another_form_is_refused(tokenizer: Tokenizer, parts: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        refuse_unreadable(changed(tokenizer, **parts))


def test_replies_are_read_as_in_python(run: Callable[..., dict[str, Any]], tokenizer: Tokenizer) -> None:
    think, end = (tokenizer.control_id(mark) for mark in ("<think>", "</think>"))
    call, end_call = (tokenizer.control_id(mark) for mark in ("<tool_call>", "</tool_call>"))
    a, b, broken = (
        tokenizer.encode_text("\nA 云\n"),
        tokenizer.encode_text("\n\nB <think>"),
        tokenizer.encode_text("🙂")[:2],
    )
    rows = [b, [think, *a, end, *b], [*a, think, *b], [think, *a], [call, *a, end_call], [*b, *broken], [*broken, *a]]
    for row, answer in zip(rows, run(tokenizer, replies=rows)["replies"], strict=True):
        message = read_reply(tokenizer, row)
        assert answer["content"] == message["content"]
        assert answer["reasoning"].strip("\n") == message.get("reasoning_content", "")


def test_samples_are_those_of_python(run: Callable[..., dict[str, Any]]) -> None:
    places = [[0, 0], [1, 7], [2**32 - 1, 4096], [123456789, 2**20]]
    assert run(uniform=places)["uniform"] == [uniform(seed, position) for seed, position in places]
    rng = np.random.default_rng(1)
    settings = [
        *({"temperature": 0.0}, {}, {"top_k": 0}, {"top_k": 0, "top_p": 1.0}, {"min_p": 0.1, "top_p": 1.0}),
        *({"repetition_penalty": 1.3, "temperature": 1.5}, {"temperature": 1e-6}, {"top_k": 3, "top_p": 0.5}),
    ]
    asked, expected = [], []
    for number in range(200):
        config = SamplingConfig(seed=number, **settings[number % len(settings)])
        logits = (rng.standard_normal(300) * 3).astype(np.float32)
        if number % 3 == 0:
            logits = np.round(logits)  # ties
        seen = [int(id) for id in rng.integers(0, 300, size=20)]
        expected.append(int(sample(logits[None], [config], [seen], [number])[0]))
        fields = dataclasses.asdict(config)
        asked.append({"logits": logits.tolist(), "config": fields, "seen": seen, "position": number})
    assert run(samples=asked)["samples"] == expected

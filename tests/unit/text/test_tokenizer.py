"""Loading, encoding and decoding: no text is a control token, and every text comes back."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from mmcli.errors import UserError
from mmcli.text.bytelevel import byte_alphabet
from mmcli.text.template import CHATML
from mmcli.text.tokenizer import TextStream, Tokenizer, whole_characters

SAMPLES = [
    "",
    " ",
    "\n\n\n",
    "Hello, world!",
    "  two  spaces \t tab\r\n",
    "你好，世界！😀👩‍👩‍👧‍👦 e\u0301",
    "1234567890 3.14",
    "\x00\x1f\x7f",
    "a" * 3000,
]


def spellings(tokenizer: Tokenizer) -> list[str]:
    """Every control token alone, in words, doubled, and nearly broken apart."""
    names = list(tokenizer.control_tokens)
    texts = names + [f"a{name}b" for name in names] + [f" {name} " for name in names] + [name * 3 for name in names]
    return [*texts, "".join(names), "<|im_<|im_start|>start|>", "<|im_start|>system\nx<|im_end|>\n"]


@pytest.mark.parametrize("text", SAMPLES)
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode_text(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.token_bytes(id) for id in ids) == text.encode()


def test_every_unicode_scalar_comes_back(tokenizer: Tokenizer) -> None:
    scalars = [chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
    assert len(scalars) == 1_112_064
    texts = ["".join(scalars[at : at + 1024]) for at in range(0, len(scalars), 1024)]
    controls = set(tokenizer.control_tokens.values())
    for text, ids in zip(texts, tokenizer.encode_texts(texts), strict=True):
        assert tokenizer.decode(ids) == text
        assert controls.isdisjoint(ids)


def test_random_bytes_come_back(tokenizer: Tokenizer) -> None:
    pick = random.Random(0)
    controls = set(tokenizer.control_tokens.values())
    of_byte = {tokenizer.token_bytes(id): id for id in range(tokenizer.vocab_size) if id not in controls}
    strings = [pick.randbytes(pick.randrange(1, 60)) for _ in range(10_000)]
    texts = [string.decode("utf-8", "replace") for string in strings]
    for string, text, ids in zip(strings, texts, tokenizer.encode_texts(texts), strict=True):
        assert tokenizer.decode(ids) == text and controls.isdisjoint(ids)
        raw = [of_byte[bytes([byte])] for byte in string]  # no byte is without a token
        assert b"".join(tokenizer.token_bytes(id) for id in raw) == string
        assert tokenizer.decode(raw) == text


def test_no_text_is_a_control_token(tokenizer: Tokenizer) -> None:
    controls = set(tokenizer.control_tokens.values())
    for text in spellings(tokenizer):
        ids = tokenizer.encode_text(text)
        assert controls.isdisjoint(ids), text
        assert tokenizer.decode(ids) == text


def test_batch_equals_single(tokenizer: Tokenizer) -> None:
    texts = SAMPLES + spellings(tokenizer)
    assert tokenizer.encode_texts(texts) == [tokenizer.encode_text(text) for text in texts]
    assert tokenizer.encode_texts([]) == []


def test_ordinary_text_is_encoded_as_the_library_does(tokenizer: Tokenizer) -> None:
    """Taking the control tokens out changes nothing else."""
    whole = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.definition.tokenizer))
    for text in SAMPLES:
        assert tokenizer.encode_text(text) == whole.encode(text, add_special_tokens=False).ids


def test_lone_surrogates_become_replacement_characters(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode_text("a\ud800b\udfff")) == "a\ufffdb\ufffd"
    assert tokenizer.decode(tokenizer.encode_texts(["x", "\ud83d\ude00\ud83d"])[1]) == "😀\ufffd"
    assert whole_characters("plain 😀") == "plain 😀"


def test_documents_stand_between_bos_and_eos(tokenizer: Tokenizer) -> None:
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    ids = tokenizer.encode_document("Hello<|im_end|>")
    assert ids == [1, *tokenizer.encode_text("Hello<|im_end|>"), 2]
    assert ids.count(2) == 1


def test_decode_drops_or_spells_control_tokens(tokenizer: Tokenizer) -> None:
    think = tokenizer.control_id("<think>")
    assert think is not None
    ids = [1, *tokenizer.encode_text("hi"), think, 2]
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(ids, keep_special=True) == "<|im_start|>hi<think><|im_end|>"
    assert tokenizer.control_token(2) == "<|im_end|>"
    assert tokenizer.control_token(tokenizer.encode_text("h")[0]) is None
    assert tokenizer.control_id("<none>") is None


def test_bytes_of_tokens(tokenizer: Tokenizer) -> None:
    lengths = tokenizer.byte_lengths()
    assert lengths.shape == (tokenizer.vocab_size,)
    assert lengths.dtype == np.int64
    for id in tokenizer.control_tokens.values():
        assert tokenizer.token_bytes(id) == b"" and lengths[id] == 0
    for text in SAMPLES:
        assert lengths[tokenizer.encode_text(text)].sum() == len(text.encode())
    assert sorted(tokenizer.token_bytes(id) for id in range(32, 288)) == [bytes([byte]) for byte in range(256)]
    assert tokenizer.token_bytes(tokenizer.vocab_size + 100) == b""
    with pytest.raises(ValueError, match="-1"):
        tokenizer.token_bytes(-1)


def test_stream_gives_whole_characters(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    single = {tokenizer.token_bytes(id): id for id in range(32, 288)}
    pushed = [stream.push(single[bytes([byte])]) for byte in "é😀x".encode()]
    assert pushed == ["", "é", "", "", "", "😀", "x"]
    assert stream.flush() == ""
    assert stream.push(single[b"\xf0"]) == ""
    assert stream.flush() == "\ufffd"
    assert stream.push(single[b"\xff"]) == "\ufffd"
    assert stream.push(single[b"\xe4"]) + stream.push(single[b"a"]) == "\ufffda"
    assert stream.push(2) == ""


def test_stream_adds_up_to_decode(tokenizer: Tokenizer) -> None:
    generator = random.Random(0)
    for keep in (False, True):
        for _ in range(200):
            ids = [generator.randrange(tokenizer.vocab_size) for _ in range(generator.randrange(1, 30))]
            stream = TextStream(tokenizer, keep_special=keep)
            assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids, keep_special=keep)


def test_saved_is_loaded_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "new" / "folder")
    for path in (tmp_path / "new" / "folder", tmp_path / "new" / "folder" / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.chat_template == tokenizer.chat_template == CHATML
        assert loaded.control_tokens == tokenizer.control_tokens
        assert (loaded.pad_id, loaded.bos_id, loaded.eos_id) == (0, 1, 2)
        assert loaded.encode_texts(SAMPLES) == tokenizer.encode_texts(SAMPLES)


def test_fingerprint_tells_apart(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for change in ({"chat_template": "x"}, {"eos_token": "<|endoftext|>"}, {"pad_token": "<|im_end|>"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, **change}))
        assert Tokenizer.load(tmp_path).fingerprint != tokenizer.fingerprint
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(reversed(config.items())), indent=7))
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint


def test_transformers_reads_the_folder(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == tokenizer.vocab_size
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (0, 1, 2)
    assert theirs.chat_template == CHATML
    for text in SAMPLES:
        assert theirs.encode(text) == tokenizer.encode_text(text)
    ids = [1, *tokenizer.encode_text("hi"), tokenizer.control_tokens["<tool_call>"], 2]
    assert theirs.decode(ids, skip_special_tokens=True) == "hi<tool_call>"


FORK = """
import os, sys
from pathlib import Path
from mmcli.text.tokenizer import Tokenizer
tokenizer = Tokenizer.load(Path(sys.argv[1]))
texts = [f"text number {n}, 你好" for n in range(500)]
before = tokenizer.encode_texts(texts)
child = os.fork()
if not child:
    os._exit(0 if tokenizer.encode_texts(texts) == before else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert tokenizer.encode_texts(texts) == before == [tokenizer.encode_text(text) for text in texts]
"""


@pytest.mark.parametrize("parallelism", [None, "true", "false"])
def test_encodes_in_forked_children(tokenizer: Tokenizer, tmp_path: Path, parallelism: str | None) -> None:
    tokenizer.save(tmp_path)
    environment = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    environment |= {"RAYON_NUM_THREADS": "2"} | ({"TOKENIZERS_PARALLELISM": parallelism} if parallelism else {})
    subprocess.run([sys.executable, "-c", FORK, str(tmp_path)], env=environment, check=True, timeout=60)


# Other people's tokenizers


def test_special_tokens_of_the_config(write_folder: Any) -> None:
    config = {"bos_token": None, "eos_token": {"content": "<b>"}, "pad_token": "<c>", "added_tokens_decoder": {}}
    loaded = Tokenizer.load(write_folder(["<a>", "<b>", "<c>"], config, generation_config={"bos_token_id": 1}))
    assert loaded.bos_id is None
    assert loaded.eos_id == loaded.control_id("<b>")
    assert loaded.pad_id == loaded.control_id("<c>")
    assert loaded.encode_document("x") == [*loaded.encode_text("x"), loaded.eos_id]


def test_special_tokens_of_the_map(write_folder: Any) -> None:
    special = {"bos_token": "<a>", "eos_token": "<b>"}
    loaded = Tokenizer.load(write_folder(["<a>", "<b>"], {}, special_tokens_map=special))
    assert (loaded.bos_id, loaded.eos_id) == (loaded.control_id("<a>"), loaded.control_id("<b>"))
    assert loaded.pad_id == loaded.eos_id


def test_special_tokens_of_the_model(write_folder: Any) -> None:
    probe = Tokenizer.load(write_folder(["<a>", "<b>"]))
    a, b = probe.control_id("<a>"), probe.control_id("<b>")
    folder = write_folder(["<a>", "<b>"], None, generation_config={"eos_token_id": [b, a]}, model={"bos_token_id": a})
    loaded = Tokenizer.load(folder)
    assert (loaded.eos_id, loaded.definition.more_eos_ids) == (b, (b, a))


def test_a_lone_file_gets_the_usual_eos(write_folder: Any) -> None:
    folder = write_folder(["<x>", "<|endoftext|>"], {"eos_token": "<x>"})
    (folder / "tokenizer.json").rename(folder / "alone.json")
    loaded = Tokenizer.load(folder / "alone.json")
    assert (loaded.bos_id, loaded.eos_id) == (None, loaded.control_id("<|endoftext|>"))


def test_an_unknown_eos_is_refused_an_unknown_pad_is_not(write_folder: Any) -> None:
    loaded = Tokenizer.load(write_folder(["<a>"], {"eos_token": "<a>", "pad_token": "[PAD]"}))
    assert loaded.pad_id == loaded.eos_id
    with pytest.raises(UserError, match='eos_token "<no>" is not in'):
        Tokenizer.load(write_folder(["<a>"], {"eos_token": "<no>"}))


def test_a_named_special_token_is_a_control_token(write_folder: Any) -> None:
    """A token of the vocabulary that only the config calls special must not be written by text."""

    def change(definition: dict[str, Any]) -> None:
        definition["model"]["vocab"]["<eos>"] = len(definition["model"]["vocab"])
        definition["added_tokens"][0]["id"] += 1  # the library numbers <a> after the vocabulary

    loaded = Tokenizer.load(write_folder(["<a>"], {"eos_token": "<eos>"}, change))
    assert loaded.eos_id == loaded.control_tokens["<eos>"]
    assert loaded.eos_id not in loaded.encode_text("<eos>")


def test_tokens_that_only_the_config_declares(write_folder: Any) -> None:
    probe = Tokenizer.load(write_folder(["<a>"]))
    declared = {str(probe.vocab_size): {"content": "<more>", "special": True}}
    loaded = Tokenizer.load(write_folder(["<a>"], {"added_tokens_decoder": declared}))
    assert loaded.control_id("<more>") == probe.vocab_size
    assert loaded.vocab_size == probe.vocab_size + 1
    assert loaded.decode(loaded.encode_text("<more>")) == "<more>"


def test_chat_templates(write_folder: Any) -> None:
    assert Tokenizer.load(write_folder(["<a>"], {"chat_template": "T"})).chat_template == "T"
    named = [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]
    assert Tokenizer.load(write_folder(["<a>"], {"chat_template": named})).chat_template == "D"
    assert Tokenizer.load(write_folder(["<a>"], {"chat_template": "T"}, jinja="J")).chat_template == "J"


def test_without_a_template_chatml_if_its_tokens_are_there(write_folder: Any) -> None:
    assert Tokenizer.load(write_folder(["<|im_start|>"])).chat_template is None
    assert Tokenizer.load(write_folder(["<|im_start|>", "<|im_end|>"])).chat_template == CHATML


def test_nothing_is_added_cut_or_left_to_chance(write_folder: Any, tokenizer: Tokenizer) -> None:
    def change(definition: dict[str, Any]) -> None:
        bos = definition["added_tokens"][0]["id"]
        template = [{"SpecialToken": {"id": "<a>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        definition["post_processor"] = {
            "type": "TemplateProcessing",
            "single": template,
            "pair": [*template, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<a>": {"id": "<a>", "ids": [bos], "tokens": ["<a>"]}},
        }
        truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
        padding = {"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None}
        definition["truncation"] = truncation
        definition["padding"] = {**padding, "pad_id": bos, "pad_type_id": 0, "pad_token": "<a>"}
        definition["model"]["dropout"] = 0.5

    loaded = Tokenizer.load(write_folder(["<a>"], None, change))
    text = "The quick brown fox jumps over the lazy dog."
    shift = 32  # without our control tokens every id is smaller by their number
    assert loaded.encode_text(text) == [id - shift for id in tokenizer.encode_text(text)]


@pytest.mark.parametrize("ignore_merges", [False, True])
def test_a_control_token_that_merges_can_spell(write_folder: Any, ignore_merges: bool) -> None:
    """Words of the vocabulary that are control tokens too: whole-word look-up and merges must not reach them."""

    def change(definition: dict[str, Any]) -> None:
        definition["model"]["ignore_merges"] = ignore_merges
        definition["added_tokens"].append(
            {**definition["added_tokens"][0], "content": "et", "id": definition["model"]["vocab"]["et"]}
        )

    loaded = Tokenizer.load(write_folder(["<a>"], None, change))
    control = loaded.control_tokens["et"]
    without = tokenizers.Tokenizer.from_str(json.dumps({**loaded.definition.tokenizer, "added_tokens": []}))
    assert control in without.encode("et").ids  # leaving the added tokens out is not enough
    for text in ("et", "get_weather", " et", "bet et"):
        assert control not in loaded.encode_text(text)
        assert loaded.decode(loaded.encode_text(text)) == text


def test_added_white_space_is_text(write_folder: Any) -> None:
    """GPT-J and Phi add runs of spaces to shorten code: a model's spaces must not vanish."""
    spaces = [{"content": " " * 8, "special": False}, {"content": "\t\t", "special": False}]
    loaded = Tokenizer.load(write_folder([*spaces, {"content": "<a>"}]))
    assert list(loaded.control_tokens) == ["<a>"]
    text = "x" + " " * 8 + "y\t\tz<a>"
    ids = loaded.encode_text(text)
    assert loaded.decode(ids) == text
    assert {loaded.vocab_size - 3, loaded.vocab_size - 2} <= set(ids)


def test_added_white_space_after_control_tokens_keeps_its_id(write_folder: Any) -> None:
    """The library would number it anew; then text does without it."""
    loaded = Tokenizer.load(write_folder([{"content": "<a>"}, {"content": " " * 8, "special": False}]))
    text = "x" + " " * 8 + "y"
    assert loaded.decode(loaded.encode_text(text)) == text
    assert loaded.control_tokens["<a>"] not in loaded.encode_text(text)
    assert loaded.token_bytes(loaded.vocab_size - 1) == b" " * 8


def test_added_words_are_text_with_the_ids_of_transformers(write_folder: Any) -> None:
    from transformers import AutoTokenizer

    tags = ["<a>", {"content": "<think>", "special": False}, {"content": "[CALL]", "special": False}]
    words = [{"content": word, "special": False} for word in ("NASA", " weather", "|||MAIL|||")]
    folder = write_folder([tags[0], words[0], *tags[1:], *words[1:]], {"tokenizer_class": "PreTrainedTokenizerFast"})
    loaded, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    assert set(loaded.control_tokens) == {"<a>", "<think>", "[CALL]"}
    for text in ("NASA", "The weather at NASA is fine", "x|||MAIL|||y", "NASAX 你好"):
        ids = loaded.encode_text(text)
        assert ids == theirs.encode(text, add_special_tokens=False)
        assert loaded.decode(ids) == text
    assert set(loaded.control_tokens.values()).isdisjoint(loaded.encode_text("<think>[CALL]<a>"))


@pytest.mark.parametrize("special", [True, False])
def test_ids_that_the_library_would_shift_are_refused(write_folder: Any, special: bool) -> None:
    def change(definition: dict[str, Any]) -> None:
        definition["added_tokens"][1]["id"] += 5

    with pytest.raises(
        UserError, match=r'the added token "NASA" has the id \d+, and the tokenizers library'
    ) as refused:
        Tokenizer.load(write_folder(["<a>", {"content": "NASA", "special": special}], None, change))
    assert "number it anew" in refused.value.fix


def test_a_single_byte_can_not_be_a_control_token(write_folder: Any) -> None:
    def change(definition: dict[str, Any]) -> None:
        definition["added_tokens"].append(
            {**definition["added_tokens"][0], "content": "!", "id": definition["model"]["vocab"]["!"]}
        )

    loaded = Tokenizer.load(write_folder(["<a>"], None, change))
    assert loaded.control_id("!") is None
    assert loaded.decode(loaded.encode_text("Hi! <a>")) == "Hi! <a>"


def test_merges_in_the_old_form(write_folder: Any, tokenizer: Tokenizer) -> None:
    def change(definition: dict[str, Any]) -> None:
        definition["model"]["merges"] = [" ".join(merge) for merge in definition["model"]["merges"]]

    loaded = Tokenizer.load(write_folder(["<a>"], None, change))
    assert [id + 32 for id in loaded.encode_text("The lazy dog")] == tokenizer.encode_text("The lazy dog")


# What is refused


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Tokenizer.load(tmp_path / "none")
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    file = tmp_path / "tokenizer.json"
    for content, message in [
        ("{", "is not JSON"),
        ("[]", "is not a tokenizer"),
        ('{"a": 1}', "is not a tokenizer"),
        ('{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "is not a tokenizer"),
    ]:
        file.write_text(content)
        with pytest.raises(UserError, match=message) as caught:
            Tokenizer.load(tmp_path)
        assert str(file) in caught.value.what
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not JSON"):
        Tokenizer.load(file)


def test_other_kinds_of_tokenizers_are_refused(tmp_path: Path) -> None:
    alphabet = {symbol: number for number, symbol in enumerate(byte_alphabet())}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    bpe = {"type": "BPE", "vocab": alphabet, "merges": []}
    lacking = {symbol: id for symbol, id in alphabet.items() if symbol != "a"}
    for definition, reason in [
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}}}, "WordPiece"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, "Unigram"),
        ({"model": bpe, "pre_tokenizer": {"type": "Metaspace"}}, "SentencePiece"),
        ({"model": {**bpe, "end_of_word_suffix": "</w>"}, "pre_tokenizer": byte_level}, "ends or the insides"),
        ({"model": {**bpe, "vocab": lacking}, "pre_tokenizer": byte_level}, "lacks 1 bytes of UTF-8 .*0x61"),
    ]:
        (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
        with pytest.raises(UserError, match=reason):
            Tokenizer.load(tmp_path)


def test_what_the_library_refuses_is_told(write_folder: Any) -> None:
    def change(definition: dict[str, Any]) -> None:
        definition["model"]["merges"].append(["no", "such token"])

    with pytest.raises(UserError, match="the tokenizers library refuses"):
        Tokenizer.load(write_folder(["<a>"], None, change))


def test_broken_neighbours_are_named(write_folder: Any) -> None:
    folder = write_folder(["<a>"], {"chat_template": 3})
    with pytest.raises(UserError, match="chat_template is not text"):
        Tokenizer.load(folder)
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"tokenizer_config\.json is not a JSON object"):
        Tokenizer.load(folder)


def test_a_regular_expression_that_panics_is_told(write_folder: Any) -> None:
    """Rust's panics are no `Exception` in Python."""

    def change(definition: dict[str, Any]) -> None:
        definition["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": "(x+x+)+y"}

    loaded = Tokenizer.load(write_folder(["<a>"], None, change))
    for encode in (loaded.encode_text, lambda text: loaded.encode_texts([text])):
        with pytest.raises(UserError, match=r"cannot encode a text with this tokenizer\.json: .*retry-limit"):
            encode("x" * 40)


def test_files_that_are_nested_too_deeply_are_refused(write_folder: Any) -> None:
    folder = write_folder(["<a>"])
    file = folder / "tokenizer.json"
    whole = file.read_text(encoding="utf-8")
    for depth in (900, 200_000):
        file.write_text(whole[:-1] + ', "normalizer": ' + "[" * depth + "]" * depth + "}", encoding="utf-8")
        with pytest.raises(UserError, match=r"nested too deeply|refuses this tokenizer\.json"):
            Tokenizer.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda each: each["model"]["vocab"].update({"zz": 1 << 40}), 'the token "zz" has the id'),
        (lambda each: each["model"]["vocab"].update({"zz": "1"}), "the token \"zz\" has the id '1'"),
        (lambda each: each["added_tokens"].append({"content": "<z>", "id": 1 << 40}), "added_tokens are not tokens"),
        (lambda each: each["added_tokens"].append("<z>"), "added_tokens are not tokens"),
    ],
)
def test_ids_out_of_all_proportion_are_refused(write_folder: Any, change: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Tokenizer.load(write_folder(["<a>"], None, change))


@pytest.mark.parametrize("declared", [{"x": {"content": "<b>"}}, {"9": "<b>"}, {"9": {}}, ["<b>"]])
def test_declared_tokens_of_a_wrong_form_are_refused(write_folder: Any, declared: Any) -> None:
    with pytest.raises(UserError, match="added_tokens_decoder has no token with content and id"):
        Tokenizer.load(write_folder(["<a>"], {"added_tokens_decoder": declared}))

"""Replies held to a grammar: every one fits, whatever the model would rather write."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mmcli.errors import UserError
from mmcli.generate.generate import generate
from mmcli.generate.grammar import Grammar
from mmcli.generate.sampler import SamplingConfig, sample
from mmcli.generate.sequence import TokenSequence
from mmcli.generate.step import step
from mmcli.generate.torch_engine import TorchEngine
from mmcli.model.config import ModelConfig
from mmcli.model.transformer import Transformer
from mmcli.text.tokenizer import Tokenizer

pytest.importorskip("llguidance", reason="needs the extra mmcli[schema]")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "city": {"enum": ["北京", "上海", "Paris"]},
        "married": {"type": "boolean"},
    },
    "required": ["name", "age", "city", "married"],
    "additionalProperties": False,
}
TAGS = {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,4}$"}, "minItems": 1, "maxItems": 3}
CHOICE = {"anyOf": [{"const": {"done": True}}, {"type": "null"}, {"type": "number", "minimum": 0, "maximum": 9}]}
SAMPLINGS = {
    "greedy": SamplingConfig(temperature=0),
    "sampled": SamplingConfig(temperature=1.5),
    "hot, without top-k": SamplingConfig(temperature=5.0, top_k=0, top_p=1.0),
    "few": SamplingConfig(temperature=1.0, top_k=1, min_p=0.2),
}


@pytest.fixture(scope="module")
def engine(tokenizer: Tokenizer) -> TorchEngine:
    """A random model with more rows than the tokenizer has tokens."""
    config = ModelConfig(dim=16, n_layers=1, n_heads=2, vocab_size=tokenizer.vocab_size + 9, max_seq_len=512)
    return TorchEngine(Transformer(config, seed=1), slots=4)


def reply(
    engine: TorchEngine, tokenizer: Tokenizer, grammar: Grammar, sampling: SamplingConfig, limit: int = 300
) -> tuple[str, Any]:
    assert tokenizer.eos_id is not None
    stops = {tokenizer.eos_id}
    made = generate(
        engine, 0, tokenizer.encode_text("Hello"), sampling, max_new_tokens=limit, stop_ids=stops, grammar=grammar
    )
    return tokenizer.decode(list(made), keep_special=True), made.finish_reason


def fits(value: Any, schema: Any) -> bool:
    if schema is PERSON:
        return (
            list(value) == ["name", "age", "city", "married"]
            and isinstance(value["name"], str)
            and len(value["name"]) <= 6
            and isinstance(value["age"], int)
            and 0 <= value["age"] <= 120
            and value["city"] in ("北京", "上海", "Paris")
            and isinstance(value["married"], bool)
        )
    if schema is TAGS:
        return 1 <= len(value) <= 3 and all(re.fullmatch("[a-z]{1,4}", each) for each in value)
    return value is None or value == {"done": True} or 0 <= value <= 9


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("schema", [PERSON, TAGS, CHOICE], ids=["person", "tags", "choice"])
def test_every_reply_fits_the_schema(
    engine: TorchEngine, tokenizer: Tokenizer, schema: Any, sampling: SamplingConfig
) -> None:
    grammar = Grammar.from_schema(tokenizer, schema)
    for seed in range(1 if sampling.temperature == 0 else 4):
        text, reason = reply(engine, tokenizer, grammar, SamplingConfig(**{**vars(sampling), "seed": seed}))
        assert reason == "stop" and fits(json.loads(text), schema), text


def test_a_reply_that_is_cut_says_so(engine: TorchEngine, tokenizer: Tokenizer) -> None:
    grammar = Grammar.from_schema(tokenizer, {"type": "string", "minLength": 500})
    text, reason = reply(engine, tokenizer, grammar, SamplingConfig(seed=3), limit=20)
    assert reason == "length" and text.startswith('"')


def test_any_object_a_pattern_and_a_lark_grammar(engine: TorchEngine, tokenizer: Tokenizer) -> None:
    sampling = SamplingConfig(temperature=3.0, top_k=0, top_p=1.0)
    text, reason = reply(engine, tokenizer, Grammar.json_object(tokenizer), sampling)
    assert text.startswith("{") and (reason == "length" or isinstance(json.loads(text), dict))
    text, reason = reply(engine, tokenizer, Grammar.from_regex(tokenizer, "(你好|再见)!{2,3}"), sampling)
    assert (re.fullmatch("(你好|再见)!{2,3}", text) is not None, reason) == (True, "stop")
    lark = 'start: pair ("," pair)*\npair: /[a-c]/ "=" /[0-9]/'
    text, reason = reply(engine, tokenizer, Grammar.from_lark(tokenizer, lark), SamplingConfig(temperature=2.0))
    assert re.fullmatch("[a-c]=[0-9](,[a-c]=[0-9])*", text) if reason == "stop" else text[1] == "="


def test_sequences_of_one_step_follow_each_their_own_grammar(engine: TorchEngine, tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_id is not None
    grammar = Grammar.from_schema(tokenizer, PERSON)
    options = {"max_new_tokens": 200, "max_len": 512, "stop_ids": {tokenizer.eos_id}}
    prompt = tokenizer.encode_text("Hello")
    held = {
        slot: TokenSequence(prompt, SamplingConfig(seed=slot), grammar=None if slot == 3 else grammar, **options)
        for slot in range(4)
    }
    alone = [reply(engine, tokenizer, grammar, SamplingConfig(seed=slot))[0] for slot in range(3)]
    free = TokenSequence(prompt, SamplingConfig(seed=3), **options)
    while free.finish_reason is None:
        step(engine, {3: free})
    while any(each.finish_reason is None for each in held.values()):
        step(engine, held)
    assert [tokenizer.decode(held[slot].new_ids) for slot in range(3)] == alone
    assert held[3].ids == free.ids  # whoever has no grammar draws as before


def test_a_mask_leaves_the_logits_and_the_other_rows_alone() -> None:
    logits_SV = np.random.default_rng(0).normal(size=(2, 40)).astype(np.float32)
    before = logits_SV.copy()
    allowed_V = np.arange(40) == 7
    for config in (SamplingConfig(temperature=0), SamplingConfig(top_k=30), SamplingConfig(top_k=0, min_p=0.1)):
        configs, seen = [config, config], [np.arange(40), np.arange(40)]
        drawn = sample(logits_SV, configs, seen, [1, 2], [allowed_V, None])
        assert drawn.tolist() == [7, sample(logits_SV, configs, seen, [1, 2])[1]]
    assert (logits_SV == before).all()


def test_control_tokens_and_unknown_rows_are_never_allowed(tokenizer: Tokenizer) -> None:
    state = Grammar.from_regex(tokenizer, "(?s:.*)").start([5])
    allowed_V = state.allowed(tokenizer.vocab_size + 4)
    assert not allowed_V[tokenizer.vocab_size :].any()
    controls = set(tokenizer.control_tokens.values()) - {5}
    assert not any(allowed_V[id] for id in controls) and allowed_V[5]
    assert allowed_V[tokenizer.encode_text("Hello")[0]]


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "strng"}, "Invalid type: strng"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "object", "x-guidance": {"lenient": True}, "not": {}}, "not"),
        ({"type": "string", "format": "zzz"}, "Unknown format: zzz"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"enum": []}, "Unsatisfiable"),
        ({"$ref": "http://example.org/x"}, "http://example.org/x"),
        ({"allOf": [{"properties": {"a": {"oneOf": [{"type": "string"}, {"maxLength": 2}]}}}]}, "oneOf"),
        ({"type": "object", "properties": {"a": {"requierd": ["b"]}}}, '"requierd" at #/properties/a'),
        ({"$defs": {"a": {"dependencies": {}}}}, '"dependencies" at #/$defs/a'),
        ({"type": "object", "minProperties": 2}, "2 properties without their names at #"),
        (["a"], "the JSON schema is no object"),
        (json.loads('{"items":' * 300 + "{}" + "}" * 300), "levels deep"),
    ],
)
def test_what_cannot_be_held_to_is_refused(tokenizer: Tokenizer, schema: Any, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        Grammar.from_schema(tokenizer, schema)


def test_properties_may_have_the_names_of_keywords(tokenizer: Tokenizer) -> None:
    Grammar.from_schema(tokenizer, {"type": "object", "properties": {"nullable": {}, "typ": {"title": "requierd"}}})


@pytest.mark.parametrize("make", [Grammar.from_regex, Grammar.from_lark])
def test_a_wrong_grammar_is_refused(tokenizer: Tokenizer, make: Any) -> None:
    with pytest.raises(UserError, match="does not work"):
        make(tokenizer, "(((")


def test_no_stop_ids_are_refused(tokenizer: Tokenizer) -> None:
    stops: Sequence[int] = ()
    with pytest.raises(UserError, match="no id that ends it"):
        Grammar.json_object(tokenizer).start(stops)


def test_without_the_library_the_extra_is_named(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UserError) as caught:
        Grammar.json_object(tokenizer)
    assert 'pip install "mmcli[schema]"' in caught.value.fix

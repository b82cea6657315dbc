"""Replies under a JSON schema: how many of them parse and fit it.

    python benchmarks/schema_replies.py MODEL                 # the folder of a model
    python benchmarks/schema_replies.py MODEL --check         # exit 1 unless all do

Questions and schemas take turns, sampled at temperature 1 with a seed of its own each, and without limit but that of
the schema and the context. The last line is `schema parsed=N of=M`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SLOTS = 16
WORD = {"type": "string", "pattern": "^[A-Za-z ]{1,16}$"}
SCHEMAS: list[dict[str, Any]] = [
    {"properties": {"answer": {"type": "boolean"}, "reason": {"type": "string", "maxLength": 40}}},
    {"properties": {"name": WORD, "age": {"type": "integer", "minimum": 0, "maximum": 120}}},
    {"properties": {"kind": {"enum": ["animal", "plant", "thing"]}, "legs": {"enum": [0, 2, 4, 6]}}},
    {"properties": {"words": {"type": "array", "items": WORD, "minItems": 1, "maxItems": 4}}},
    {"properties": {"place": {"type": "object", "properties": {"city": WORD}, "required": ["city"]}}},
]
QUESTIONS = [
    "Is a whale a fish?",
    "Tell me about a person.",
    "What is a spider?",
    "Name some colours.",
    "Where is the Eiffel Tower?",
    "你好，天气怎么样？",
    'Write {"a": [1, 2',
]


def main() -> int:
    from mmcli.api import (
        Grammar,
        SamplingConfig,
        Tokenizer,
        TokenSequence,
        TorchEngine,
        encode_chat,
        load_model,
        run_sequences,
        stop_ids,
    )

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--replies", type=int, default=500)
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    engine, tokenizer = TorchEngine(load_model(asked.model), slots=SLOTS, max_len=1024), Tokenizer.load(asked.model)
    schemas = [closed(schema) for schema in SCHEMAS]
    grammars = [Grammar.from_schema(tokenizer, schema) for schema in schemas]

    def sequences() -> Iterator[tuple[int, TokenSequence]]:
        for number in range(asked.replies):
            messages = [{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}]
            yield (
                number,
                TokenSequence(
                    encode_chat(tokenizer, messages, add_generation_prompt=True).ids,
                    SamplingConfig(temperature=1.0, seed=number),
                    max_new_tokens=engine.max_len,
                    max_len=engine.max_len,
                    stop_ids=stop_ids(tokenizer),
                    grammar=grammars[number % len(grammars)],
                ),
            )

    good, tokens, start = 0, 0, time.perf_counter()
    for number, sequence in run_sequences(engine, sequences()):
        text = tokenizer.decode(sequence.new_ids)
        tokens += sequence.tokens
        if fits(text, schemas[number % len(schemas)]):
            good += 1
        else:
            print(f"reply {number} ({sequence.finish_reason}): {text!r}")
        if number % 50 == 0:
            print(f"reply {number}: {text}", flush=True)
    seconds = time.perf_counter() - start
    print(f"{tokens:,} tokens in {seconds:.0f} s")
    print(f"schema parsed={good} of={asked.replies}")
    return 1 if asked.check and good < asked.replies else 0


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object that has these properties and no others."""
    return {"type": "object", **schema, "required": list(schema["properties"]), "additionalProperties": False}


def fits(text: str, schema: dict[str, Any]) -> bool:
    """True if the text is JSON of the schema, by the words of SCHEMAS."""
    try:
        return fits_value(json.loads(text), schema)
    except ValueError:
        return False


def fits_value(value: Any, schema: dict[str, Any]) -> bool:
    """True if a value fits."""
    if "enum" in schema:
        return value in schema["enum"]
    kind = schema["type"]
    if kind == "object":
        properties = schema["properties"]
        is_closed = schema.get("additionalProperties") is not False or set(value) == set(properties)
        return is_closed and all(name in value and fits_value(value[name], each) for name, each in properties.items())
    if kind == "array":
        is_long = schema["minItems"] <= len(value) <= schema["maxItems"]
        return is_long and all(fits_value(each, schema["items"]) for each in value)
    if kind == "string":
        matches = re.search(schema["pattern"], value) is not None if "pattern" in schema else True
        return isinstance(value, str) and matches and len(value) <= schema.get("maxLength", len(value))
    if kind == "integer":
        return isinstance(value, int) and schema["minimum"] <= value <= schema["maximum"]
    return isinstance(value, bool)


if __name__ == "__main__":
    sys.exit(main())

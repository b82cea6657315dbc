"""JSON schemas as people write them: misspelt keywords, and constraints of other drafts, which would be passed over."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from mmcli.errors import UserError

# Keywords of JSON Schema 2020-12 (https://json-schema.org/draft/2020-12), by what they hold.
OF_A_SCHEMA = frozenset(
    (
        *("additionalProperties", "additionalItems", "items", "contains", "propertyNames", "not", "if", "then", "else"),
        *("unevaluatedItems", "unevaluatedProperties"),
    )
)
OF_SCHEMAS = frozenset(("allOf", "anyOf", "oneOf", "prefixItems", "items"))
OF_NAMED_SCHEMAS = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))
OF_VALUES = frozenset(
    (
        *("type", "enum", "const", "required", "format", "pattern", "minLength", "maxLength", "minimum", "maximum"),
        *("exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems", "maxItems", "uniqueItems"),
        *("minProperties", "maxProperties", "dependentRequired", "minContains", "maxContains"),
    )
)
KEYWORDS = sorted(OF_A_SCHEMA | OF_SCHEMAS | OF_NAMED_SCHEMAS | OF_VALUES)
# Constraints of drafts 3 to 7 and OpenAPI, which llguidance takes for annotations.
ELSEWHERE = {
    "dependencies": "dependentRequired",
    "disallow": "anyOf",
    "divisibleBy": "multipleOf",
    "extends": "allOf",
    "nullable": 'anyOf with {"type": "null"}',
}
MAX_DEPTH = 200  # schemas inside one another


def check_schema(schema: Any) -> None:
    """Refuse what would be passed over as an annotation although it is meant to hold.

    Raises:
        UserError: not an object, a misspelt keyword, a constraint of another draft, `minProperties` of free keys, or a
            schema that is too deep.
    """
    if not isinstance(schema, Mapping):
        raise UserError(f"the JSON schema is no object: {schema!r:.60}", 'give one like {"type": "object"}')
    for place, each in _schemas(schema, "#", 0):
        _refuse_repeatable(each, place)
        for key in each:
            if key in ELSEWHERE:
                raise UserError(f'the JSON schema has "{key}" at {place}', f"write it with {ELSEWHERE[key]}")
            near = [] if key in KEYWORDS else difflib.get_close_matches(str(key), KEYWORDS, n=1, cutoff=0.8)
            if near:
                raise UserError(
                    f'the JSON schema has an unknown keyword "{key}" at {place}', f'did you mean "{near[0]}"?'
                )


def _refuse_repeatable(schema: Mapping[str, Any], place: str) -> None:
    """Refuse a count of properties that the same free key, written twice, would seem to reach."""
    least, required = schema.get("minProperties"), schema.get("required")
    free = schema.get("additionalProperties") is not False or bool(schema.get("patternProperties"))
    if isinstance(least, int) and free and least > max(1, len(required) if isinstance(required, list) else 0):
        what = f"the JSON schema asks for {least} properties without their names at {place}"
        raise UserError(what, 'name them in "properties" and "required", and leave out "minProperties"')


def _schemas(schema: Mapping[str, Any], place: str, depth: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, schema) of a schema and all inside of it."""
    if depth > MAX_DEPTH:
        raise UserError(f"the JSON schema is more than {MAX_DEPTH} levels deep", "use a flatter schema")
    yield place, schema
    for key, value in schema.items():
        inner: list[tuple[str, Any]] = []
        if key in OF_A_SCHEMA:
            inner = [(key, value)]
        if key in OF_SCHEMAS and isinstance(value, list):
            inner = [(f"{key}/{number}", each) for number, each in enumerate(value)]
        if key in OF_NAMED_SCHEMAS and isinstance(value, Mapping):
            inner = [(f"{key}/{name}", each) for name, each in value.items()]
        for name, each in inner:
            if isinstance(each, Mapping):
                yield from _schemas(each, f"{place}/{name}", depth + 1)

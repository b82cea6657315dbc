"""The classification of every ModelConfig field by a format, as rules that both write and read. No torch here.

A `FieldTable` is a list of rules. Each field belongs to exactly one: it has a key of the format (`Key`, or a
rule of the format's own), it always has one value (`Implied`), or it does not change what a trained model computes
(`Irrelevant`). A field that no rule names cannot be written, whatever its value: `unsupported` names it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from mmcli.config import Leaf, convert, leaves
from mmcli.errors import UserError
from mmcli.model.config import ModelConfig

REQUIRED: Any = object()  # a key without a default
ABSENT: Any = object()  # a null in the place of a value means the same as no key
# Fields that only training, or the choice of a kernel, depends on.
TRAINING = ("dropout", "flash_attn", "aux_loss_alpha", "seq_aux", "init_std")
# Fields that mean nothing in a dense model.
ROUTING = ("num_experts_per_tok", "n_routed_experts", "n_shared_experts", "scoring_func", "norm_topk_prob")
# Fields that no format stores yet, each with the only value that can be written. A new field starts here, with what
# other programs imply; a rule for it in a format's own table takes precedence.
UNSTORED: dict[str, Any] = {}
ROTARY = ("rope_theta", "rotary_fraction", "rope_scaling", "rope_factor", "rope_original_seq_len")

Values = dict[str, Any]  # ModelConfig fields by name
S = TypeVar("S", contravariant=True)  # what a format is read from


@dataclass(frozen=True)
class Source:
    """The document that a configuration is read from."""

    path: Path
    document: Mapping[str, Any]

    def unsupported(self, key: str, value: Any, supported: str) -> UserError:
        """The error for a value that mmcli cannot compute with."""
        what = f"{self.path}: {key} = {json.dumps(value)} is not supported"
        return UserError(what, f"mmcli runs models with {supported}")

    def convert(self, value: Any, field: str, key: str) -> Any:
        """`value` of `key` as the type of the ModelConfig field.

        Raises:
            UserError: it is not of that type.
        """
        return convert(value, dataclasses.replace(field_leaf(field), key=key), str(self.path))

    def number(self, value: Any, key: str) -> float:
        """`value` of `key`, if it is a number; else UserError."""
        if not isinstance(value, int | float):
            raise UserError(f"{self.path}: {key} = {json.dumps(value)} is not a number", f"restore {key}")
        return value


class Rule(Protocol[S]):
    """The representation of some ModelConfig fields in a format; `S` is what it is read from."""

    @property
    def fields(self) -> tuple[str, ...]: ...

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """The keys of the format that hold them."""
        ...

    def read(self, source: S, values: Values) -> Values:
        """The fields from `source`; `values` has those of the rules before this one."""
        ...

    def unsupported(self, config: ModelConfig) -> tuple[str, ...]:
        """The fields whose value in `config` the format cannot hold."""
        ...


@dataclass(frozen=True)
class FieldTable(Generic[S]):
    """Every field of ModelConfig in one format."""

    rules: tuple[Rule[S], ...]

    def classified(self) -> list[str]:
        """The fields that the rules name, in order, then those that no format stores."""
        named = [field for rule in self.rules for field in rule.fields]
        return [*named, *(field for field in UNSTORED if field not in named)]

    def unsupported(self, config: ModelConfig) -> list[str]:
        """The fields that keep `config` from this format: unclassified ones, and those of a value it cannot hold."""
        known = set(self.classified())
        unknown = [field.name for field in dataclasses.fields(config) if field.name not in known]
        named = {field for rule in self.rules for field in rule.fields}
        unstored = [name for name, value in UNSTORED.items() if name not in named and getattr(config, name) != value]
        return unknown + [field for rule in self.rules for field in rule.unsupported(config)] + unstored

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """The keys of the format, in the order of the rules."""
        return {key: value for rule in self.rules for key, value in rule.write(config).items()}

    def read(self, source: S) -> Values:
        """The fields that the format has; the others keep ModelConfig's defaults.

        Raises:
            UserError: a key that is missing, of another type, or of a value that mmcli cannot compute with.
        """
        values: Values = {}
        for rule in self.rules:
            values |= rule.read(source, values)
        return values


class Silent:
    """A rule without fields or keys, the base of the others."""

    @property
    def fields(self) -> tuple[str, ...]:
        return ()

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {}

    def read(self, source: Any, values: Values) -> Values:
        return {}

    def unsupported(self, config: ModelConfig) -> tuple[str, ...]:
        return ()


class Implied(Silent):
    """Fields that every model of the format has with these values."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(self.values)

    def read(self, source: Any, values: Values) -> Values:
        return dict(self.values)

    def unsupported(self, config: ModelConfig) -> tuple[str, ...]:
        return tuple(field for field, value in self.values.items() if getattr(config, field) != value)


class Irrelevant(Silent):
    """Fields that change nothing in what a trained model of the format computes; read, they are the defaults."""

    def __init__(self, *fields: str) -> None:
        self._fields = fields

    @property
    def fields(self) -> tuple[str, ...]:
        return self._fields


class Key(Silent):
    """A field under one or more keys of the format, which must agree."""

    def __init__(
        self,
        field: str,
        *keys: str,
        default: Any = REQUIRED,
        null: Any = ABSENT,
        attribute: str | None = None,
        also_read: tuple[str, ...] = (),
    ) -> None:
        """A rule for `field`.

        Args:
            keys: what it is called; none: as in ModelConfig.
            default: its value where the key is absent.
            null: its value where the key is null.
            attribute: the property of ModelConfig that is written, where the field itself may be None.
            also_read: other names of the key, never written.
        """
        self.field, self.keys, self.default, self.null = field, keys or (field,), default, null
        self.attribute, self.also_read = attribute or field, also_read

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.field,)

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return dict.fromkeys(self.keys, getattr(config, self.attribute))

    def read(self, source: Source, values: Values) -> Values:
        found = [self._read(source, key) for key in self.keys]
        for key, value in zip(self.keys, found, strict=True):
            if value != found[0]:
                raise source.unsupported(
                    key, source.document.get(key), f"{key} = {json.dumps(found[0])}, as {self.keys[0]}"
                )
        return {self.field: found[0]}

    def _read(self, source: Source, key: str) -> Any:
        named = next((each for each in (key, *self.also_read) if each in source.document), key)
        raw = source.document.get(named)
        if raw is not None:
            return source.convert(raw, self.field, named)
        if named in source.document and self.null is not ABSENT:
            return self.null
        if self.default is REQUIRED:
            raise UserError(f"{source.path} has no {key}", f"restore the field: {field_leaf(self.field).doc}")
        return self.default


class Constant(Silent):
    """Keys that are written with one value, and read with no other."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return dict(self.values)

    def read(self, source: Source, values: Values) -> Values:
        for key, value in self.values.items():
            found = source.document.get(key, value)
            if found != value:
                raise source.unsupported(key, found, f"{key} = {json.dumps(value)}")
        return {}


class WrittenOnly(Silent):
    """A key that repeats an attribute for other programs; it is not read."""

    def __init__(self, key: str, attribute: str) -> None:
        self.key, self.attribute = key, attribute

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {self.key: getattr(config, self.attribute)}


def field_leaf(field: str) -> Leaf:
    """Type and documentation of a ModelConfig field."""
    return next(leaf for leaf in leaves(ModelConfig) if leaf.key == field)


def described(config: ModelConfig, fields: list[str]) -> str:
    """Fields with their values, as errors name them: `model.qk_norm = True, ...`."""
    return ", ".join(_described(config, fields))


def _described(config: ModelConfig, fields: list[str]) -> Iterator[str]:
    for field in dict.fromkeys(fields):
        yield f"model.{field} = {getattr(config, field)}"

"""Configuration: frozen dataclasses filled from layers of TOML tables, with the layer of each value.

Layers, the later wins: defaults < the stage's own < preset `extends` < preset < `--config` file < `--set` and flags.
TOML has no null: an optional value that is off is written `"none"`.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from mmcli.errors import UserError, did_you_mean

C = TypeVar("C")
DEFAULT = "default"
STAGE = "stage "  # the name of a stage's own layer begins so
AT_WIDTH = " at width "  # in the name of a layer that fits a preset to a wider model
ON_DEVICE = " on "  # in the name of a layer with a preset's values for one type of device
DEVICES = ("cpu", "cuda", "mps")


def option(default: Any, doc: str, *, flag: str | None = None, short: str | None = None) -> Any:
    """A config field: its default, its help text (with units), and the command-line flag that sets it, if any."""
    metadata = {"doc": doc, "flag": flag, "short": short}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


class Typed(str):
    """A value as typed on the command line; the type of its key decides how it is parsed (`7`: a name or a number)."""


class ConfigError(UserError):
    """An invalid value, raised by a config's `__post_init__`; `resolve` adds the layer it came from."""

    def __init__(self, key: str, what: str, fix: str) -> None:
        super().__init__(what, fix)
        self.key = key


@dataclass(frozen=True)
class Layer:
    """One source of values: `name` is shown to the user, `values` are nested tables as in TOML."""

    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Leaf:
    """One value of a config tree: dotted key, type and dataclass field."""

    key: str
    type: Any
    field: dataclasses.Field[Any]

    @property
    def doc(self) -> str:
        return str(self.field.metadata.get("doc", ""))

    @property
    def default(self) -> Any:
        """The field's own default; `dataclasses.MISSING` if it has none."""
        make = self.field.default_factory
        return self.field.default if make is dataclasses.MISSING else make()

    @property
    def flag(self) -> str | None:
        """The command-line flag; a top-level field of a stage's config gets one from its name."""
        flag = self.field.metadata.get("flag")
        if flag is None and "." not in self.key:
            return "--" + self.key.replace("_", "-")
        return flag


@dataclass(frozen=True)
class Resolved(Generic[C]):
    """A filled config and, for each dotted key, the name of the layer that set it."""

    config: C
    sources: Mapping[str, str]

    def chosen(self, key: str) -> bool:
        """True if the user or a preset set this key, False for a default, the stage's own included."""
        return self.sources[key] != DEFAULT and not self.sources[key].startswith(STAGE)


@functools.cache
def leaves(config_type: type) -> tuple[Leaf, ...]:
    """All values of a config tree, in declaration order."""
    return tuple(_walk(config_type, ""))


def _walk(config_type: type, prefix: str) -> Iterator[Leaf]:
    hints = typing.get_type_hints(config_type)
    for item in dataclasses.fields(config_type):
        if dataclasses.is_dataclass(hints[item.name]):
            yield from _walk(hints[item.name], f"{prefix}{item.name}.")
        else:
            yield Leaf(prefix + item.name, hints[item.name], item)


def resolve(config_type: type[C], layers: Sequence[Layer]) -> Resolved[C]:
    """Fill `config_type` from `layers`; later layers win.

    Raises:
        UserError: an unknown key, a value of the wrong type, or one that the config rejects.
    """
    values, sources = merge_layers(config_type, layers)
    try:
        config = _build(config_type, values, "")
    except ConfigError as error:
        source = sources.get(error.key, DEFAULT)
        raise UserError(f"{error.what} (from {source})", error.fix) from None
    return Resolved(config, sources)


def merge_layers(config_type: type, layers: Sequence[Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """(the value that some layer sets, for its dotted key; the source of every key), the later layer winning.

    The config itself has not seen the values: it may refuse them.

    Raises:
        UserError: an unknown key, or a value of the wrong type.
    """
    known = {leaf.key: leaf for leaf in leaves(config_type)}
    values: dict[str, Any] = {}
    sources = dict.fromkeys(known, DEFAULT)
    for layer in layers:
        for key, raw in _flatten(layer.values, known):
            if key not in known:
                raise UserError(f'unknown key "{key}" (from {layer.name})', _suggest(key, list(known)))
            values[key] = convert(raw, known[key], layer.name)
            sources[key] = layer.name
    return values, sources


def _build(config_type: type[C], values: Mapping[str, Any], prefix: str) -> C:
    hints = typing.get_type_hints(config_type)
    arguments: dict[str, Any] = {}
    for item in dataclasses.fields(config_type):  # type: ignore[arg-type]  # C is always a dataclass
        key = prefix + item.name
        if dataclasses.is_dataclass(hints[item.name]):
            arguments[item.name] = _build(typing.cast(type, hints[item.name]), values, key + ".")
        elif key in values:
            arguments[item.name] = values[key]
    try:
        return config_type(**arguments)
    except ConfigError as error:
        if prefix and not error.key.startswith(prefix):
            error.key = prefix + error.key
        raise


def _flatten(values: Mapping[str, Any], known: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = prefix + name
        if isinstance(value, Mapping) and key not in known:
            yield from _flatten(value, known, key + ".")
        else:
            yield key, value


def _suggest(key: str, known: list[str]) -> str:
    """A suggestion for an unknown key: the same name in another table, else the closest spelling."""
    same_name = [k for k in known if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    if same_name:
        return f'did you mean "{same_name[0]}"?'
    table = [k for k in known if k.split(".")[0] == key.split(".")[0]]
    return did_you_mean(key, table or known)


def convert(raw: Any, leaf: Leaf, source: str) -> Any:
    """`raw` converted to the type of `leaf`.

    Raises:
        UserError: it is not of that type.
    """
    kinds = sorted(_alternatives(leaf.type), key=lambda kind: kind is not types.NoneType)  # "none" is no text
    for kind in kinds:
        ok, value = _as(kind, _read_typed(raw, kind) if isinstance(raw, Typed) else raw)
        if ok:
            return value
    wanted = describe_type(leaf.type)
    raise UserError(f"{leaf.key} = {raw!r} is not {wanted} (from {source})", f"give {leaf.key} {wanted}; {leaf.doc}")


def _alternatives(kind: Any) -> tuple[Any, ...]:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return typing.get_args(kind)
    return (kind,)


def _read_typed(raw: Typed, kind: Any) -> Any:
    """A typed value parsed for `kind`: text verbatim, the rest as TOML (`3e-4`, `true`, `["a"]`)."""
    text = str(raw)
    if kind is str or typing.get_origin(kind) is typing.Literal or text in ("none", "None"):
        return text.replace("None", "none") if text == "None" else text
    try:
        return tomllib.loads("value = " + {"True": "true", "False": "false"}.get(text, text))["value"]
    except (ValueError, RecursionError):  # not TOML, a number of thousands of digits, brackets without end
        return text


def _as(kind: Any, raw: Any) -> tuple[bool, Any]:
    """(valid, converted value) for one plain type."""
    if kind is types.NoneType:
        return raw is None or raw == "none", None
    if typing.get_origin(kind) is typing.Literal:
        return raw in typing.get_args(kind) and isinstance(raw, str), raw
    if typing.get_origin(kind) is tuple:
        items = [raw] if isinstance(raw, str) else raw
        fits = isinstance(items, list | tuple) and all(isinstance(item, str) for item in items)
        return fits, tuple(items) if fits else None
    if isinstance(raw, bool):
        return kind is bool, raw
    if kind is float and isinstance(raw, int | float):
        fits = abs(raw) <= sys.float_info.max  # False for NaN, infinity, and whole numbers beyond both
        return fits, float(raw) if fits else raw
    if kind is int and isinstance(raw, float) and raw.is_integer():
        raw = int(raw)
    if kind is int and isinstance(raw, int):
        return -(2**63) <= raw < 2**63, raw
    return (kind in (int, str) and isinstance(raw, kind)), raw


def describe_type(kind: Any) -> str:
    """A type in words: `a whole number`, `one of "a", "b"`, `... or "none"`."""
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", types.NoneType: '"none"'}
    parts = []
    for one in _alternatives(kind):
        if typing.get_origin(one) is typing.Literal:
            parts.append("one of " + ", ".join(f'"{value}"' for value in typing.get_args(one)))
        elif typing.get_origin(one) is tuple:
            parts.append("a list of texts")
        else:
            parts.append(names.get(one, str(one)))
    return " or ".join(parts)


def read_toml(path: Path) -> dict[str, Any]:
    """Read the tables of a TOML file.

    Raises:
        UserError: the file is missing, not UTF-8, or not valid TOML (the line is named).
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "give the path of a TOML file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text", "give the path of a TOML file") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply", "write values like: lr = 3e-4") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid TOML: {error}", "fix that line; write values like: lr = 3e-4") from None


def parse_set(assignments: Sequence[str]) -> Layer:
    """The layer of `--set key=value`; each value is parsed by the type of its key.

    Raises:
        UserError: an assignment without `=` or without a key.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise UserError(f'--set "{assignment}" is not key=value', "write it like: --set optim.lr=3e-4")
        values[key.strip()] = Typed(text.strip())
    return Layer("--set", values)


def to_tables(config: Any) -> dict[str, Any]:
    """A config tree as nested tables for TOML: complete, with `"none"` for None."""
    tables: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            tables[item.name] = to_tables(value)
        elif isinstance(value, tuple):
            tables[item.name] = list(value)
        else:
            tables[item.name] = "none" if value is None else value
    return tables


# Presets: presets/*.toml, each with [about], [model] and, under a stage's name, values for that stage; those for one
# type of device alone are in a table of its name: [pretrain.cpu.train].


def presets_dir() -> Path:
    """The folder of the presets: in the package if installed, at the root of the repository if editable."""
    package = Path(__file__).parent
    inside = package / "presets"
    return inside if inside.is_dir() else package.parent / "presets"


def preset_names() -> list[str]:
    return sorted(path.stem for path in presets_dir().glob("*.toml"))


def preset_chain(name: str) -> list[tuple[str, dict[str, Any]]]:
    """A preset and the presets it extends, base first: [(name, tables)].

    Raises:
        UserError: no such preset, or a cycle of `extends`.
    """
    chain: list[tuple[str, dict[str, Any]]] = []
    current: str | None = name
    while current is not None:
        if current not in preset_names():
            raise UserError(f'there is no preset "{current}"', did_you_mean(current, preset_names()))
        if any(current == seen for seen, _ in chain):
            raise UserError(f'preset "{name}" extends itself', f"fix `extends` in {presets_dir() / current}.toml")
        tables = read_toml(presets_dir() / f"{current}.toml")
        chain.insert(0, (current, tables))
        current = tables.get("extends")
    return chain


def preset_layers(name: str, stage: str | None = None, device: str | None = None) -> list[Layer]:
    """The layers of a preset: its model, and its values for `stage`, then those on `device`, one of `DEVICES`."""
    layers = []
    for each, tables in preset_chain(name):
        of_stage = tables.get(stage or "", {})
        everywhere = {key: value for key, value in of_stage.items() if key not in DEVICES}
        layers.append(Layer(f"preset {each}", {"model": tables.get("model", {}), **everywhere}))
        if device in of_stage:
            layers.append(Layer(f"preset {each}{ON_DEVICE}{device}", of_stage[device]))
    return layers


def follows_device(name: str, stage: str) -> bool:
    """True if a preset has values for `stage` that depend on the device."""
    return any(device in tables.get(stage, {}) for _, tables in preset_chain(name) for device in DEVICES)


def preset_at_width(name: str, stage: str, width: int) -> list[Layer]:
    """What a preset's values for `stage` become in a model that is wider than the preset's: a layer, or none.

    The learning rate falls as 1/width, for AdamW (Yang et al. 2022, arXiv:2203.03466). The batch stays: the best one
    was the same at each width (docs/decisions/010-training-defaults.md).
    """
    rate = own = None
    for _, tables in preset_chain(name):
        own = tables.get("model", {}).get("dim", own)
        rate = tables.get(stage, {}).get("optim", {}).get("lr", rate)
    if rate is None or own is None or width <= own:
        return []
    return [Layer(f"preset {name}{AT_WIDTH}{width}", {"optim.lr": float(f"{rate * own / width:.2g}")})]


def preset_about(name: str) -> dict[str, Any]:
    """The [about] table of a preset (title, documented size, note), inherited values included."""
    about: dict[str, Any] = {}
    for _, tables in preset_chain(name):
        about.update(tables.get("about", {}))
    return about

"""Layers of configuration: the later wins, each value knows its layer, and what is wrong is named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from mmcli import config as configuration
from mmcli.config import (
    DEFAULT,
    ConfigError,
    Layer,
    follows_device,
    leaves,
    option,
    parse_set,
    preset_chain,
    preset_layers,
    preset_names,
    read_toml,
    resolve,
    to_tables,
)
from mmcli.errors import UserError
from mmcli.model.config import ModelConfig
from mmcli.train.config import OptimConfig


@dataclass(frozen=True)
class Inner:
    lr: float = option(1e-3, "rate")
    kind: Literal["cosine", "none"] = option("cosine", "schedule")
    limit: int | None = option(5, "limit")

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise ConfigError("lr", f"optim.lr = {self.lr} is negative", "give a rate such as 1e-3")


@dataclass(frozen=True)
class Tree:
    optim: Inner = option(Inner, "optimizer")
    files: tuple[str, ...] = option(("demo",), "sources", flag="--data")
    held_out: tuple[str, ...] | None = option(("a",), "held-out sources")
    name: str | None = option("run", "name")
    label: str = option("x", "text")
    quiet: bool = option(False, "less output")
    steps: int = option(10, "steps")


def filled(*layers: dict[str, Any]) -> Tree:
    return resolve(Tree, [Layer(f"layer {i}", values) for i, values in enumerate(layers)]).config


def refusal(*layers: Layer) -> UserError:
    with pytest.raises(UserError) as caught:
        resolve(Tree, layers)
    assert caught.value.fix
    return caught.value


# Layers and sources


def test_the_later_layer_wins_and_each_value_knows_its_layer() -> None:
    resolved = resolve(
        Tree,
        [Layer("preset a", {"optim": {"lr": 2e-3}, "steps": 3}), Layer("--set", {"optim.lr": 5e-3, "quiet": True})],
    )
    assert (resolved.config.optim.lr, resolved.config.steps, resolved.config.quiet) == (5e-3, 3, True)
    assert resolved.sources["optim.lr"] == "--set"
    assert resolved.sources["steps"] == "preset a"
    assert resolved.sources["optim.kind"] == DEFAULT
    assert resolved.chosen("steps") and not resolved.chosen("optim.kind")


def test_every_leaf_has_a_source() -> None:
    assert set(resolve(Tree, []).sources) == {leaf.key for leaf in leaves(Tree)}


def test_nested_tables_and_dotted_keys_are_the_same() -> None:
    assert filled({"optim": {"lr": 0.5}}) == filled({"optim.lr": 0.5})


def test_no_layers_give_the_defaults() -> None:
    assert filled() == Tree()


# Types


def test_whole_numbers_fit_where_numbers_are_wanted_and_the_other_way_where_they_are_whole() -> None:
    config = filled({"optim": {"lr": 1}, "steps": 20.0})
    assert config.optim.lr == 1.0 and isinstance(config.optim.lr, float)
    assert config.steps == 20 and isinstance(config.steps, int)


def test_lists_of_texts_take_one_text_too() -> None:
    assert filled({"files": "a.txt"}).files == ("a.txt",)
    assert filled({"files": ["a.txt", "b.txt"]}).files == ("a.txt", "b.txt")


@pytest.mark.parametrize("key", ["optim.limit", "name", "held_out"])
def test_none_switches_an_optional_value_off(key: str) -> None:
    config = filled({key: "none"})
    value = config.optim.limit if key == "optim.limit" else getattr(config, key)
    assert value is None


def test_none_stays_a_word_where_it_is_one_of_the_choices() -> None:
    assert filled({"optim.kind": "none"}).optim.kind == "none"


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("optim.lr", "fast", "a number"),
        ("optim.lr", True, "a number"),
        ("steps", 2.5, "a whole number"),
        ("steps", "3", "a whole number"),
        ("steps", "none", "a whole number"),
        ("quiet", 1, "true or false"),
        ("optim.kind", "linear", '"cosine"'),
        ("files", 3, "a list of texts"),
        ("files", ["a", 3], "a list of texts"),
        ("optim.lr", {"a": 1}, "a number"),
    ],
)
def test_a_wrong_type_is_named_with_key_value_and_source(key: str, value: Any, wanted: str) -> None:
    error = refusal(Layer("my.toml", {key: value}))
    assert key in error.what and repr(value) in error.what
    assert wanted in error.what and "my.toml" in error.what


# Unknown keys


@pytest.mark.parametrize(
    ("key", "hint"),
    [("optim.lrr", '"optim.lr"'), ("lr", '"optim.lr"'), ("train.lr", '"optim.lr"'), ("step", '"steps"')],
)
def test_an_unknown_key_names_its_source_and_the_nearest(key: str, hint: str) -> None:
    error = refusal(Layer("my.toml", {key: 1}))
    assert f'unknown key "{key}" (from my.toml)' in error.what
    assert f"did you mean {hint}?" in error.fix


def test_an_unknown_key_inside_a_table() -> None:
    assert 'unknown key "optim.speed"' in refusal(Layer("my.toml", {"optim": {"speed": 1}})).what


def test_a_value_where_a_table_belongs_is_unknown() -> None:
    assert 'unknown key "optim"' in refusal(Layer("my.toml", {"optim": 3})).what


def test_what_the_config_itself_refuses_names_the_layer_that_set_it() -> None:
    error = refusal(Layer("preset a", {"optim": {"lr": 1.0}}), Layer("my.toml", {"optim": {"lr": -1.0}}))
    assert error.what == "optim.lr = -1.0 is negative (from my.toml)"


# --set


@pytest.mark.parametrize(
    ("typed", "key", "value"),
    [("optim.lr=3e-4", "optim.lr", 3e-4), ("optim.lr=1", "optim.lr", 1.0), ("steps=7", "steps", 7),
     ("quiet=true", "quiet", True), ("quiet=True", "quiet", True), ("name=None", "name", None),
     ("name=none", "name", None), ("name=7", "name", "7"), ("name=007", "name", "007"), ("label=a b", "label", "a b"),
     ("label=", "label", ""), ("name=2024-01-01", "name", "2024-01-01"), ("optim.kind=cosine", "optim.kind", "cosine"),
     ('files=["a", "b"]', "files", ("a", "b")), ("files=a.txt", "files", ("a.txt",)),
     ("held_out=none", "held_out", None),
     ("optim.limit=none", "optim.limit", None), ("optim.limit=3", "optim.limit", 3)],
)  # fmt: skip
def test_a_typed_value_is_read_by_the_type_of_its_key(typed: str, key: str, value: Any) -> None:
    config: Any = resolve(Tree, [parse_set([typed])]).config
    for part in key.split("."):
        config = getattr(config, part)
    assert config == value and type(config) is type(value)


@pytest.mark.parametrize("typed", ["optim.lr=fast", "optim.lr=nan", "optim.lr=inf", "steps=1.5", "quiet=yes", "steps="])
def test_a_typed_value_of_another_type_is_refused(typed: str) -> None:
    assert "(from --set)" in refusal(parse_set([typed])).what


def test_set_splits_at_the_first_equals_sign() -> None:
    layer = parse_set(["optim.lr = 3e-4", "name=a=b"])
    assert layer.name == "--set"
    assert layer.values == {"optim.lr": "3e-4", "name": "a=b"}


@pytest.mark.parametrize("assignment", ["optim.lr", "=3", " = 3"])
def test_set_without_key_or_value_is_refused(assignment: str) -> None:
    with pytest.raises(UserError, match="is not key=value"):
        parse_set([assignment])


def test_the_last_of_two_sets_wins() -> None:
    assert resolve(Tree, [parse_set(["steps=1", "steps=2"])]).config.steps == 2


# Files


def test_toml_files_are_read_or_named(tmp_path: Path) -> None:
    good, bad, binary = (tmp_path / name for name in ("good.toml", "bad.toml", "binary.toml"))
    good.write_text("[optim]\nlr = 3e-4\n", encoding="utf-8")
    assert read_toml(good) == {"optim": {"lr": 3e-4}}
    bad.write_text("a = 1\nb = = 2\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"bad\.toml is not valid TOML: .*line 2"):
        read_toml(bad)
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        read_toml(binary)
    with pytest.raises(UserError, match="cannot read"):
        read_toml(tmp_path / "missing.toml")
    with pytest.raises(UserError, match="cannot read"):
        read_toml(tmp_path)


@pytest.mark.parametrize("config", [Tree(), Tree(optim=Inner(limit=None), name=None, held_out=None, files=("a", "b"))])
def test_a_stored_config_fills_the_same_config_again(config: Tree) -> None:
    assert filled(to_tables(config)) == config


def test_a_stored_model_fills_the_same_model_again() -> None:
    model = ModelConfig(use_moe=True, n_shared_experts=2, hidden_dim=100, rope_scaling="yarn", rope_factor=2.0)
    assert resolve(ModelConfig, [Layer("config.toml", to_tables(model))]).config == model


# Presets


@pytest.fixture
def presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(configuration, "presets_dir", lambda: tmp_path)
    return tmp_path


def test_a_preset_stands_on_what_it_extends(presets: Path) -> None:
    (presets / "one.toml").write_text("[model]\ndim = 64\nn_layers = 2\n[pretrain.optim]\nlr = 0.5\n")
    (presets / "two.toml").write_text('extends = "one"\n[model]\ndim = 128\n[sft.optim]\nlr = 0.25\n')
    assert preset_names() == ["one", "two"]
    assert [name for name, _ in preset_chain("two")] == ["one", "two"]
    layers = preset_layers("two", "pretrain")
    assert [layer.name for layer in layers] == ["preset one", "preset two"]
    assert layers[0].values == {"model": {"dim": 64, "n_layers": 2}, "optim": {"lr": 0.5}}
    assert layers[1].values == {"model": {"dim": 128}}


def test_a_preset_has_values_for_one_type_of_device(presets: Path) -> None:
    (presets / "one.toml").write_text("[pretrain.train]\nsteps = 9\nseed = 1\n[pretrain.cpu.train]\nsteps = 3\n")
    (presets / "two.toml").write_text('extends = "one"\n[pretrain.train]\nseed = 2\n')
    layers = preset_layers("two", "pretrain", "cpu")
    assert [layer.name for layer in layers] == ["preset one", "preset one on cpu", "preset two"]
    assert layers[0].values == {"model": {}, "train": {"steps": 9, "seed": 1}}
    assert layers[1].values == {"train": {"steps": 3}}
    for device in (None, "cuda", "mps"):
        assert preset_layers("two", "pretrain", device) == [layers[0], layers[2]]
    assert follows_device("two", "pretrain") and not follows_device("two", "sft")


def test_presets_in_a_circle_are_refused(presets: Path) -> None:
    (presets / "one.toml").write_text('extends = "two"\n')
    (presets / "two.toml").write_text('extends = "one"\n')
    with pytest.raises(UserError, match="extends itself"):
        preset_chain("one")


def test_an_unknown_preset_gets_a_hint(presets: Path) -> None:
    (presets / "small.toml").write_text("")
    with pytest.raises(UserError, match='no preset "smal"') as caught:
        preset_chain("smal")
    assert caught.value.fix == 'did you mean "small"?'
    (presets / "child.toml").write_text('extends = "smal"\n')
    with pytest.raises(UserError, match='no preset "smal"'):
        preset_chain("child")


@pytest.mark.parametrize("text", ["1" * 5000, "[" * 100_000, "1e400", "nan", "99999999999999999999", "1e30"])
def test_a_number_that_is_none_is_refused_and_never_an_error(text: str) -> None:
    with pytest.raises(UserError, match=r"model\.n_layers = .* is not a whole number"):
        resolve(_Bounded, [parse_set([f"model.n_layers={text}"])])


@pytest.mark.parametrize(
    "setting", ["beta1=1", "beta2=1.0", "eps=-1", "clip=-0.1", "weight_decay=-1", "lr=" + "9" * 400]
)
def test_optimizer_values_that_cannot_be_trained_with(setting: str) -> None:
    with pytest.raises(UserError, match=rf"optim\.{setting.split('=')[0]} = "):
        resolve(_Bounded, [parse_set([f"optim.{setting}"])])


def test_a_file_nested_without_end_is_not_toml(tmp_path: Path) -> None:
    for text in ("a = " + "[" * 100_000, "a = " + "1" * 5000):
        (tmp_path / "a.toml").write_text(text)
        with pytest.raises(UserError, match=r"a\.toml is "):
            read_toml(tmp_path / "a.toml")


@dataclass(frozen=True)
class _Bounded:
    model: ModelConfig = option(ModelConfig, "the model")
    optim: OptimConfig = option(OptimConfig, "the optimizer")

"""The presets that come with mmcli."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmcli.cli.params import resolve_model
from mmcli.config import preset_about, preset_at_width, preset_chain, preset_layers, preset_names, resolve
from mmcli.model.config import ModelConfig
from mmcli.model.count import count_parameters

SHAPES = {  # dim, layers, heads, kv heads, FFN width, vocabulary
    "small": (512, 8, 8, 2, 1408, 6400),
    "base": (768, 16, 8, 2, 2048, 6400),
    "moe": (640, 8, 8, 2, 1728, 6400),
    "base-1024": (1024, 16, 16, 4, 2752, 6400),
    "moe-1024": (1024, 16, 16, 4, 2752, 6400),
    "tiny": (128, 4, 4, 2, 384, 6400),
    "minimind3": (768, 8, 8, 4, 2432, 6400),
    "minimind3-moe": (768, 8, 8, 4, 2432, 6400),
    "gpt2": (768, 12, 12, 12, 3072, 50257),
    "llama-7b": (4096, 32, 32, 32, 11008, 32000),
    "phi-1.5": (2048, 24, 32, 32, 8192, 51200),
    "smollm2-135m": (576, 30, 9, 3, 1536, 49152),
}


def model(preset: str) -> ModelConfig:
    return resolve_model(preset).config.model


def test_the_presets_and_their_shapes() -> None:
    found = {name: model(name) for name in preset_names()}
    assert {
        name: (m.dim, m.n_layers, m.n_heads, m.n_kv_heads, m.ffn_dim, m.vocab_size) for name, m in found.items()
    } == SHAPES


def test_small_is_the_default_model() -> None:
    assert model("small") == ModelConfig()


def test_the_experts_of_the_moe_presets() -> None:
    for name, routed, chosen, shared in (("moe", 4, 2, 1), ("moe-1024", 4, 2, 1), ("minimind3-moe", 4, 1, 0)):
        config = model(name)
        assert config.use_moe
        assert (config.n_routed_experts, config.num_experts_per_tok, config.n_shared) == (routed, chosen, shared)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_the_router_of_every_preset_learns(name: str) -> None:
    assert model(name).router_learns
    assert not replace(model("minimind3-moe"), norm_topk_prob=True).router_learns


def test_minimind3_has_its_own_norms() -> None:
    for name in ("minimind3", "minimind3-moe"):
        config = model(name)
        assert config.qk_norm and config.norm_eps == 1e-6 and config.rope_theta == 1e6


def test_tiny_has_one_to_four_million_parameters() -> None:
    assert 1_000_000 <= count_parameters(model("tiny")).total <= 4_000_000


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_a_preset_says_what_it_is_and_nothing_unknown(name: str) -> None:
    about = preset_about(name)
    assert set(about) == {"title", "documented", "note"}
    assert all(isinstance(value, str) and value for value in about.values())
    for _, tables in preset_chain(name):
        assert set(tables) <= {"extends", "about", "model", "pretrain", "sft", "dpo"}


@pytest.mark.parametrize("name", ["base", "moe", "base-1024", "moe-1024"])
def test_the_note_on_the_card_gives_the_true_count_of_its_shape(name: str) -> None:
    note = preset_about(name)["note"]
    other = {"base": "base-1024", "moe": "moe-1024", "base-1024": "base", "moe-1024": "moe"}[name]
    assert f"preset {other})" in note
    if name in ("base", "moe"):
        assert f"{count_parameters(model(other)).total:,}" in note


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_every_preset_fits_the_pretrain_stage(name: str) -> None:
    from mmcli.stages import PretrainConfig

    resolved = resolve(PretrainConfig, preset_layers(name, "pretrain"))
    assert resolved.config.model == model(name)
    assert resolved.config.data.seq_len <= resolved.config.model.max_seq_len


@pytest.mark.parametrize(
    ("name", "device", "lr", "seq_len", "rows"),
    [
        ("tiny", "cpu", 4e-3, 256, 8),
        ("tiny", "cuda", 4e-3, 256, 8),
        ("small", "cpu", 5e-4, 512, 8),
        ("small", "cuda", 5e-4, 512, 32),
        ("moe", "cpu", 5e-4, 512, 8),
        ("moe", "mps", 5e-4, 512, 32),
    ],
)
def test_presets_train_with_their_own_settings(name: str, device: str, lr: float, seq_len: int, rows: int) -> None:
    from mmcli.stages import PretrainConfig

    resolved = resolve(PretrainConfig, preset_layers(name, "pretrain", device))
    found = resolved.config
    assert (found.optim.lr, found.data.seq_len, found.train.batch_size) == (lr, seq_len, rows)
    assert (found.optim.schedule, found.optim.beta2) == ("wsd", 0.99)
    assert resolved.chosen("optim.lr") and resolved.chosen("data.seq_len") and resolved.chosen("train.batch_size")


@pytest.mark.parametrize(
    ("name", "width", "lr"),
    [("tiny", 256, 2e-3), ("tiny", 192, 2.7e-3), ("tiny", 512, 1e-3), ("small", 640, 4e-4), ("base", 1024, 3.8e-4)],
)
def test_a_wider_model_takes_less_of_a_presets_rate(name: str, width: int, lr: float) -> None:
    (layer,) = preset_at_width(name, "pretrain", width)
    assert layer.values == {"optim.lr": lr} and layer.name == f"preset {name} at width {width}"


@pytest.mark.parametrize(("name", "width"), [("tiny", 128), ("tiny", 64), ("base", 768), ("gpt2", 4096)])
def test_a_preset_keeps_its_own_rate(name: str, width: int) -> None:
    assert preset_at_width(name, "pretrain", width) == []

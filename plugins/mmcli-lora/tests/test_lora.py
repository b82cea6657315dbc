"""LoRA changes nothing at first, trains only what it adds, and merges to the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmcli_lora import LORA, LoraConfig
from mmcli_lora.layer import LoraLinear
from mmcli_lora.transform import LoraTransform, adapted
from safetensors.torch import load_file
from torch import Tensor

from mmcli.config import Layer, parse_set, resolve
from mmcli.errors import UserError
from mmcli.model.attention import AttnContext
from mmcli.model.config import ModelConfig
from mmcli.model.formats.families import LLAMA_LAYOUT
from mmcli.model.formats.parameters import disk_tensors
from mmcli.model.transformer import Transformer
from mmcli.stage import Transform

SMALL: dict[str, Any] = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 97, "init_std": 0.1}
SHAPES = {
    "llama": ModelConfig(**SMALL),
    "qwen3": ModelConfig(**SMALL, qk_norm=True, tie_embeddings=False),
    "gpt2": ModelConfig(**SMALL, norm="layernorm", position="learned", mlp="gelu_tanh", bias=True, max_seq_len=64),
    "experts": ModelConfig(**SMALL, use_moe=True),
}
IDS_BT = torch.arange(48).reshape(3, 16) * 7 % 97


def context() -> AttnContext:
    positions_BT = torch.arange(16).expand(3, 16).numpy().copy()
    return AttnContext.from_batch(positions_BT, positions_BT * 0, torch.device("cpu"))


def hidden(model: Any) -> Tensor:
    return model(IDS_BT, context())[0]


def logits(model: Any) -> Tensor:
    return model.head(hidden(model))


def trained(model: Transformer, config: LoraConfig | None = None, *, seed: int = 0) -> LoraTransform:
    """Adapt a model, with B as it might be after training."""
    transform = LoraTransform(config or LoraConfig())
    transform.apply(model, seed)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, layer in adapted(model):
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator) * 0.02)
    return transform


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest) -> Transformer:
    return Transformer(SHAPES[request.param]).eval()


def test_step_0_is_the_model_itself(model: Transformer) -> None:
    before = hidden(model)
    LoraTransform(LoraConfig(dropout=0.5)).apply(model, seed=0)
    assert torch.equal(hidden(model), before)
    assert torch.equal(hidden(model.train()), before)


def test_only_the_additions_train_and_the_rest_keeps_names_and_tensors(model: Transformer) -> None:
    before = dict(model.named_parameters())
    LoraTransform(LoraConfig(rank=3)).apply(model, seed=0)
    after = dict(model.named_parameters())
    assert {name: id(each) for name, each in after.items() if name in before} == {n: id(p) for n, p in before.items()}
    assert {name for name, each in after.items() if each.requires_grad} == set(after) - set(before)
    expected = sum(3 * (layer.in_features + layer.out_features) for _, layer in adapted(model))
    assert sum(each.numel() for each in after.values() if each.requires_grad) == expected > 0


def test_gradients_reach_the_additions_alone(model: Transformer) -> None:
    trained(model)
    logits(model.train()).square().mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


def test_the_addition_is_scaled_b_a() -> None:
    base = torch.nn.Linear(6, 5)
    layer = LoraLinear(base, LoraConfig(rank=2, alpha=8.0), "x", seed=0)
    with torch.no_grad():
        layer.lora_B.normal_()
    x = torch.randn(4, 6)
    expected = x @ base.weight.T + base.bias + 8.0 / 2 * x @ layer.lora_A.T @ layer.lora_B.T
    torch.testing.assert_close(layer(x), expected)


def test_merged_computes_the_same_and_leaves_the_original_trainable(model: Transformer) -> None:
    before = hidden(model)
    transform = trained(model)
    adapted_logits = logits(model)
    assert (hidden(model) - before).abs().max() > 1e-2
    merged = transform.merge(model)
    assert type(merged) is Transformer
    assert merged.state_dict().keys() == Transformer(model.config).state_dict().keys()
    assert not any(isinstance(each, LoraLinear) for each in merged.modules())
    assert (logits(merged) - adapted_logits).abs().max() < 1e-6 * adapted_logits.abs().max()
    assert torch.equal(logits(model), adapted_logits)
    assert any(each.requires_grad for each in model.parameters())


def test_merged_weights_are_exact_in_fp64() -> None:
    model = Transformer(SHAPES["llama"]).double().eval()
    transform = trained(model)
    torch.testing.assert_close(hidden(transform.merge(model)), hidden(model), rtol=0, atol=1e-13)


def test_the_reference_is_the_model_without_additions(model: Transformer) -> None:
    before = hidden(model)
    transform = trained(model)
    changed = hidden(model)
    with transform.reference(model):
        assert torch.equal(hidden(model), before)
        with transform.reference(model):
            assert torch.equal(hidden(model), before)
        assert torch.equal(hidden(model), before)
    assert torch.equal(hidden(model), changed)
    with pytest.raises(ZeroDivisionError), transform.reference(model):
        raise ZeroDivisionError
    assert torch.equal(hidden(model), changed)


def test_dropout_acts_in_training_only_and_follows_the_seed() -> None:
    model = Transformer(SHAPES["llama"]).eval()
    trained(model, LoraConfig(dropout=0.3))
    quiet = hidden(model)
    assert torch.equal(hidden(model), quiet)
    model.train()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(hidden(model))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], quiet)


@pytest.mark.slow
def test_compiled_is_the_same() -> None:
    model = Transformer(ModelConfig(**{**SMALL, "n_layers": 1})).train()
    before = hidden(model)
    transform = trained(model)
    expected = hidden(model)
    compiled = torch.compile(model, backend="aot_eager", dynamic=False)
    found = hidden(compiled)
    torch.testing.assert_close(found, expected)
    parameters = [each for each in model.parameters() if each.requires_grad]
    torch.testing.assert_close(
        torch.autograd.grad(found.square().mean(), parameters),
        torch.autograd.grad(expected.square().mean(), parameters),
    )
    with transform.reference(model), torch.no_grad():
        torch.testing.assert_close(hidden(compiled), before)
    torch.testing.assert_close(hidden(compiled), expected)


def test_the_seed_decides_a_and_the_name_makes_layers_differ() -> None:
    def draw(seed: int, layers: int = 2) -> dict[str, Tensor]:
        model = Transformer(ModelConfig(**{**SMALL, "n_layers": layers}))
        LoraTransform(LoraConfig()).apply(model, seed)
        return {name: layer.lora_A.detach() for name, layer in adapted(model)}

    one, again, other = draw(1), draw(1, layers=3), draw(2)
    name, sibling = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"
    assert torch.equal(one[name], again[name])
    assert not torch.equal(one[name], other[name])
    assert not torch.equal(one[name], one[sibling])
    assert one[name].std() == pytest.approx(32**-0.5, rel=0.2)


def config(*settings: str) -> LoraConfig:
    return resolve(LORA.config, [Layer("--adapter-set", parse_set(settings).values)]).config


def test_targets_choose_layers() -> None:
    model = Transformer(SHAPES["llama"])
    LoraTransform(config("targets=q, v_proj", "rank=2")).apply(model, 0)
    assert {name.rpartition(".")[2] for name, _ in adapted(model)} == {"q_proj", "v_proj"}
    assert len(list(adapted(model))) == 4


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("targets=q,vv", 'there is no layer "vv" (from --adapter-set)'),
        ("rank=0", "rank = 0 is below 1 (from --adapter-set)"),
        ("alpha=0", "alpha = 0.0 is not positive"),
        ("dropout=1", "dropout = 1.0 is not in 0 to 1"),
        ("rnk=1", 'unknown key "rnk" (from --adapter-set)'),
    ],
)
def test_wrong_settings_are_refused(setting: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        config(setting)
    assert said in caught.value.what


@pytest.mark.parametrize(("shape", "targets"), [("gpt2", "q,gate"), ("experts", "experts"), ("gpt2", "gate")])
def test_a_layer_that_the_model_lacks_is_refused(shape: str, targets: str) -> None:
    with pytest.raises(UserError):
        LoraTransform(config(f"targets={targets}")).apply(Transformer(SHAPES[shape]), 0)


@pytest.mark.parametrize("shape", ["llama", "qwen3"])
def test_what_is_saved_gives_the_merged_weights_on_disk(tmp_path: Path, shape: str) -> None:
    model = Transformer(SHAPES[shape])
    base = disk_tensors(model.state_dict(), model.config, LLAMA_LAYOUT)
    transform = trained(model, LoraConfig(rank=4, alpha=6.0))
    transform.save(tmp_path, model)
    merged = disk_tensors(transform.merge(model).state_dict(), model.config, LLAMA_LAYOUT)
    saved, about = (
        load_file(tmp_path / "adapter_model.safetensors"),
        json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8")),
    )
    assert (about["r"], about["lora_alpha"], about["peft_type"]) == (4, 6.0, "LORA")
    names = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in saved}
    assert {name.rpartition(".")[2] for name in names} == set(about["target_modules"])
    for name, weight in base.items():
        layer = name.removesuffix(".weight")
        if layer in names:
            a, b = (saved[f"base_model.model.{layer}.lora_{part}.weight"] for part in "AB")
            weight = weight + about["lora_alpha"] / about["r"] * b @ a
            names.remove(layer)
        torch.testing.assert_close(merged[name], weight)
    assert not names


def test_it_is_a_transform() -> None:
    transform: Transform = LoraTransform(LoraConfig())
    assert LORA.build == f"{type(transform).__module__}:{type(transform).__qualname__}"

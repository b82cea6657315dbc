"""LoRA changes nothing at first, trains only what it adds, and merges to the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmcli_lora import LORA, LoraConfig, Recipe
from mmcli_lora.layer import LoraExperts, LoraLinear, LowRank
from mmcli_lora.transform import LoraTransform, adapted
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from mmcli.config import Layer, parse_set, resolve
from mmcli.errors import UserError
from mmcli.model import ffn, moe
from mmcli.model.attention import AttnContext
from mmcli.model.config import ModelConfig
from mmcli.model.transformer import Transformer
from mmcli.stage import Transform

SMALL: dict[str, Any] = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 97, "init_std": 0.1}
SHAPES = {
    "llama": ModelConfig(**SMALL),
    "qwen3": ModelConfig(**SMALL, qk_norm=True, tie_embeddings=False),
    "gpt2": ModelConfig(**SMALL, norm="layernorm", position="learned", mlp="gelu_tanh", bias=True, max_seq_len=64),
    "experts": ModelConfig(**SMALL, use_moe=True),
    "mixtral": ModelConfig(**SMALL, use_moe=True, n_shared_experts=0, norm_topk_prob=True),
    "qwen3_moe": ModelConfig(**SMALL, use_moe=True, n_shared_experts=0, norm_topk_prob=False, qk_norm=True),
}
RECIPES = {"lora": LoraConfig(), "rslora": LoraConfig(rank=4, use_rslora=True), "dora": LoraConfig(use_dora=True)}
IDS_BT = torch.arange(48).reshape(3, 16) * 7 % 97


def context() -> AttnContext:
    positions_BT = torch.arange(16).expand(3, 16).numpy().copy()
    return AttnContext.from_batch(positions_BT, positions_BT * 0, torch.device("cpu"))


def hidden(model: Any) -> Tensor:
    return model(IDS_BT, context())[0]


def logits(model: Any) -> Tensor:
    return model.head(hidden(model))


def trained(model: Transformer, config: LoraConfig | None = None, *, seed: int = 0) -> LoraTransform:
    """Adapt a model, with B (and the magnitudes) as they might be after training."""
    transform = LoraTransform(config or LoraConfig())
    transform.apply(model, seed)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in adapted(model).values():
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator) * 0.02)
            if layer.lora_magnitude_vector is not None:
                layer.lora_magnitude_vector *= 1 + 0.1 * torch.randn(
                    layer.lora_magnitude_vector.shape, generator=generator
                )
    return transform


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest) -> Transformer:
    return Transformer(SHAPES[request.param]).eval()


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> LoraConfig:
    return RECIPES[request.param]


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
    shapes = [before[name].shape for name in adapted(model)]
    expected = sum(3 * (sum(shape) if len(shape) == 2 else shape[0] * sum(shape[1:])) for shape in shapes)
    assert sum(each.numel() for each in after.values() if each.requires_grad) == expected > 0


def test_dora_learns_a_number_more_for_each_row(model: Transformer) -> None:
    rows = {name: parameter.shape[:-1].numel() for name, parameter in model.named_parameters()}
    before = hidden(model)
    LoraTransform(LoraConfig(use_dora=True)).apply(model, seed=0)
    layers = adapted(model)
    assert {name: layer.lora_magnitude_vector.numel() for name, layer in layers.items()} == {n: rows[n] for n in layers}
    torch.testing.assert_close(hidden(model), before, rtol=0, atol=1e-6)


def test_gradients_reach_the_additions_alone(model: Transformer, recipe: LoraConfig) -> None:
    trained(model, recipe)
    logits(model.train()).square().mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


def test_what_is_computed_again_gives_the_same_gradients(
    model: Transformer, recipe: LoraConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(model.train(), recipe)
    added = [each for each in model.parameters() if each.requires_grad]
    products: list[StorageWeakRef] = []
    compute = ffn.activate

    def activate(*given: Any) -> Tensor:
        product = compute(*given)
        products.append(StorageWeakRef(product.untyped_storage()))
        return product

    for module in (ffn, moe):
        monkeypatch.setattr(module, "activate", activate)
    found = []
    for frozen in (True, False):
        if not frozen:  # all is kept for the gradients of the weights themselves, then
            model.requires_grad_(True)
        products.clear()
        loss = logits(model).square().mean()
        assert all(product.expired() == frozen for product in products) and products
        found.append(torch.autograd.grad(loss, added))
    assert all(torch.equal(*each) for each in zip(*found, strict=True))


def test_a_layer_that_is_computed_again_as_a_whole_keeps_nothing_of_its_own(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(model.train())
    added = [each for each in model.parameters() if each.requires_grad]
    expected = torch.autograd.grad(logits(model).square().mean(), added)
    given: list[StorageWeakRef] = []
    compute = ffn.activate

    def activate(gate: Tensor | None, up: Tensor, kind: str) -> Tensor:
        given.append(StorageWeakRef(up.untyped_storage()))
        return compute(gate, up, kind)

    for module in (ffn, moe):
        monkeypatch.setattr(module, "activate", activate)
    model.checkpoint_layers = True
    loss = logits(model).square().mean()
    assert given and all(each.expired() for each in given)
    assert all(torch.equal(*each) for each in zip(torch.autograd.grad(loss, added), expected, strict=True))


def test_the_addition_is_scaled_b_a() -> None:
    base = torch.nn.Linear(6, 5)
    for stabilised, scale in ((False, 8.0 / 4), (True, 8.0 / 4**0.5)):
        layer = LoraLinear(base, Recipe(rank=4, alpha=8.0, use_rslora=stabilised), 0.0, "x", seed=0)
        with torch.no_grad():
            layer.lora_B.normal_()
        x = torch.randn(4, 6)
        expected = x @ base.weight.T + base.bias + scale * x @ layer.lora_A.T @ layer.lora_B.T
        torch.testing.assert_close(layer(x), expected)


def test_dora_sets_the_length_of_each_row_and_takes_no_gradient_through_it() -> None:
    base = torch.nn.Linear(6, 5).double()
    layer = LoraLinear(base, Recipe(rank=2, alpha=8.0, use_dora=True), 0.0, "x", seed=0)
    with torch.no_grad():
        layer.lora_B.normal_()
        layer.lora_magnitude_vector.mul_(1.5)
    x = torch.randn(4, 6, dtype=torch.float64)
    weight = base.weight + 8.0 / 2 * layer.lora_B @ layer.lora_A
    weight = layer.lora_magnitude_vector[:, None] * weight / weight.norm(dim=1, keepdim=True).detach()
    expected = x @ weight.T + base.bias
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.merged(base.weight).norm(dim=1), layer.lora_magnitude_vector.detach())
    parameters = list(layer.parameters())
    wanted = torch.autograd.grad(expected.square().sum(), [p for p in parameters if p.requires_grad])
    found = torch.autograd.grad(layer(x).square().sum(), [p for p in parameters if p.requires_grad])
    torch.testing.assert_close(found, wanted)


def test_merged_computes_the_same_and_leaves_the_original_trainable(model: Transformer, recipe: LoraConfig) -> None:
    before = hidden(model)
    transform = trained(model, recipe)
    adapted_logits = logits(model)
    assert (hidden(model) - before).abs().max() > 1e-2
    merged = transform.merge(model)
    assert type(merged) is Transformer
    assert merged.state_dict().keys() == Transformer(model.config).state_dict().keys()
    assert not any(isinstance(each, LowRank) for each in merged.modules())
    assert (logits(merged) - adapted_logits).abs().max() < 1e-6 * adapted_logits.abs().max()
    assert torch.equal(logits(model), adapted_logits)
    assert any(each.requires_grad for each in model.parameters())


def test_merged_weights_are_exact_in_fp64() -> None:
    model = Transformer(SHAPES["llama"]).double().eval()
    transform = trained(model)
    torch.testing.assert_close(hidden(transform.merge(model)), hidden(model), rtol=0, atol=1e-13)


def test_the_reference_is_the_model_without_additions(model: Transformer, recipe: LoraConfig) -> None:
    before = hidden(model)
    transform = trained(model, recipe)
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
        return {name: layer.lora_A.detach() for name, layer in adapted(model).items()}

    one, again, other = draw(1), draw(1, layers=3), draw(2)
    name, sibling = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(one[name], again[name])
    assert not torch.equal(one[name], other[name])
    assert not torch.equal(one[name], one[sibling])
    assert one[name].std() == pytest.approx(32**-0.5, rel=0.2)


def config(*settings: str) -> LoraConfig:
    return resolve(LORA.config, [Layer("--adapter-set", parse_set(settings).values)]).config


def test_targets_choose_layers() -> None:
    model = Transformer(SHAPES["llama"])
    LoraTransform(config("targets=q, v_proj", "rank=2")).apply(model, 0)
    assert {name.split(".")[-2] for name in adapted(model)} == {"q_proj", "v_proj"}
    assert len(adapted(model)) == 4


def test_targets_choose_projections_of_experts() -> None:
    model = Transformer(SHAPES["mixtral"])
    LoraTransform(config("targets=up,o")).apply(model, 0)
    experts = model.get_submodule("model.layers.0.mlp.experts")
    assert isinstance(experts, LoraExperts)
    assert {name.split(".", 3)[-1] for name in adapted(model)} == {"mlp.experts.up_proj", "self_attn.o_proj.weight"}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("targets=q,vv", 'there is no layer "vv" (from --adapter-set)'),
        ("rank=0", "rank = 0 is below 1 (from --adapter-set)"),
        ("alpha=0", "alpha = 0.0 is not positive"),
        ("dropout=1", "dropout = 1.0 is not in 0 to 1"),
        ("rnk=1", 'unknown key "rnk" (from --adapter-set)'),
        ("use_dora=x", "use_dora = 'x'"),
    ],
)
def test_wrong_settings_are_refused(setting: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        config(setting)
    assert said in caught.value.what


@pytest.mark.parametrize(("shape", "targets"), [("gpt2", "q,gate"), ("gpt2", "gate")])
def test_a_layer_that_the_model_lacks_is_refused(shape: str, targets: str) -> None:
    with pytest.raises(UserError):
        LoraTransform(config(f"targets={targets}")).apply(Transformer(SHAPES[shape]), 0)


def test_it_is_a_transform() -> None:
    transform: Transform = LoraTransform(LoraConfig())
    assert LORA.build == f"{type(transform).__module__}:{type(transform).__qualname__}"

"""The folder of an adapter: PEFT gives the same logits from it, and it is read back to go on."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmcli_lora import LoraConfig
from mmcli_lora.transform import LoraTransform, adapted
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmcli.errors import UserError
from mmcli.model.attention import AttnContext
from mmcli.model.config import ModelConfig
from mmcli.model.formats.families import family_of
from mmcli.model.formats.hf_config import to_hf_config
from mmcli.model.formats.parameters import disk_tensors
from mmcli.model.transformer import Transformer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SMALL: dict[str, Any] = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 97, "init_std": 0.1}
ROUTED: dict[str, Any] = {**SMALL, "use_moe": True, "n_shared_experts": 0}
SHAPES = {
    "llama": ModelConfig(**SMALL),
    "qwen3": ModelConfig(**SMALL, qk_norm=True, tie_embeddings=False),
    "gpt2": ModelConfig(
        **{**SMALL, "n_kv_heads": 4}, norm="layernorm", position="learned", mlp="gelu_tanh", bias=True, max_seq_len=64
    ),
    "phi": ModelConfig(
        **{**SMALL, "n_kv_heads": 4}, norm="layernorm", mlp="gelu_tanh", bias=True, parallel_block=True, head_bias=True,
        tie_embeddings=False,
    ),
    "minimind": ModelConfig(**SMALL, use_moe=True),
    "mixtral": ModelConfig(**ROUTED, norm_topk_prob=True),
    "qwen3_moe": ModelConfig(**ROUTED, norm_topk_prob=False, qk_norm=True),
}  # fmt: skip
IDS_BT = torch.arange(48).reshape(3, 16) * 7 % 97
CASES = {
    "llama": ("llama", LoraConfig(rank=4, alpha=6.0, dropout=0.1)),
    "some": ("llama", LoraConfig(targets="q,o,down")),
    "stabilised": ("qwen3", LoraConfig(use_rslora=True)),
    "dora": ("qwen3", LoraConfig(use_dora=True, use_rslora=True)),
    "joined": ("gpt2", LoraConfig(use_rslora=True)),
    "joined in part": ("gpt2", LoraConfig(targets="v,o")),
    "joined, dora": ("gpt2", LoraConfig(targets="q,up", use_dora=True)),
    "phi": ("phi", LoraConfig(targets="o,down")),
    "mixtral": ("mixtral", LoraConfig(use_rslora=True)),
    "qwen3_moe": ("qwen3_moe", LoraConfig(rank=2)),
}
OURS = {  # what PEFT does not load
    "minimind": ("minimind", LoraConfig()),
    "experts, dora": ("mixtral", LoraConfig(use_dora=True)),
    "experts in part": ("mixtral", LoraConfig(targets="gate,down", use_dora=True)),
}


def hidden(model: Transformer) -> Tensor:
    positions_BT = torch.arange(16).expand(3, 16).numpy().copy()
    with torch.no_grad():
        return model(IDS_BT, AttnContext.from_batch(positions_BT, positions_BT * 0, torch.device("cpu")))[0]


def trained(model: Transformer, recipe: LoraConfig) -> LoraTransform:
    """Adapt a model, with numbers as they might be after training."""
    transform = LoraTransform(recipe)
    transform.apply(model, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in adapted(model).values():
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator) * 0.02)
            if layer.lora_magnitude_vector is not None:
                layer.lora_magnitude_vector *= torch.rand(layer.lora_magnitude_vector.shape, generator=generator) + 0.5
    return transform


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[ModelConfig, LoraConfig]:
    shape, recipe = CASES[request.param]
    return SHAPES[shape], recipe


def in_transformers(folder: Path, model: Transformer) -> Any:
    """The same model in transformers, by way of a folder as a run has it."""
    transformers = pytest.importorskip("transformers")
    family = family_of(model.config)
    about = to_hf_config(model.config, dtype="float32", family=family, bos_id=None, eos_id=None, pad_id=None)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(about), encoding="utf-8")
    tensors = disk_tensors(model.state_dict(), model.config, family.layout)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def test_peft_gives_the_same_logits(tmp_path: Path, case: tuple[ModelConfig, LoraConfig]) -> None:
    peft = pytest.importorskip("peft", reason="needs peft, of the extra mmcli[dev]")
    config, recipe = case
    model = Transformer(config).eval()
    base, before = in_transformers(tmp_path / "model", model), model.head(hidden(model))
    trained(model, recipe).save(tmp_path, model)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        loaded = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()
    with torch.no_grad():
        found, wanted = loaded(input_ids=IDS_BT).logits, model.head(hidden(model))
    assert (wanted - before).abs().max() > 1e-2
    assert (found - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("name", [*CASES, *OURS])
def test_it_is_read_back(tmp_path: Path, name: str) -> None:
    shape, recipe = {**CASES, **OURS}[name]
    model, again = Transformer(SHAPES[shape]).eval(), Transformer(SHAPES[shape]).eval()
    trained(model, recipe).save(tmp_path, model)
    transform = LoraTransform(LoraConfig(adapter_from=str(tmp_path)))
    transform.apply(again, seed=9)
    assert adapted(again).keys() == adapted(model).keys()
    assert torch.equal(hidden(again), hidden(model))
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    (tmp_path / "again").mkdir()
    transform.save(tmp_path / "again", again)
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (tmp_path / WEIGHTS).read_bytes()


def test_the_reference_of_an_adapter_that_goes_on_is_what_it_began_with(tmp_path: Path) -> None:
    for recipe in (LoraConfig(), LoraConfig(use_dora=True)):
        model = Transformer(SHAPES["mixtral"]).eval()
        trained(model, recipe).save(tmp_path, model)
        again = Transformer(SHAPES["mixtral"]).eval()
        transform = LoraTransform(LoraConfig(adapter_from=str(tmp_path)))
        transform.apply(again, seed=0)
        start, names = hidden(again), again.state_dict().keys()
        with torch.no_grad():
            for layer in adapted(again).values():
                for parameter in layer.parameters():
                    if parameter.requires_grad:
                        parameter *= 1.5
        changed = hidden(again)
        assert not torch.allclose(changed, start, atol=1e-3)
        with transform.reference(again):
            assert torch.equal(hidden(again), start)
        assert torch.equal(hidden(again), changed)
        assert names == model.state_dict().keys()


def edit(**values: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        (folder / CONFIG).write_text(json.dumps({**about, **values}), encoding="utf-8")

    return write


def change(name: str, value: torch.Tensor | None) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        tensors = {key: each for key, each in load_file(folder / WEIGHTS).items() if key != name}
        save_file(tensors if value is None else {**tensors, name: value}, folder / WEIGHTS)

    return write


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / CONFIG).unlink(), "there is no adapter_config.json in "),
        (lambda folder: (folder / WEIGHTS).unlink(), "there is no adapter_model.safetensors in "),
        (lambda folder: (folder / CONFIG).write_text("{", encoding="utf-8"), "adapter_config.json is damaged"),
        (lambda folder: (folder / CONFIG).write_text("[]", encoding="utf-8"), "adapter_config.json is damaged"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"xx"), "adapter_model.safetensors cannot be read"),
        (edit(peft_type="IA3"), "more than LoRA with one scale (peft_type IA3"),
        (edit(bias="all"), "more than LoRA with one scale (peft_type LORA, bias all)"),
        (edit(modules_to_save=["lm_head"]), "modules_to_save"),
        (edit(alpha_pattern={"q_proj": 99}), "alpha_pattern"),
        (edit(r=3), "q_proj has A, B of [(8, 32), (32, 8)], this model needs [(3, 32), (32, 3)]"),
        (edit(use_dora=True), "q_proj.lora_magnitude_vector"),
        (change(FIRST + "B.weight", None), "has no base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"),
        (change("base_model.model.lm_head.lora_A.weight", torch.ones(8, 32)), "which has no place in this model"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path, spoil: Callable[[Path], Any], said: str) -> None:
    model = Transformer(SHAPES["llama"])
    trained(model, LoraConfig()).save(tmp_path, model)
    spoil(tmp_path)
    with pytest.raises(UserError) as caught:
        LoraTransform(LoraConfig(adapter_from=str(tmp_path))).apply(Transformer(SHAPES["llama"]), 0)
    assert said in caught.value.what


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    model = Transformer(SHAPES["llama"])
    trained(model, LoraConfig()).save(tmp_path, model)
    with pytest.raises(UserError, match=r"layers\.1") as caught:
        LoraTransform(LoraConfig(adapter_from=str(tmp_path))).apply(
            Transformer(ModelConfig(dim=32, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=97)), 0
        )
    assert "--from that model" in caught.value.fix

"""`export_huggingface`: import(export(m)) is m, types are changed as asked, and what others cannot run is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mmcli.errors import MmcliError, UserError
from mmcli.export import huggingface
from mmcli.export.huggingface import export_huggingface
from mmcli.model.attention import AttnContext
from mmcli.model.formats.hf_folder import load_model
from mmcli.model.formats.read import read_model, save_imported
from mmcli.text.chat import encode_chat
from mmcli.text.tokenizer import Tokenizer

KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, derived width": {"hidden_dim": None, "dropout": 0.1, "multiple_of": 32},
    "mistral": {"sliding_window": 4},
    "qwen3": {"qk_norm": True, "tie_embeddings": False},
    "qwen3_moe": {"use_moe": True, "n_shared_experts": 0, "qk_norm": True},
    "mixtral": {"use_moe": True, "n_shared_experts": 0},
    "granitemoeshared": {"use_moe": True},
    "granitemoeshared, two shared": {"use_moe": True, "n_shared_experts": 2, "n_routed_experts": 6, "n_kv_heads": 4},
    "granitemoeshared, one chosen, yarn, untied": {
        "use_moe": True, "num_experts_per_tok": 1, "tie_embeddings": False, "rope_scaling": "yarn", "rope_factor": 4.0,
    },
    "gpt2": {"position": "learned", "norm": "layernorm", "mlp": "gelu_tanh", "bias": True, "n_kv_heads": 4},
    "phi": {
        "parallel_block": True, "norm": "layernorm", "mlp": "gelu_tanh", "bias": True, "head_bias": True,
        "rotary_fraction": 0.5, "tie_embeddings": False,
    },
}  # fmt: skip


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(folder).state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_import_of_an_export_is_the_model(kind: str, save: Any, tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = save(**KINDS[kind])
    made = export_huggingface(source, tmp_path / "hf")
    assert made.model_type == kind.split(",")[0] and made.dtype == "fp32" and made.perplexity_rise == 0.0
    save_imported(tmp_path / "back", read_model(tmp_path / "hf"))
    before, after = load_model(source), load_model(tmp_path / "back")
    assert after.config == before.config
    assert list(after.state_dict()) == list(before.state_dict())
    for name, tensor in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], tensor), name
    assert Tokenizer.load(tmp_path / "back").fingerprint == tokenizer.fingerprint
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / "back" / name).read_text()) == json.loads((source / name).read_text()), name


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_computes_the_same(kind: str, save: Any, tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = save(**KINDS[kind])
    export_huggingface(source, tmp_path / "hf")
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    ours = load_model(source)
    ids = torch.randint(0, 400, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = ours.head(ours(ids, AttnContext.causal(2, 20))[0])
        torch.testing.assert_close(theirs.eval()(ids).logits, expected, atol=1e-5, rtol=1e-5)
    messages = [{"role": "user", "content": "How are you?"}]
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    found = their_tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert found == encode_chat(tokenizer, messages, add_generation_prompt=True).ids


def test_shared_experts_without_the_key_of_mmcli_are_the_same_model(save: Any, tmp_path: Path) -> None:
    """As another program would have written them."""
    source = save(use_moe=True, n_shared_experts=2)
    export_huggingface(source, tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    fields = json.loads(path.read_text())
    assert (fields["shared_intermediate_size"], fields["attention_multiplier"]) == (192, 0.25)
    (tmp_path / "hf" / "manifest.json").unlink(missing_ok=True)
    del fields["mmcli"]
    for key, value, says in (
        ("attention_multiplier", 0.015625, "attention_multiplier = 0.015625"),
        ("residual_multiplier", 0.22, "residual_multiplier = 0.22"),
        ("shared_intermediate_size", 100, "shared_intermediate_size = 100"),
    ):
        path.write_text(json.dumps({**fields, key: value}))
        with pytest.raises(UserError, match=f"{says} is not supported"):
            load_model(tmp_path / "hf")
    path.write_text(json.dumps(fields))
    before, after = load_model(source), load_model(tmp_path / "hf")
    assert after.config.n_shared == 2
    for name, tensor in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], tensor), name


def test_the_released_layout_of_minimind_is_written_where_asked(save: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    assert export_huggingface(save(use_moe=True), tmp_path / "hf", layout="minimind").model_type == "minimind"
    names = set(load_file(tmp_path / "hf" / "model.safetensors"))
    for name in ("experts.3.gate_proj", "gate", "shared_experts.0.down_proj"):
        assert f"model.layers.1.mlp.{name}.weight" in names
    fields = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert fields["architectures"] == ["MiniMindForCausalLM"]
    assert (fields["use_moe"], fields["n_routed_experts"], fields["n_shared_experts"]) == (True, 4, 1)
    torch.save(load_file(tmp_path / "hf" / "model.safetensors"), tmp_path / "moe.pth")
    # and back by way of the bare state dict
    from mmcli.config import parse_set

    tokenizer = Tokenizer.load(tmp_path / "hf")
    again = read_model(tmp_path / "moe.pth", tokenizer=tokenizer, settings=parse_set(["model.n_heads=4"])).model
    for name, tensor in tensors(tmp_path / "hf").items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize(("dtype", "torch_type"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_a_smaller_type_is_written_and_measured(dtype: Any, torch_type: torch.dtype, save: Any, tmp_path: Path) -> None:
    source = save()
    made = export_huggingface(source, tmp_path / "hf", dtype=dtype, stage="sft")
    assert made.dtype == dtype and made.bytes < (source / "model.safetensors").stat().st_size * 0.6
    assert made.perplexity_rise != 0.0 and abs(made.perplexity_rise) < 0.01
    for name, tensor in tensors(source).items():
        assert torch.equal(tensors(tmp_path / "hf")[name], tensor.to(torch_type).float()), name
    fields = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert fields["dtype"] == str(torch_type).removeprefix("torch.") and fields["mmcli_stage"] == "sft"
    # without --dtype the type stays
    assert export_huggingface(tmp_path / "hf", tmp_path / "again").dtype == dtype


def test_what_fp16_cannot_hold_is_refused(save: Any, tmp_path: Path, tokenizer: Tokenizer) -> None:
    from mmcli.model.formats.hf_folder import save_model

    source = save(tie_embeddings=False)
    model = load_model(source)
    model.get_parameter("model.embed_tokens.weight").data[410, 3] = 1e5  # of an id that no text has
    save_model(source, model, model.config, tokenizer)
    with pytest.raises(
        UserError, match=r"model\.embed_tokens\.weight has values that torch\.float16 cannot hold \(at most"
    ):
        export_huggingface(source, tmp_path / "hf", dtype="fp16")
    assert not (tmp_path / "hf").exists()
    assert export_huggingface(source, tmp_path / "hf", dtype="bf16").dtype == "bf16"


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"use_moe": True, "mlp": "gelu"}, r"model\.mlp = gelu"),
        ({"head_bias": True}, r"model\.head_bias = True"),
        ({"use_moe": True, "sliding_window": 4}, r"model\.sliding_window = 4"),
    ],
)
def test_what_no_family_can_say_is_refused_by_field(values: Any, field: str, save: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no Hugging Face family has this model.*{field}"):
        export_huggingface(save(**values), tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_what_only_minimind_can_say_is_refused_with_the_way_out(save: Any, tmp_path: Path) -> None:
    source = save(use_moe=True, norm_topk_prob=False)
    with pytest.raises(UserError, match=r"nearest, granitemoeshared, differs in: model\.norm_topk_prob") as refused:
        export_huggingface(source, tmp_path / "hf")
    assert "--layout minimind" in refused.value.fix
    assert export_huggingface(source, tmp_path / "hf", layout="minimind").model_type == "minimind"
    with pytest.raises(UserError, match=r"MiniMind2 differs from this model in: model\.qk_norm = True"):
        export_huggingface(save("second", qk_norm=True), tmp_path / "other", layout="minimind")


def test_an_earlier_export_is_replaced(save: Any, tmp_path: Path) -> None:
    export_huggingface(save(), tmp_path / "hf")
    export_huggingface(save(seed=2), tmp_path / "hf", dtype="bf16")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_folder_with_something_in_it_is_left_alone(save: Any, tmp_path: Path) -> None:
    source = save()
    with pytest.raises(UserError, match="exists and is not an export"):
        export_huggingface(source, source)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists and is not an export"):
        export_huggingface(save(), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("broken", ["weights", "config"])
def test_an_export_that_reads_back_otherwise_is_not_kept(
    broken: str, save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = huggingface.save_model

    def wrong(folder: Path, model: Any, config: Any, tokenizer: Any, **more: Any) -> None:
        import copy
        import dataclasses

        changed = copy.deepcopy(model)
        if broken == "weights":
            changed.get_parameter("model.layers.1.mlp.up_proj.weight").data[0, 0] += 1
        else:
            config = dataclasses.replace(config, rope_theta=77.0)
        store(folder, changed, config, tokenizer, **more)

    monkeypatch.setattr(huggingface, "save_model", wrong)
    message = {"weights": r"model\.layers\.1\.mlp\.up_proj\.weight reads back", "config": "another configuration"}
    with pytest.raises(MmcliError, match=message[broken]):
        export_huggingface(save(), tmp_path / "hf")
    assert not (tmp_path / "hf").exists()

"""The tables of the formats: every ModelConfig field is classified, once, and a new one is refused until it is."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mmcli.config import option
from mmcli.errors import UserError
from mmcli.export.decoder import TABLE as ONNX_TABLE
from mmcli.export.decoder import refuse_unsupported
from mmcli.export.huggingface import find_family
from mmcli.model.config import ModelConfig
from mmcli.model.formats.families import MINIMIND_3, MINIMIND_FIRST, OWN, READABLE, family_of
from mmcli.model.formats.fields import UNSTORED, FieldTable
from mmcli.model.formats.gguf_table import ARCHITECTURES, NAMES, STACKED, Metadata, find_architecture
from mmcli.model.formats.minimind import FIRST_NAMES
from mmcli.model.formats.minimind import TABLE as PTH_TABLE
from mmcli.model.formats.names import NameTable
from mmcli.model.formats.parameters import disk_tensors
from mmcli.model.formats.weights import Entry, Weights
from mmcli.model.transformer import Transformer

TABLES: dict[str, FieldTable[Any]] = {
    **{family.model_type: family.table for family in READABLE},
    "minimind of 2025-02": MINIMIND_FIRST.table,
    "minimind-3": MINIMIND_3.table,
    "minimind .pth": PTH_TABLE,
    **{f"gguf {name}": each.table for name, each in ARCHITECTURES.items()},
    "onnx": ONNX_TABLE,
}


@dataclass(frozen=True, kw_only=True)
class WithNewField(ModelConfig):
    """ModelConfig after somebody added a field to it and to nothing else."""

    logit_softcap: float = option(0.0, "logits are squashed to this")


@pytest.mark.parametrize("name", TABLES)
def test_every_field_is_classified_once(name: str) -> None:
    expected = {field.name: 1 for field in dataclasses.fields(ModelConfig)}
    assert Counter(TABLES[name].classified()) == expected


@pytest.mark.parametrize("name", TABLES)
def test_an_unclassified_field_is_refused_whatever_its_value(name: str) -> None:
    assert "logit_softcap" in TABLES[name].unsupported(WithNewField())


def test_a_new_field_belongs_to_no_family_and_no_export() -> None:
    config = WithNewField(logit_softcap=30.0)
    assert family_of(ModelConfig()).model_type == "llama" and family_of(config) is OWN
    with pytest.raises(UserError) as refused:
        find_family(config, "transformers")
    assert refused.value.what.endswith("the nearest, llama, differs in: model.logit_softcap = 30.0")
    assert refused.value.fix and "\n" not in refused.value.what
    with pytest.raises(UserError, match=r"ONNX export does not support model\.logit_softcap = 30\.0\n"):
        refuse_unsupported(config)


def test_a_field_that_no_format_stores_has_one_value_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(UNSTORED, "logit_softcap", 0.0)
    as_before, changed = WithNewField(), WithNewField(logit_softcap=30.0)
    assert family_of(as_before).model_type == "llama" and family_of(changed) is OWN
    for table in TABLES.values():
        assert Counter(table.classified())["logit_softcap"] == 1
        assert "logit_softcap" not in table.unsupported(as_before)
        assert "logit_softcap" in table.unsupported(changed)


SIZES: dict[str, Any] = {"dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 50, "hidden_dim": 48}
SHAPES: dict[str, dict[str, Any]] = {
    "dense": {"qk_norm": True, "tie_embeddings": False},
    "experts": {"use_moe": True, "n_shared_experts": 2, "n_routed_experts": 11},
    "gpt2": {"position": "learned", "norm": "layernorm", "mlp": "gelu", "bias": True, "n_kv_heads": 4},
}
NAME_TABLES: dict[str, NameTable] = {
    **{family.model_type: family.layout.names for family in READABLE},
    "gguf": NAMES,
    "minimind until 2025-04": FIRST_NAMES,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAME_TABLES)
def test_names_of_tensors_go_there_and_back(name: str, shape: str) -> None:
    config, table = ModelConfig(**{**SIZES, **SHAPES[shape]}), NAME_TABLES[name]
    with torch.device("meta"):
        model = Transformer(config)
    names = [each for stored in OWN.layout.place(model.state_dict(), config) for each in stored.disk]
    theirs = [table.to_disk(each) for each in names]
    assert len(set(theirs)) == len(names)
    assert [table.to_memory(each) for each in theirs] == names


def test_names_are_those_of_the_formats() -> None:
    assert NAMES.to_disk("model.layers.11.self_attn.q_norm.weight") == "blk.11.attn_q_norm.weight"
    assert NAMES.to_disk("model.embed_tokens.weight") == "token_embd.weight"
    assert FIRST_NAMES.to_disk("model.layers.0.mlp.shared_experts.0.up_proj.weight") == (
        "layers.0.feed_forward.shared_experts.w3.weight"
    )
    assert FIRST_NAMES.to_memory("layers.3.feed_forward.experts.10.w1.weight") == (
        "model.layers.3.mlp.experts.10.gate_proj.weight"
    )


ARCHITECTURE_SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"bias": True},
    "qwen3": {"qk_norm": True},
    "qwen3moe": {"qk_norm": True, "use_moe": True, "n_shared_experts": 0},
    "granitemoe": {"use_moe": True, "n_shared_experts": 2, "n_routed_experts": 11},
}


@pytest.mark.parametrize(
    "values",
    [{}, {"head_dim": 16}, {"tie_embeddings": False}, {"rope_scaling": "linear", "rope_factor": 2.0},
     {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_seq_len": 100}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gguf_metadata_reads_back(architecture: str, values: dict[str, Any]) -> None:
    config = ModelConfig(**{**SIZES, **ARCHITECTURE_SHAPES[architecture], **values})
    table = ARCHITECTURES[architecture].table
    assert table.unsupported(config) == [] and find_architecture(config) == architecture
    with torch.device("meta"):
        state = disk_tensors(Transformer(config).state_dict(), config, STACKED)
    entries = {NAMES.to_disk(name): Entry(tuple(each.shape), each.dtype, each.clone) for name, each in state.items()}
    written = table.write(config)
    source = Metadata(Path("model.gguf"), f"{architecture}.", written, Weights("model.gguf", entries))
    assert ModelConfig(**ARCHITECTURES[architecture].read(source)) == config

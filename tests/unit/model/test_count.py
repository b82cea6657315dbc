"""Counts, bytes and FLOPs from the config alone."""

from __future__ import annotations

import pytest

from mmcli.cli.params import resolve_model
from mmcli.config import preset_names
from mmcli.model.config import ModelConfig
from mmcli.model.count import (
    COMPONENTS,
    count_parameters,
    forward_flops_per_token,
    kv_cache_bytes_per_1000_tokens,
    textbook_count,
    training_flops_per_token,
    training_memory_bytes,
    weight_bytes,
)

EXACT = {  # (total, active)
    "small": (25_829_888, 25_829_888),
    "base": (104_030_976, 104_030_976),
    "moe": (145_029_760, 91_945_600),
    "base-1024": (183_796_736, 183_796_736),
    "moe-1024": (724_927_488, 454_394_880),
    "tiny": (1_606_784, 1_606_784),
    "minimind3": (63_912_192, 63_912_192),
    "minimind3-moe": (198_416_640, 63_936_768),
    "gpt2": (124_439_808, 124_439_808),
    "llama-7b": (6_738_415_616, 6_738_415_616),
    "phi-1.5": (1_418_270_720, 1_418_270_720),
    "smollm2-135m": (134_515_008, 134_515_008),
}


def model(preset: str) -> ModelConfig:
    return resolve_model(preset).config.model


def test_every_preset_has_its_exact_count() -> None:
    found = {name: count_parameters(model(name)) for name in preset_names()}
    assert {name: (count.total, count.active) for name, count in found.items()} == EXACT


def test_components_of_small() -> None:
    assert count_parameters(model("small")).components == {
        "embedding": 6400 * 512,
        "position": 0,
        "attention": 8 * (2 * 512 * 512 + 2 * 512 * 128),
        "ffn": 8 * 3 * 512 * 1408,
        "experts": 0,
        "shared_experts": 0,
        "router": 0,
        "norms": 17 * 512,
        "head": 0,
    }


def test_components_of_moe() -> None:
    components = count_parameters(model("moe")).components
    expert = 3 * 640 * 1728
    assert components["experts"] == 8 * 4 * expert
    assert components["shared_experts"] == 8 * expert
    assert components["router"] == 8 * 4 * 640
    assert components["ffn"] == 0


def test_active_leaves_out_the_experts_that_are_not_chosen() -> None:
    config = ModelConfig(use_moe=True, n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=2)
    count = count_parameters(config)
    assert count.total - count.active == config.n_layers * (8 - 3) * 3 * config.dim * config.ffn_dim


@pytest.mark.parametrize("preset", sorted(EXACT))
def test_components_add_up_and_are_all_known(preset: str) -> None:
    count = count_parameters(model(preset))
    assert tuple(count.components) == COMPONENTS
    assert sum(count.components.values()) == count.total


def test_an_untied_head_and_its_bias_count_once_each() -> None:
    tied = count_parameters(ModelConfig())
    assert count_parameters(ModelConfig(tie_embeddings=False)).total - tied.total == 6400 * 512
    assert count_parameters(ModelConfig(head_bias=True)).total - tied.total == 6400


# Bytes


def test_weight_bytes() -> None:
    config = model("small")
    vectors = 17 * 512
    matrices = 25_829_888 - vectors
    assert weight_bytes(config, "fp32") == 4 * 25_829_888
    assert weight_bytes(config, "bf16") == 2 * 25_829_888
    assert weight_bytes(config, "int8") == matrices + 2 * matrices // 32 + 4 * vectors
    assert weight_bytes(config, "int4") == matrices // 2 + 2 * matrices // 32 + 4 * vectors


def test_rows_that_are_no_multiple_of_the_block_get_a_whole_scale() -> None:
    config = ModelConfig(dim=36, n_layers=1, n_heads=1, n_kv_heads=1, hidden_dim=36, vocab_size=10, norm="rmsnorm")
    rows = 10 + 4 * 36 + 3 * 36  # each 36 wide: two blocks
    assert weight_bytes(config, "int8") == rows * (36 + 2 * 2) + 4 * 3 * 36


def test_training_memory_is_exact_but_for_activations() -> None:
    config = model("small")
    memory = training_memory_bytes(config, 1024)
    assert (memory.weights, memory.gradients, memory.optimizer) == (4 * 25_829_888, 4 * 25_829_888, 8 * 25_829_888)
    per_token = 8 * (4 * 512 + 2 * 512 + 2 * 128 + 4 * 1408) + 2 * 512
    assert memory.activations == 1024 * per_token * 4 + 2 * 4 * 1024 * 6400
    assert memory.total == 16 * 25_829_888 + memory.activations


@pytest.mark.parametrize("preset", ["small", "moe"])
def test_muon_keeps_one_moment_of_the_hidden_matrices(preset: str) -> None:
    config = model(preset)
    count = count_parameters(config)
    hidden = count.attention + count.ffn + count.experts + count.shared_experts
    memory = training_memory_bytes(config, 1024, optimizer="muon")
    assert memory.optimizer == 8 * (count.total - hidden) + 4 * hidden
    assert memory.total == training_memory_bytes(config, 1024).total - 4 * hidden


def test_muon_does_not_take_biases() -> None:
    config = ModelConfig(n_layers=1, bias=True)
    plain = ModelConfig(n_layers=1)
    spared = [
        training_memory_bytes(c, 64).optimizer - training_memory_bytes(c, 64, optimizer="muon").optimizer
        for c in (config, plain)
    ]
    assert spared[0] == spared[1]


def test_training_memory_grows_with_tokens_and_shrinks_with_bf16_and_checkpointing() -> None:
    config = model("small")
    one, two = (training_memory_bytes(config, tokens).activations for tokens in (2048, 4096))
    assert 1.9 < two / one < 2.0  # the chunk of logits does not grow
    assert training_memory_bytes(config, 2048, activation_bytes=2).activations < 0.6 * one
    assert training_memory_bytes(config, 2048, activation_checkpointing=True).activations < 0.4 * one


def test_kv_cache_bytes() -> None:
    assert kv_cache_bytes_per_1000_tokens(model("small"), 4) == 2 * 8 * 2 * 64 * 1000 * 4
    assert kv_cache_bytes_per_1000_tokens(model("llama-7b"), 2) == 2 * 32 * 4096 * 1000 * 2


# FLOPs


def test_flops_of_small_follow_the_stated_convention() -> None:
    matrices, head = 22_544_384, 6400 * 512
    assert training_flops_per_token(model("small"), 512) == 6 * (matrices + head) + 6 * 8 * 512 * 512 == 167_510_016
    assert 3 * forward_flops_per_token(model("small"), 512) == 167_510_016


def test_flops_of_moe_count_chosen_and_shared_experts_and_the_router() -> None:
    config = model("moe")
    attention, expert, router = 2 * 640 * 640 + 2 * 640 * 160, 3 * 640 * 1728, 4 * 640
    matrices = 8 * (attention + 3 * expert + router) + 6400 * 640
    assert forward_flops_per_token(config, 512) == 2 * matrices + 2 * 8 * 640 * 512


def test_flops_count_the_head_once_tied_or_not_and_no_lookup() -> None:
    tied = ModelConfig(position="learned", max_seq_len=512)
    untied = ModelConfig(tie_embeddings=False)
    assert forward_flops_per_token(tied, 512) == forward_flops_per_token(untied, 512)


def test_a_sliding_window_limits_what_a_token_sees() -> None:
    config, full = ModelConfig(sliding_window=128), ModelConfig()
    matmul = 2 * 25_821_184
    seen = sum(min(token - 0.5, 128) for token in range(1, 513)) / 512  # T/2 in the mean where there is no window
    assert forward_flops_per_token(config, 512) - matmul == 4 * 8 * 512 * seen
    assert forward_flops_per_token(config, 128) == forward_flops_per_token(full, 128)


# The textbook formula


@pytest.mark.parametrize("preset", sorted(EXACT))
def test_the_differences_lead_from_the_formula_to_the_exact_count(preset: str) -> None:
    config = model(preset)
    textbook = textbook_count(config)
    hidden = 4 * config.dim
    assert textbook.total == config.n_layers * (4 * config.dim**2 + 2 * config.dim * hidden)
    assert textbook.total + sum(each.parameters for each in textbook.differences) == count_parameters(config).total
    assert all(each.parameters and each.why for each in textbook.differences)


def test_the_differences_of_small() -> None:
    found = {each.name: each.parameters for each in textbook_count(model("small")).differences}
    assert found == {"attention": -3_145_728, "ffn": 524_288, "norms": 8_704, "embedding": 3_276_800}


def test_gpt2_follows_the_formula_but_for_vectors_and_tables() -> None:
    found = {each.name for each in textbook_count(model("gpt2")).differences}
    assert found == {"norms", "biases", "embedding", "position"}

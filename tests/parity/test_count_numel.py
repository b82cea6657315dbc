"""`params count` equals the parameters of the transformer, and those of transformers' own class."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from mmcli.cli.params import resolve_model
from mmcli.config import ConfigError, preset_names
from mmcli.model.config import ModelConfig
from mmcli.model.count import count_parameters
from mmcli.model.formats.families import hf_family
from mmcli.model.formats.hf_config import to_hf_config
from mmcli.model.transformer import Transformer


def numel(config: ModelConfig) -> int:
    with torch.device("meta"):
        model = Transformer(config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("preset", preset_names())
def test_count_of_a_preset_is_numel(preset: str) -> None:
    config = resolve_model(preset).config.model
    assert count_parameters(config).total == numel(config)


def random_config(rng: random.Random) -> ModelConfig | None:
    """A small model with any mixture of options, None where the config refuses the mixture."""
    heads = rng.choice([1, 2, 4, 6])
    use_moe = rng.random() < 0.4
    try:
        return ModelConfig(
            dim=rng.choice([24, 48, 96]),
            n_layers=rng.randint(1, 3),
            n_heads=heads,
            n_kv_heads=rng.choice([k for k in (1, 2, 3, 4, 6) if heads % k == 0]),
            vocab_size=rng.randint(10, 300),
            hidden_dim=rng.choice([None, 40, 100]),
            multiple_of=rng.choice([8, 64]),
            max_seq_len=rng.choice([16, 64]),
            use_moe=use_moe,
            num_experts_per_tok=rng.randint(1, 2),
            n_routed_experts=rng.randint(2, 5),
            n_shared_experts=rng.choice([True, False, 0, 1, 2]),
            scoring_func=rng.choice(["softmax", "sigmoid"]),
            head_dim=rng.choice([None, 16]),
            qk_norm=rng.random() < 0.5,
            tie_embeddings=rng.random() < 0.5,
            norm=rng.choice(["rmsnorm", "layernorm"]),
            position=rng.choice(["rope", "learned"]),
            mlp=rng.choice(["swiglu", "gelu", "gelu_tanh"]),
            bias=not use_moe and rng.random() < 0.5,  # experts have no biases
            head_bias=rng.random() < 0.5,
            parallel_block=rng.random() < 0.3,
        )
    except ConfigError:
        return None


def test_count_of_random_configs_is_numel() -> None:
    rng = random.Random(0)
    configs = [config for config in (random_config(rng) for _ in range(150)) if config is not None]
    assert len(configs) > 100
    wrong = [config for config in configs if count_parameters(config).total != numel(config)]
    assert wrong == []


@pytest.mark.parametrize(
    "preset", ["tiny", "small", "minimind3", "minimind3-moe", "gpt2", "llama-7b", "phi-1.5", "smollm2-135m", "mixtral"]
)
def test_count_is_that_of_the_class_in_transformers(preset: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = resolve_model("small" if preset == "mixtral" else preset).config.model
    if preset == "mixtral":
        config = dataclasses.replace(config, use_moe=True, n_shared_experts=0)
        assert hf_family(config) == "mixtral"
    fields = to_hf_config(config, bos_id=1, eos_id=2, pad_id=0)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
    assert type(theirs).__name__ == fields["architectures"][0]
    assert count_parameters(config).total == sum(parameter.numel() for parameter in theirs.parameters())

"""LoRA as mmcli's adapter: apply, merge, save, reference."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from mmcli.api import Transformer, UserError
from mmcli_lora import ALL, LoraConfig
from mmcli_lora.layer import A, B, LoraLinear


class LoraTransform:
    """Low-rank additions to the linear layers of a model (Hu et al. 2021, section 4.1)."""

    def __init__(self, config: LoraConfig) -> None:
        self.config = config

    def apply(self, model: nn.Module, seed: int) -> None:
        """Freeze `model` and put a `LoraLinear` in the place of each chosen layer. B is 0: nothing changes yet.

        Raises:
            UserError: the model has no such layer (the routed experts of a mixture are no linear layers).
        """
        model.requires_grad_(False)
        found = [(name, layer) for name, layer in model.named_modules() if self._is_target(name, layer)]
        missing = set(self.config.layers) - {_short(name) for name, _ in found}
        if not found or (missing and self.config.targets != ALL):
            what = f"the model has no linear layer {', '.join(sorted(missing))} to adapt"
            raise UserError(what, "choose others with --adapter-set targets=q,v")
        for name, layer in found:
            owner, _, own_name = name.rpartition(".")
            setattr(model.get_submodule(owner), own_name, LoraLinear(layer, self.config, name, seed))

    def _is_target(self, name: str, layer: nn.Module) -> bool:
        return isinstance(layer, nn.Linear) and _short(name) in self.config.layers

    def merge(self, model: nn.Module) -> Transformer:
        """A plain Transformer with W + scale * B A; it shares all other tensors with `model`."""
        assert isinstance(model, Transformer)
        state = {name: each for name, each in model.state_dict().items() if not name.endswith((A, B))}
        state |= {f"{name}.weight": layer.merged_OI() for name, layer in adapted(model)}
        with torch.device("meta"):
            plain = Transformer(model.config)
        plain.load_state_dict(state, assign=True)
        return plain.to(model.head_weight.device).eval()

    def save(self, folder: Path, model: nn.Module) -> None:
        """Write A and B in the layout of PEFT, which loads them onto a model of the Llama and Qwen3 families."""
        layers = list(adapted(model))
        tensors = {
            f"base_model.model.{name}.{part}.weight": getattr(layer, part).detach().cpu().contiguous()
            for name, layer in layers
            for part in (A, B)
        }
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": None,
            "r": self.config.rank,
            "lora_alpha": self.config.alpha,
            "lora_dropout": self.config.dropout,
            "target_modules": sorted({name.rpartition(".")[2] for name, _ in layers}),
            "bias": "none",
            "inference_mode": True,
        }
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @contextlib.contextmanager
    def reference(self, model: nn.Module) -> Iterator[None]:
        """While it is entered, the additions are left out."""
        layers = [layer for _, layer in adapted(model)]
        before = [layer.enabled for layer in layers]
        try:
            for layer in layers:
                layer.enabled = False
            yield
        finally:
            for layer, enabled in zip(layers, before, strict=True):
                layer.enabled = enabled


def adapted(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The adapted layers and their names in the model."""
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLinear):
            yield name, layer


def _short(name: str) -> str:
    """`q` for `model.layers.0.self_attn.q_proj`."""
    return name.rpartition(".")[2].removesuffix("_proj")

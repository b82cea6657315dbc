"""LoRA as mmcli's adapter: apply, merge, save, reference."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from mmcli.api import Experts, Transformer, UserError
from mmcli_lora import ALL, LoraConfig
from mmcli_lora.folder import read_folder, write_folder
from mmcli_lora.layer import LoraExperts, LoraLinear, LowRank

LINEAR = re.compile(r".*\.(q|k|v|o|gate|up|down)_proj(?:\.weight)?")


class LoraTransform:
    """Low-rank additions to the linear layers of a model (Hu et al. 2021, section 4.1), those of experts included."""

    def __init__(self, config: LoraConfig) -> None:
        self.config, self.recipe = config, config.recipe

    def apply(self, model: nn.Module, seed: int) -> None:
        """Freeze `model` and put an addition beside each chosen matrix: B is 0, or they are those of `adapter_from`.

        Raises:
            UserError: the model has no such layer, or the folder of `adapter_from` does not fit it.
        """
        model.requires_grad_(False)
        assert isinstance(model, Transformer)
        if self.config.adapter_from is None:
            for name in self._chosen(model):
                self._add(model, name, seed)
            return
        self.recipe, parts = read_folder(Path(self.config.adapter_from), model)
        for name, part in parts.items():
            self._add(model, name, seed).start_from(part)

    def _chosen(self, model: nn.Module) -> list[str]:
        """The names of the matrices to adapt."""
        found = {name: match[1] for name, _ in model.named_parameters() if (match := LINEAR.fullmatch(name))}
        chosen = [name for name, layer in found.items() if layer in self.config.layers]
        missing = set(self.config.layers) - set(found.values())
        if not chosen or (missing and self.config.targets not in (None, ALL)):
            what = f"the model has no linear layer {', '.join(sorted(missing))} to adapt"
            raise UserError(what, "choose others with --adapter-set targets=q,v")
        return chosen

    def _add(self, model: nn.Module, name: str, seed: int) -> LowRank:
        """Put a new addition beside the matrix `name`."""
        layer = name.removesuffix(".weight")
        owner_name, _, own_name = layer.rpartition(".")
        owner, options = model.get_submodule(owner_name), (self.recipe, self.config.dropout, layer, seed)
        if layer != name:
            base = owner.get_submodule(own_name)
            assert isinstance(base, nn.Linear)
            linear = LoraLinear(base, *options)
            setattr(owner, own_name, linear)
            return linear
        if not isinstance(owner, LoraExperts):
            assert isinstance(owner, Experts)
            above, _, experts_name = owner_name.rpartition(".")
            owner = LoraExperts(owner)
            setattr(model.get_submodule(above), experts_name, owner)
        added = LowRank(owner.get_parameter(own_name), *options).train(owner.training)
        owner.added[own_name] = added
        return added

    def merge(self, model: nn.Module) -> Transformer:
        """A plain Transformer with the additions in its matrices; it shares all other tensors with `model`."""
        assert isinstance(model, Transformer)
        state = plain_state(model)
        state |= {name: layer.merged(state[name]) for name, layer in adapted(model).items()}
        with torch.device("meta"):
            plain = Transformer(model.config)
        plain.load_state_dict(state, assign=True)
        return plain.to(model.head_weight.device).eval()

    def save(self, folder: Path, model: nn.Module) -> None:
        """Write the additions in the layout of PEFT, with the names of the run's model folder."""
        assert isinstance(model, Transformer)
        write_folder(folder, model.config, plain_state(model), adapted(model), self.recipe, self.config.dropout)

    @contextlib.contextmanager
    def reference(self, model: nn.Module) -> Iterator[None]:
        """While it is entered, the model computes as it did after `apply`."""
        layers = list(adapted(model).values())
        before = [layer.enabled for layer in layers]
        try:
            for layer in layers:
                layer.enabled = False
            yield
        finally:
            for layer, enabled in zip(layers, before, strict=True):
                layer.enabled = enabled


def adapted(model: nn.Module) -> dict[str, LowRank]:
    """The additions by the names of the matrices beside which they lie."""
    return {
        name.replace(".added.", ".") + (".weight" if isinstance(layer, LoraLinear) else ""): layer
        for name, layer in model.named_modules()
        if isinstance(layer, LowRank)
    }


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without what was added."""
    return {name: each for name, each in model.state_dict().items() if ".lora_" not in name}

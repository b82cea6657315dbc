"""An adapter as a folder in PEFT's layout: adapter_config.json and adapter_model.safetensors.

Modules have the names of the run's model folder. Of a stack of experts each is a module of its own; where the format
joins several matrices (GPT-2's q, k and v), their A lie above each other and their B on the diagonal of one.

Shapes: I features in, O features out, R rank, E experts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmcli.api import ModelConfig, Stored, Transformer, UserError, stored_names
from mmcli_lora import Recipe
from mmcli_lora.layer import MAGNITUDE, A, B, LowRank, Part

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
UNKNOWN = ("modules_to_save", "trainable_token_indices", "target_parameters", "lora_bias", "megatron_config")


def write_folder(
    folder: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    layers: Mapping[str, LowRank],
    recipe: Recipe,
    dropout: float,
) -> None:
    """Write the additions `layers` to the matrices `weights` of a model of `config`, both by our names."""
    tensors: dict[str, Tensor] = {}
    joined: dict[str, int] = {}  # modules of several matrices, whose rank is a multiple
    places = stored_names(weights, config)
    for stored in (each for each in places if not layers.keys().isdisjoint(each.memory)):
        parts = [layers[name].part() if name in layers else _nothing(weights[name], recipe) for name in stored.memory]
        for module, part in zip(_modules(stored), _to_disk(stored, parts), strict=True):
            tensors |= _named(module, part)
            if len(part.a) != recipe.rank:
                joined[module] = len(part.a)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    everything = [module for stored in places for module in _modules(stored)]
    experts = any(stored.form == "experts" and stored.memory[0] in layers for stored in places)
    rewritten = bool(joined) or experts  # PEFT joins matrices too, and does not know what that does to a root of R
    ranks = dict.fromkeys(_targets(joined, everything), max(joined.values(), default=0))
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": recipe.rank,
        "lora_alpha": recipe.scale * recipe.rank if rewritten else recipe.alpha,
        "use_rslora": recipe.use_rslora and not rewritten,
        "use_dora": recipe.use_dora,
        "lora_dropout": 0.0 if experts else dropout,  # PEFT has none in experts
        "rank_pattern": ranks,
        "alpha_pattern": {target: recipe.scale * rank for target, rank in ranks.items()},
        "target_modules": _targets({_module(name) for name in tensors}, everything),
        "fan_in_fan_out": any(stored.form in ("transposed", "joined") for stored in places),
        "bias": "none",
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def read_folder(folder: Path, model: Transformer) -> tuple[Recipe, dict[str, Part]]:
    """The recipe of an adapter, and its additions by our names of the matrices.

    Raises:
        UserError: there is no such folder, it is damaged, does not fit the model, or holds more than LoRA.
    """
    recipe = _read_recipe(folder / CONFIG)
    try:
        tensors = load_file(folder / WEIGHTS)
    except FileNotFoundError:
        raise UserError(f"there is no {WEIGHTS} in {folder}", "bring it back, or name another adapter") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read ({error})", "restore it from a copy") from None
    weights = model.state_dict()
    parts: dict[str, Part] = {}
    for stored in stored_names(weights, model.config):
        modules = [module for module in _modules(stored) if f"{PREFIX}{module}.{A}.weight" in tensors]
        if not modules:
            continue
        if len(modules) < len(stored.disk):
            what = f"{folder / WEIGHTS} adapts {len(modules)} of {len(stored.disk)} experts of {stored.memory[0]}"
            raise UserError(what, "mmcli adapts all experts or none: name another adapter")
        wanted = [weights[name] for name in stored.memory]
        found = [_take(tensors, module, recipe, folder) for module in modules]
        _check_shapes(stored, modules, found, wanted, recipe, folder)
        parts.update(zip(stored.memory, _to_memory(stored, found, wanted), strict=True))
    parts = {name: part for name, part in parts.items() if part.a.any()}
    if tensors or not parts:
        what = f"{folder / WEIGHTS} holds {next(iter(tensors), 'nothing')}, which has no place in this model"
        raise UserError(what, "name an adapter that was trained on this model, with --from that model")
    return recipe, parts


def _read_recipe(path: Path) -> Recipe:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        recipe = Recipe(
            rank=int(about["r"]),
            alpha=float(about["lora_alpha"]),
            use_rslora=bool(about.get("use_rslora", False)),
            use_dora=bool(about.get("use_dora", False)),
        )
        kind, bias, unknown = about["peft_type"], about.get("bias", "none"), [key for key in UNKNOWN if about.get(key)]
        ranks, alphas = about.get("rank_pattern") or {}, about.get("alpha_pattern") or {}
        even = all(abs(alpha / ranks.get(key, recipe.rank) - recipe.scale) < 1e-9 for key, alpha in alphas.items())
        even = even and ranks.keys() <= alphas.keys()
        valid = recipe.rank > 0 and recipe.alpha > 0
    except FileNotFoundError:
        fix = "give the folder adapter/ of a run: --adapter-set adapter_from=runs/0004-sft/adapter"
        raise UserError(f"there is no {CONFIG} in {path.parent}", fix) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"{path} is damaged ({error!r})", "restore it from a copy") from None
    if kind != "LORA" or bias != "none" or unknown or not even or not valid:
        told = f"peft_type {kind}, bias {bias}" + "".join(f", {key}" for key in unknown)
        told += "" if even else ", alpha_pattern or rank_pattern"
        raise UserError(f"{path} describes more than LoRA with one scale ({told})", "name an adapter without that")
    return recipe


def _take(tensors: dict[str, Tensor], module: str, recipe: Recipe, folder: Path) -> Part:
    """Remove the tensors of a module from `tensors`."""
    names = [f"{module}.{A}.weight", f"{module}.{B}.weight", *([f"{module}.{MAGNITUDE}"] if recipe.use_dora else [])]
    missing = [name for name in names if PREFIX + name not in tensors]
    if missing:
        raise UserError(f"{folder / WEIGHTS} has no {PREFIX}{missing[0]}", "restore it from a copy")
    return Part(*(tensors.pop(PREFIX + name) for name in names))


def _check_shapes(
    stored: Stored, modules: list[str], found: list[Part], wanted: list[Tensor], recipe: Recipe, folder: Path
) -> None:
    rank = recipe.rank * len(wanted)
    features_out, features_in = sum(weight.shape[-2] for weight in wanted), wanted[0].shape[-1]
    for module, part in zip(modules, found, strict=True):
        shapes = [tuple(each.shape) for each in (part.a, part.b, part.magnitude) if each is not None]
        right = [(rank, features_in), (features_out, rank), (features_out,)][: len(shapes)]
        if shapes != right:
            what = f"{folder / WEIGHTS}: {module} has A, B of {shapes}, this model needs {right}"
            raise UserError(what, "name an adapter that was trained on this model, with --from that model")


def _to_disk(stored: Stored, parts: list[Part]) -> list[Part]:
    """The additions to the parameters of `stored` as those of its modules."""
    if stored.form == "experts":
        columns = [parts[0].a.unbind(), parts[0].b.unbind()]
        columns += [] if parts[0].magnitude is None else [parts[0].magnitude.unbind()]
        return [Part(*each) for each in zip(*columns, strict=True)]
    if stored.form == "joined":
        lengths = [part.magnitude for part in parts if part.magnitude is not None]
        b_OR = torch.block_diag(*(part.b for part in parts))
        return [Part(torch.cat([part.a for part in parts]), b_OR, torch.cat(lengths) if lengths else None)]
    return parts


def _to_memory(stored: Stored, found: list[Part], wanted: list[Tensor]) -> list[Part]:
    """The inverse of `_to_disk`."""
    if stored.form == "experts":
        lengths = [part.magnitude for part in found if part.magnitude is not None]
        a_ERI, b_EOR = torch.stack([part.a for part in found]), torch.stack([part.b for part in found])
        return [Part(a_ERI, b_EOR, torch.stack(lengths) if lengths else None)]
    if stored.form == "joined":
        part, sizes = found[0], [weight.shape[0] for weight in wanted]
        each_a = part.a.chunk(len(sizes))
        each_b = [rows.chunk(len(sizes), dim=1)[i] for i, rows in enumerate(part.b.split(sizes))]
        lengths_ = [None] * len(sizes) if part.magnitude is None else list(part.magnitude.split(sizes))
        return [Part(*each) for each in zip(each_a, each_b, lengths_, strict=True)]
    return found


def _nothing(weight_OI: Tensor, recipe: Recipe) -> Part:
    """An addition that changes nothing."""
    features_out, features_in = weight_OI.shape
    length_O = torch.linalg.vector_norm(weight_OI, dim=-1) if recipe.use_dora else None
    return Part(weight_OI.new_zeros(recipe.rank, features_in), weight_OI.new_zeros(features_out, recipe.rank), length_O)


def _named(module: str, part: Part) -> dict[str, Tensor]:
    named: dict[str, Any] = {f"{A}.weight": part.a, f"{B}.weight": part.b, MAGNITUDE: part.magnitude}
    return {
        f"{PREFIX}{module}.{name}": each.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, each in named.items()
        if each is not None
    }


def _modules(stored: Stored) -> list[str]:
    """The modules on disk that hold the parameters of `stored`."""
    return [name.removesuffix(".weight") for name in stored.disk]


def _module(name: str) -> str:
    """The module of a tensor in the file."""
    return name.removeprefix(PREFIX).rpartition(".lora_")[0]


def _targets(chosen: Iterable[str], everything: Iterable[str]) -> list[str]:
    """The shortest ends of names that mean exactly the modules `chosen` among `everything`."""
    chosen = list(chosen)
    among, of_all = (Counter(end for name in names for end in _ends(name)) for names in (chosen, everything))
    return sorted({next(end for end in _ends(name) if among[end] == of_all[end]) for name in chosen})


def _ends(name: str) -> list[str]:
    """`c`, `b.c` and `a.b.c` of `a.b.c`."""
    words = name.split(".")
    return [".".join(words[-count:]) for count in range(1, len(words) + 1)]

"""Rules for keys of `config.json` that do not map to one ModelConfig field each. No torch here."""

from __future__ import annotations

import json
import math
from typing import Any

from mmcli.errors import UserError
from mmcli.model.config import ModelConfig
from mmcli.model.formats.fields import Key, Silent, Source, Values

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new"}  # ours -> Hugging Face, for the ungated FFN
ACTIVATIONS_READ = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": None, "mscale_all_dim": None, "truncate": True}
SHARED_WIDTH = "shared_intermediate_size"
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


class KeyValueHeads(Key):
    """n_kv_heads; absent or null, every query head has its own keys."""

    def __init__(self, key: str) -> None:
        super().__init__("n_kv_heads", key, default=None)

    def read(self, source: Source, values: Values) -> Values:
        return {"n_kv_heads": super().read(source, values)["n_kv_heads"] or values["n_heads"]}


class EqualHeads(Silent):
    """n_kv_heads of a family without grouped queries: n_heads."""

    @property
    def fields(self) -> tuple[str, ...]:
        return ("n_kv_heads",)

    def read(self, source: Any, values: Values) -> Values:
        return {"n_kv_heads": values["n_heads"]}

    def unsupported(self, config: ModelConfig) -> tuple[str, ...]:
        return () if config.n_kv_heads == config.n_heads else ("n_kv_heads",)


class HeadDim(Key):
    """The width of a head, which is None in ModelConfig where it is dim / n_heads."""

    def __init__(self, *, default: int | None = None, divides: bool = False) -> None:
        """`divides`: the family wants n_heads to divide dim even where the width is given."""
        super().__init__("head_dim", default=default, null=None, attribute="d_head")
        self.divides = divides

    def read(self, source: Source, values: Values) -> Values:
        width = super().read(source, values)["head_dim"]
        return {"head_dim": None if width and width * values["n_heads"] == values["dim"] else width}

    def unsupported(self, config: ModelConfig) -> tuple[str, ...]:
        return ("n_heads",) if self.divides and config.dim % config.n_heads else ()


class WholeHeads(Silent):
    """head_dim of a family that has no key for it: dim / n_heads."""

    @property
    def fields(self) -> tuple[str, ...]:
        return ("head_dim",)

    def unsupported(self, config: ModelConfig) -> tuple[str, ...]:
        return () if config.d_head * config.n_heads == config.dim else ("head_dim",)


class ExpertWidth(Silent):
    """minimind-3's width of an expert, apart from that of a dense FFN."""

    def read(self, source: Source, values: Values) -> Values:
        raw = source.document.get("moe_intermediate_size")
        if not values["use_moe"] or raw is None:
            return {}
        return {"hidden_dim": source.convert(raw, "hidden_dim", "moe_intermediate_size")}


class SharedExperts(Key):
    """A count of shared experts; null is none."""

    def __init__(self, *, default: int) -> None:
        super().__init__("n_shared_experts", default=default, null=0, attribute="n_shared")


class SharedWidth(Silent):
    """Shared experts as one FFN of their joined width; 0 is none."""

    @property
    def fields(self) -> tuple[str, ...]:
        return ("n_shared_experts",)

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {SHARED_WIDTH: config.n_shared * config.ffn_dim}

    def read(self, source: Source, values: Values) -> Values:
        width, each = source.document.get(SHARED_WIDTH, 0), values["hidden_dim"]
        if not isinstance(width, int) or not each or width % each:
            raise source.unsupported(SHARED_WIDTH, width, f"a multiple of the width of an expert, {each}")
        return {"n_shared_experts": width // each}


class AttentionMultiplier(Silent):
    """Granite's factor of the attention scores, which is d^-1/2 in every model of ours."""

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {"attention_multiplier": config.d_head**-0.5}

    def read(self, source: Source, values: Values) -> Values:
        found = source.number(source.document.get("attention_multiplier", 1.0), "attention_multiplier")
        usual = (values["dim"] // values["n_heads"]) ** -0.5
        if not math.isclose(found, usual, rel_tol=1e-6):
            raise source.unsupported("attention_multiplier", found, f"attention_multiplier = {usual}")
        return {}


class TopkNorm(Key):
    """norm_topk_prob of MiniMind2, whose code does not renormalise a single expert's weight."""

    def __init__(self) -> None:
        super().__init__("norm_topk_prob", default=True)

    def read(self, source: Source, values: Values) -> Values:
        several = values["num_experts_per_tok"] != 1
        return {"norm_topk_prob": super().read(source, values)["norm_topk_prob"] and several}

    def unsupported(self, config: ModelConfig) -> tuple[str, ...]:
        single = config.use_moe and config.num_experts_per_tok == 1 and config.norm_topk_prob
        return ("norm_topk_prob",) if single else ()


class Dropouts(Silent):
    """dropout, where a family has keys for all three places of it; read as 0 where they differ."""

    def __init__(self, *keys: str, default: float) -> None:
        self.keys, self.default = keys, default

    @property
    def fields(self) -> tuple[str, ...]:
        return ("dropout",)

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return dict.fromkeys(self.keys, config.dropout)

    def read(self, source: Source, values: Values) -> Values:
        first, *others = (source.document.get(key, self.default) for key in self.keys)
        return {"dropout": first if all(other == first for other in others) else 0.0}


class Activation(Silent):
    """mlp of a family with an ungated FFN."""

    def __init__(self, key: str) -> None:
        self.key = key

    @property
    def fields(self) -> tuple[str, ...]:
        return ("mlp",)

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {self.key: ACTIVATIONS[config.mlp]}

    def read(self, source: Source, values: Values) -> Values:
        found = source.document.get(self.key, "gelu_new")
        if not isinstance(found, str) or found not in ACTIVATIONS_READ:
            raise source.unsupported(self.key, found, " or ".join(ACTIVATIONS_READ))
        return {"mlp": ACTIVATIONS_READ[found]}

    def unsupported(self, config: ModelConfig) -> tuple[str, ...]:
        return () if config.mlp in ACTIVATIONS else ("mlp",)


class SwitchedWindow(Silent):
    """Qwen3's sliding window: on by a switch, and in `qwen3` only in layers from `max_window_layers` on."""

    def __init__(self, *, by_layer: bool) -> None:
        self.by_layer = by_layer

    @property
    def fields(self) -> tuple[str, ...]:
        return ("sliding_window",)

    def write(self, config: ModelConfig) -> dict[str, Any]:
        on = config.sliding_window is not None
        first = {"max_window_layers": 0 if on else config.n_layers} if self.by_layer else {}
        return {"use_sliding_window": on, "sliding_window": config.sliding_window, **first}

    def read(self, source: Source, values: Values) -> Values:
        document, n_layers = source.document, values["n_layers"]
        if not document.get("use_sliding_window", False):
            return {"sliding_window": None}
        if document.get("layer_types"):
            full = document["layer_types"][0] == "full_attention"
        else:
            raw = document.get("max_window_layers", 28)
            first = source.number(raw, "max_window_layers") if self.by_layer else 0
            full = first >= n_layers
            if 0 < first < n_layers:
                raise source.unsupported("max_window_layers", first, "the same attention in every layer")
        return {"sliding_window": None if full else document.get("sliding_window", 4096)}


class Rope(Silent):
    """Rotary settings, in both forms: `rope_parameters` (transformers 5), `rope_theta` + `rope_scaling` (older)."""

    def __init__(self, theta: float = 10000.0, *, partial: float | None = None, scaled: bool = True) -> None:
        """Rotary settings of a family.

        Args:
            theta: its base where none is given.
            partial: the share of a head that is rotated where none is given; None: it has no key for that.
            scaled: False: `rope_theta` alone is written.
        """
        self.theta, self.partial, self.scaled = theta, partial, scaled

    @property
    def fields(self) -> tuple[str, ...]:
        own = ("rope_theta", "rope_scaling", "rope_factor", "rope_original_seq_len")
        return own if self.partial is None else (*own, "rotary_fraction")

    def write(self, config: ModelConfig) -> dict[str, Any]:
        if config.position != "rope":
            return {}
        if not self.scaled:
            return {"rope_theta": config.rope_theta}
        partial = {} if self.partial is None else {"partial_rotary_factor": config.rotary_fraction}
        scaling: dict[str, Any] | None = None
        if config.rope_scaling != "none":
            scaling = {"rope_type": config.rope_scaling, "factor": config.rope_factor}
        if config.rope_scaling in ("yarn", "llama3"):
            scaling = {**(scaling or {}), "original_max_position_embeddings": config.original_seq_len}
        if config.rope_scaling == "llama3":
            scaling = {**(scaling or {}), **LLAMA3}
        parameters = {"rope_theta": config.rope_theta, **(scaling or {"rope_type": "default"}), **partial}
        return {"rope_theta": config.rope_theta, "rope_scaling": scaling, "rope_parameters": parameters, **partial}

    def unsupported(self, config: ModelConfig) -> tuple[str, ...]:
        return () if self.scaled or config.rope_scaling == "none" else ("rope_scaling",)

    def read(self, source: Source, values: Values) -> Values:
        parameters = _tables(source)
        top = source.document.get("rope_theta")
        theta = parameters.get("rope_theta", self.theta if top is None else top)
        if top is not None and top != theta:
            what = f"{source.path}: rope_theta = {top}, but its rope_parameters give {theta}"
            raise UserError(what, "make the two agree, or delete one")
        fraction = parameters.get("partial_rotary_factor", source.document.get("partial_rotary_factor"))
        found: Values = {"rope_theta": theta}
        if self.partial is not None:
            found["rotary_fraction"] = self.partial if fraction is None else fraction
        elif fraction not in (None, 1.0):
            family = source.document.get("model_type")
            raise source.unsupported("partial_rotary_factor", fraction, f"1.0 in a model_type {family}")
        return {**found, **_read_scaling(source, parameters, values["max_seq_len"])}


def _tables(source: Source) -> dict[str, Any]:
    """The entries of both tables of rotary settings."""
    parameters: dict[str, Any] = {}
    for name in ("rope_parameters", "rope_scaling"):
        table = source.document.get(name) or {}
        if not isinstance(table, dict):
            what = f"{source.path}: {name} = {json.dumps(table)} is not a table"
            raise UserError(what, f"restore {name}, or delete it")
        parameters |= table
    if any(isinstance(value, dict) for value in parameters.values()):
        raise source.unsupported("rope_parameters", parameters, "the same rotary settings in every layer")
    return parameters


def _read_scaling(source: Source, parameters: dict[str, Any], max_seq_len: int) -> Values:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return {}
    if kind not in ("linear", "yarn", "llama3"):
        raise source.unsupported("rope_type", kind, 'rope_type "default", "linear", "yarn" or "llama3"')
    factor = source.number(parameters.get("factor"), "rope_scaling.factor")
    if factor < 1:
        raise source.unsupported("rope_scaling.factor", factor, "a factor of 1 or more")
    values: Values = {"rope_scaling": kind, "rope_factor": factor}
    if kind != "linear":
        fixed = LLAMA3 if kind == "llama3" else {**YARN, "attention_factor": 0.1 * math.log(factor) + 1.0}
        _check_fixed(source, parameters, fixed)
        given = parameters.get("original_max_position_embeddings") or max_seq_len
        length = int(source.number(given, "original_max_position_embeddings"))
        values["rope_original_seq_len"] = None if length == int(max_seq_len / factor) else length
    return values


def _check_fixed(source: Source, parameters: dict[str, Any], fixed: dict[str, Any]) -> None:
    """Refuse a rotary parameter with another value than the one that mmcli computes with."""
    for name, value in fixed.items():
        found = parameters.get(name)
        if found is not None and (value is None or not math.isclose(source.number(found, name), value, rel_tol=1e-6)):
            raise source.unsupported(f"rope_scaling.{name}", found, f"{name} = {json.dumps(value)}")

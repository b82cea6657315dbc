"""Configuration of the training data: sources, tokenizer, sequence length, held-out set."""

from __future__ import annotations

from dataclasses import dataclass

from mmcli.config import ConfigError, option


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Data sources, held-out set, tokenizer and sequence length."""

    sources: tuple[str, ...] = option(
        ("demo",),
        "files, folders, globs, hf:OWNER/NAME or demo (built in), with :WEIGHT or :START..END; repeatable",
        flag="--data",
    )
    columns: tuple[str, ...] | None = option(None, "rename columns, such as text=body; repeatable", flag="--columns")
    val: tuple[str, ...] | None = option(None, "validation files; default: held out from --data", flag="--val")
    val_fraction: float = option(0.01, "fraction of the documents held out when there is no --val")
    val_tokens: int = option(65536, "maximum tokens of the held-out set per evaluation")
    tokenizer: str | None = option(
        None,
        "tokenizer: run, folder or file; default: the latest, or one trained on --data",
        flag="--tokenizer",
    )
    seq_len: int = option(512, "sequence length in tokens", flag="--seq-len")
    strict: bool = option(False, "stop at the first invalid record instead of skipping it", flag="--strict")

    def __post_init__(self) -> None:
        if self.seq_len < 2:
            raise ConfigError("seq_len", f"data.seq_len = {self.seq_len} is below 2", "give 2 or more, such as 512")
        if not 0.0 <= self.val_fraction <= 0.5:
            what = f"data.val_fraction = {self.val_fraction} is not in 0 to 0.5"
            raise ConfigError("val_fraction", what, "give a fraction such as 0.01")
        if not self.sources:
            raise ConfigError("sources", "data.sources is empty", "name a file, a folder, or demo")

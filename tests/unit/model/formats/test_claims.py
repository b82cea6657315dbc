"""Model files that claim more than they hold: refused before anything of that size is made."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mmcli.errors import UserError
from mmcli.model.cache import KVCache
from mmcli.model.config import MOST, ModelConfig
from mmcli.model.formats.gguf_bounds import check_counts
from mmcli.model.formats.hf_config import to_hf_config
from mmcli.model.formats.hf_folder import load_model
from mmcli.model.formats.read import read_model
from mmcli.model.formats.weights import read_index, read_pickled

SMALL = ModelConfig(dim=8, n_layers=2, n_heads=2, n_kv_heads=1, hidden_dim=8, vocab_size=32)


@pytest.mark.parametrize("name", MOST)
def test_sizes_beyond_every_model_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"model\.{name} = .* is above"):
        ModelConfig(**{name: MOST[name] + 1})


def folder_of(tmp_path: Path, **changes: Any) -> Path:
    config = to_hf_config(SMALL, bos_id=None, eos_id=None, pad_id=None)
    del config["mmcli"]
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    save_file({"model.embed_tokens.weight": torch.zeros(20_000, 8)}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_hidden_layers": 1_000_000}, r"n_layers = 1,000,000 is above"),
        ({"num_hidden_layers": 300}, "holds 1 tensors, and describes 300 layers"),
        ({"vocab_size": 4_000_000, "num_hidden_layers": 1}, "the model that it describes"),
        ({"intermediate_size": 2**19, "num_hidden_layers": 1}, "the model that it describes"),
    ],
)
def test_a_config_that_claims_more_than_the_weights_hold(tmp_path: Path, changes: dict[str, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_model(folder_of(tmp_path, **changes))


def test_a_context_beyond_the_memory_is_refused_before_it_is_made() -> None:
    with pytest.raises(UserError, match="more than all memory"):
        KVCache(ModelConfig(dim=512, max_seq_len=2**27))


def test_a_tensor_that_claims_more_than_its_storage(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(1).expand(100_000, 1_000_000)}, path)
    with pytest.raises(UserError, match=r"a claims .* and holds fewer"):
        read_pickled(path, [path])


def test_a_pth_that_unpacks_to_far_more_than_its_size(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(UserError, match="more than 4 times its size"):
        read_pickled(path, [path])


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


def test_the_refusal_of_an_evil_pth_does_not_quote_the_advice_to_trust_it(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"a": Evil()}, path)
    with pytest.raises(UserError, match="holds more than tensors") as caught:
        read_pickled(path, [path])
    assert "system" in caught.value.what
    assert "weights_only" not in str(caught.value) and "option" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "{}", "[" * 100_000, '{"weight_map": []}', '{"weight_map": {"a": 1}}', "3"])
def test_an_index_that_is_none(tmp_path: Path, content: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(UserError, match="is not an index of weights"):
        read_index(index)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/../../b", "..\\x"])
def test_an_index_stays_inside_its_folder(tmp_path: Path, name: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="outside its folder"):
        read_index(index)


def gguf(tensors: int, fields: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + rest


KEY = struct.pack("<Q", 1) + b"k"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (gguf(2**34, 0), "17,179,869,184 tensors"),
        (gguf(0, 2**34), "17,179,869,184 fields"),
        (gguf(0, 1, KEY + struct.pack("<IIQ", 9, 4, 2**34)), "17,179,869,184 items"),
        (gguf(0, 1, KEY + struct.pack("<IIQ", 9, 8, 2**34)), "17,179,869,184 items"),
        (gguf(0, 1, KEY + struct.pack("<IQ", 8, 2**62)), "past its end"),
        (gguf(0, 1, KEY + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9 + b"\0" * 99), "a value of type 9"),
        (gguf(1, 0, KEY + struct.pack("<I", 2**31) + b"\0" * 99), "2,147,483,648 dimensions"),
        (b"GGUF", "past its end"),
    ],
)
def test_a_gguf_whose_counts_go_beyond_its_end(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        check_counts(path)


def test_a_pipe_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.gguf")
    with pytest.raises(UserError, match="is a pipe or a device"):
        read_model(tmp_path / "a.gguf")

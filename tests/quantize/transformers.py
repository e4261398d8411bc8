"""Small transformers over images: patches become tokens; random weights of a trained net's size."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

Mask = Literal["", "infinite", "filled", "finite", "thousands", "integers", "attention"]


class Block(nn.Module):
    """Pre-norm attention and MLP, written out; ``mask`` says how later tokens are hidden."""

    def __init__(self, width: int, heads: int, mask: Mask = "") -> None:
        super().__init__()
        self.heads, self.mask = heads, mask
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.proj(self.attention(self.qkv(self.norm1(x))))
        mlp: torch.Tensor = self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return x + mlp

    def attention(self, qkv: torch.Tensor) -> torch.Tensor:
        n, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        q, k, v = qkv.reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.mask == "attention":
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = self.hide(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5)
            mixed = scores.softmax(-1) @ v
        return mixed.transpose(1, 2).reshape(n, tokens, width)

    def hide(self, scores: torch.Tensor) -> torch.Tensor:
        tokens = scores.shape[-1]
        later = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        if self.mask == "infinite":
            return scores + torch.full((tokens, tokens), float("-inf")).triu(1)
        if self.mask == "filled":
            return scores.masked_fill(later, float("-inf"))
        if self.mask == "finite":
            return scores + later * torch.finfo(torch.float32).min
        if self.mask == "thousands":
            return scores + (1.0 - later.logical_not().float()) * -10000.0
        if self.mask == "integers":
            return scores.masked_fill(later, -10000)
        return scores


class SmallVit(nn.Module):
    """16 patches of 8 x 8 pixels and a class token through ``depth`` blocks, then logits."""

    def __init__(self, depth: int = 4, width: int = 64, mask: Mask = "") -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, stride=8)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.zeros(1, 17, width))
        self.blocks = nn.Sequential(*(Block(width, 4, mask) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first, tokens], 1) + self.places
        logits: torch.Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return logits


def vit(depth: int = 4, mask: Mask = "") -> SmallVit:
    """In eval mode; some channels are several times as large as others, as in trained ones."""
    torch.manual_seed(0)
    module = SmallVit(depth, mask=mask).eval()
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=part.in_features**-0.5)
            nn.init.normal_(part.bias, std=0.1)
        if isinstance(part, nn.LayerNorm):
            part.weight.data = torch.exp(0.3 * torch.randn_like(part.weight))
            nn.init.normal_(part.bias, std=0.2)
    nn.init.normal_(module.first, std=0.5)
    nn.init.normal_(module.places, std=0.5)
    return module.requires_grad_(False)

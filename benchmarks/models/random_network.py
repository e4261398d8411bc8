"""Small networks of random structure: what real ones are made of, in orders nobody thought of.

Every value between the stem and the head has the shape (1, 8, 16, 16), and any later operator may
read it, so that values have several readers of different kinds. Input (1, 3, 32, 32) float32;
output (1, 6).
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

CHANNELS, SIDE = 8, 16
INPUT = (1, 3, 2 * SIDE, 2 * SIDE)
#: Operators per network.
_FEWEST, _MOST = 4, 9
#: Of the latest values, how many an operator chooses from.
_NEAR = 4


class Of(nn.Module):
    """A function of one or two values, with layers of its own."""

    def __init__(self, function: Callable[..., torch.Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        return self.function(*values, *self.layers)

    def extra_repr(self) -> str:
        """Which function it is, so that a network can be read when it is printed."""
        code = getattr(self.function, "__code__", None)
        return self.function.__name__ + (f" of line {code.co_firstlineno}" if code else "")


def conv(kernel: int, groups: int = 1, dilation: int = 1, inputs: int = CHANNELS) -> nn.Conv2d:
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(inputs, CHANNELS, kernel, padding=padding, groups=groups, dilation=dilation)


def _batch_norm() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(CHANNELS)
    nn.init.uniform_(norm.weight, 0.5, 3)
    nn.init.uniform_(norm.bias, -1, 1)
    assert norm.running_mean is not None and norm.running_var is not None
    nn.init.uniform_(norm.running_mean, -0.5, 0.5)
    nn.init.uniform_(norm.running_var, 0.2, 2)
    return norm


def _squeeze_excite(x: torch.Tensor, less: nn.Module, more: nn.Module) -> torch.Tensor:
    return x * torch.sigmoid(more(F.relu(less(F.adaptive_avg_pool2d(x, 1)))))


def _attend(x: torch.Tensor, project: nn.Module, out: nn.Module) -> torch.Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    query, key, value = project(tokens).chunk(3, -1)
    mixed: torch.Tensor = out(F.scaled_dot_product_attention(query, key, value))
    return x + mixed.transpose(1, 2).reshape(x.shape)


def _attend_to_earlier(x: torch.Tensor, project: nn.Module, out: nn.Module) -> torch.Tensor:
    tokens = F.avg_pool2d(x, 4).flatten(2).transpose(1, 2)
    query, key, value = project(tokens).chunk(3, -1)
    later = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
    scores = (query @ key.transpose(1, 2) * CHANNELS**-0.5).masked_fill(later, -10000)
    mixed = out(scores.softmax(-1) @ value).transpose(1, 2).reshape(1, CHANNELS, SIDE // 4, -1)
    return x + F.interpolate(mixed, scale_factor=4)


def _faded(x: torch.Tensor, layer: nn.Conv2d) -> torch.Tensor:
    """A convolution some of whose channels are only a bias."""
    kept = (torch.arange(CHANNELS) % 3 > 0).float().view(-1, 1, 1, 1)
    return F.conv2d(x, layer.weight * kept, layer.bias)


def _rows(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    found: torch.Tensor = layer(x.flatten(2)).view(x.shape)
    return found


class Product(nn.Module):
    """A product with a constant matrix on the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(CHANNELS, CHANNELS) * CHANNELS**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.matrix


def _last_axis(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    found: torch.Tensor = layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return found


def _shuffle(x: torch.Tensor) -> torch.Tensor:
    return x.view(1, 2, CHANNELS // 2, SIDE, SIDE).transpose(1, 2).reshape(x.shape)


def _swap(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, 1)
    return torch.cat([F.relu(second), first], 1)


OF_ONE: tuple[Callable[[], nn.Module], ...] = (
    lambda: conv(3),
    lambda: conv(1),
    lambda: conv(3, groups=CHANNELS),
    lambda: conv(3, groups=4),
    lambda: conv(3, dilation=2),
    _batch_norm,
    lambda: nn.GroupNorm(2, CHANNELS),
    lambda: nn.InstanceNorm2d(CHANNELS),
    lambda: Of(_last_axis, nn.LayerNorm(CHANNELS)),
    lambda: Of(_last_axis, nn.RMSNorm(CHANNELS, eps=1e-3)),
    lambda: Of(_last_axis, nn.Linear(CHANNELS, CHANNELS)),
    lambda: Of(_last_axis, Product()),
    lambda: Of(_faded, conv(1)),
    lambda: Of(_rows, nn.Conv1d(CHANNELS, CHANNELS, 5, padding=2)),
    nn.ReLU,
    nn.ReLU6,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.SiLU,
    nn.GELU,
    nn.Mish,
    nn.Softplus,
    nn.ELU,
    nn.Tanh,
    nn.LeakyReLU,
    lambda: nn.PReLU(CHANNELS),
    lambda: nn.Softmax(1),
    lambda: Of(_squeeze_excite, conv(1), conv(1)),
    lambda: Of(_attend, nn.Linear(CHANNELS, 3 * CHANNELS), nn.Linear(CHANNELS, CHANNELS)),
    lambda: Of(_attend_to_earlier, nn.Linear(CHANNELS, 24), nn.Linear(CHANNELS, CHANNELS)),
    nn.Hardtanh,
    nn.LogSigmoid,
    lambda: Of(lambda x: F.glu(torch.cat([x, x.flip(1)], 1), 1)),
    lambda: Of(lambda x: x.amax(1, keepdim=True) - x),
    lambda: Of(lambda x: x / (x.std((2, 3), keepdim=True) + 0.1)),
    lambda: Of(lambda x: torch.log1p(x.abs())),
    lambda: Of(torch.sin),
    lambda: Of(lambda x: x.clamp(-1, 2)),
    lambda: Of(lambda x: x + 3),
    lambda: Of(lambda x: 1 - x),
    lambda: Of(lambda x: x * -0.5),
    lambda: Of(lambda x: 1 / (x.abs() + 1)),
    lambda: Of(lambda x: (x.relu() + 1).sqrt()),
    lambda: Of(lambda x: torch.exp(-x.abs())),
    lambda: Of(lambda x: x**2),
    lambda: Of(lambda x: torch.where(x > 0, x, x * 0.1)),
    lambda: Of(lambda x: x * F.adaptive_avg_pool2d(x, 1)),
    lambda: Of(lambda x: x - x.mean((2, 3), keepdim=True)),
    lambda: Of(lambda x: x + 0.1 * x.sum(1, keepdim=True)),
    lambda: Of(lambda x: F.normalize(x, dim=1)),
    lambda: Of(lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-2)),
    lambda: Of(lambda x: F.interpolate(F.max_pool2d(x, 2), scale_factor=2)),
    lambda: Of(lambda x: F.interpolate(F.avg_pool2d(x, 3, 2, 1), scale_factor=2, mode="bilinear")),
    lambda: Of(lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1)),
    lambda: Of(lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1)),
    lambda: Of(
        lambda x, layer: layer(F.max_pool2d(x, 2)), nn.ConvTranspose2d(CHANNELS, CHANNELS, 2, 2)
    ),
    lambda: Of(
        lambda x, layer: F.relu6(layer(F.max_pool2d(x, 2))),
        nn.ConvTranspose2d(CHANNELS, CHANNELS, 2, 2, groups=2),
    ),
    lambda: Of(
        lambda x, layer: layer(F.pad(x, (1, 1, 1, 1), value=4.0)), nn.Conv2d(CHANNELS, CHANNELS, 3)
    ),
    lambda: Of(
        lambda x, layer: F.pixel_shuffle(layer(x), 2)[:, :, :SIDE, SIDE:],
        nn.Conv2d(CHANNELS, 4 * CHANNELS, 1),
    ),
    lambda: Of(_shuffle),
    lambda: Of(_swap),
    lambda: Of(lambda x: x.flip(-1)),
    lambda: Of(lambda x: x.roll((1, 2), (2, 3))),
    lambda: Of(lambda x: x.transpose(2, 3)),
    lambda: Of(lambda x: torch.stack([x, x.flip(1)], 2).mean(2)),
)
OF_TWO: tuple[Callable[[], nn.Module], ...] = (
    lambda: Of(lambda x, y: x + y),
    lambda: Of(lambda x, y: x - 0.5 * y),
    lambda: Of(lambda x, y: x * y),
    lambda: Of(lambda x, y: x / (y.abs() + 1)),
    lambda: Of(torch.maximum),
    lambda: Of(lambda x, y, layer: layer(torch.cat([x, y], 1)), conv(1, inputs=2 * CHANNELS)),
)


class RandomNetwork(nn.Module):
    """The network of a seed, in eval mode."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        chance = random.Random(seed)
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, CHANNELS, 3, 2, 1)
        self.operators, self.operands = nn.ModuleList(), list[tuple[int, ...]]()
        for number in range(1, 1 + chance.randint(_FEWEST, _MOST)):
            near = range(max(0, number - _NEAR), number)
            if chance.random() < 0.2:
                self.operators.append(chance.choice(OF_TWO)())
                self.operands.append((chance.choice(near), chance.choice(near)))
            else:
                self.operators.append(chance.choice(OF_ONE)())
                self.operands.append((chance.choice(near),))
        read = {index for operands in self.operands for index in operands}
        #: What no operator reads goes to the head.
        self.ends = [i for i in range(len(self.operators) + 1) if i not in read]
        self.head = nn.Linear(CHANNELS * len(self.ends), 6)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(module.weight)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = [self.stem(x)]
        for operator, operands in zip(self.operators, self.operands, strict=True):
            values.append(operator(*(values[index] for index in operands)))
        means = [values[index].mean((2, 3)) for index in self.ends]
        scores: torch.Tensor = self.head(torch.cat(means, 1))
        return scores

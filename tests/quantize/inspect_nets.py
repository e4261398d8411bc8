"""Small networks whose multiply-accumulates are counted by hand, and their inputs."""

from __future__ import annotations

import torch
from torch import nn

# conv 3->8, 3x3, stride 2, on 32x32: 8*16*16 outputs of 3*3*3 taps each;
# depthwise 8, 3x3: 8*16*16 outputs of 9 taps; linear 8 -> 10.
CONV_MACS = 8 * 16 * 16 * 27
DEPTHWISE_MACS = 8 * 16 * 16 * 9
LINEAR_MACS = 8 * 10
NET_MACS = CONV_MACS + DEPTHWISE_MACS + LINEAR_MACS

# grouped conv 4->6, 2 groups, 3x3, padded, on 8x8: 6*8*8 outputs of 2*9 taps;
# transposed conv 6->5, 2x2, stride 2: 6*8*8 inputs with 5*4 taps each;
# product of (16x80) and (80x16).
PRODUCTS_MACS = 6 * 8 * 8 * 18 + 6 * 8 * 8 * 20 + 16 * 16 * 80


class Net(nn.Module):
    """Convolution, batch norm, ReLU6, depthwise, linear; ``outside`` adds a cumulative sum."""

    def __init__(self, outside: bool = False) -> None:
        super().__init__()
        self.outside = outside
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.act = nn.ReLU6()
        self.linear = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm1(self.conv(x)))
        x = self.act(self.norm2(self.depthwise(x)))
        if self.outside:
            x = torch.cumsum(x, dim=-1) * 0.1
        x = torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)
        return self.linear(x)  # type: ignore[no-any-return]


class Products(nn.Module):
    """Grouped and transposed convolutions and a product of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(6, 5, 2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(self.grouped(x))
        x = x.reshape(1, 80, 16)
        return torch.bmm(x.transpose(1, 2), x)


def net(outside: bool = False) -> Net:
    torch.manual_seed(0)
    made = Net(outside).eval()
    for norm in (made.norm1, made.norm2):
        # Otherwise both fold to a bias of zeros, which exporters store once.
        nn.init.uniform_(norm.bias)
    return made


def products() -> Products:
    torch.manual_seed(0)
    return Products().eval()


def net_input() -> tuple[torch.Tensor]:
    return (torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)),)


def products_input() -> tuple[torch.Tensor]:
    return (torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)),)

"""torchvision architectures with random weights: what they cost, and how well they quantize.

Input (1, 3, 224, 224) float32, about -1..1; logits. As they are made, such networks are no fair
test: batch norm lets the activations fade from layer to layer, ConvNeXt multiplies its blocks by
1e-6 and the vision transformer's head is zero. Here the batch norms have the statistics of their
inputs on calibration photos, and the others weights of a trained network's size. Photos of more
contrast and negatives are among them: else EfficientNet-B0 gives some photos that it has not seen
scores of a hundred times the usual size, which says nothing about INT8.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.models.cached import weights

if TYPE_CHECKING:
    import torch
    from torch import nn

SEED = 0
PHOTOS = 16
_CONTRAST = 3.0
_LAYER_SCALE = 0.3


def mobilenet_v2() -> nn.Module:
    return _settled("mobilenet_v2")


def resnet18() -> nn.Module:
    return _settled("resnet18")


def regnet_y_400mf() -> nn.Module:
    return _settled("regnet_y_400mf")


def efficientnet_b0() -> nn.Module:
    return _settled("efficientnet_b0")


def convnext_tiny() -> nn.Module:
    return _settled("convnext_tiny")


def vit_4_layers() -> nn.Module:
    """A vision transformer of 4 layers, 3 heads and 192 channels with patches of 16x16."""
    return _settled("vit_4_layers")


def example_inputs() -> tuple[torch.Tensor, ...]:
    import torch

    return (torch.zeros(1, 3, 224, 224),)


def varied(images: torch.Tensor) -> torch.Tensor:
    """Images of -1..1 as they are, with more contrast, and as negatives."""
    import torch

    return torch.cat([images, (images * _CONTRAST).clamp(-1, 1), -images])


def settle(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """Give the batch norms the statistics that their inputs have on ``images``."""
    import torch
    from torch import nn

    model.eval()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [module.momentum for module in norms]
    # Alone in training mode: dropout and stochastic depth stay off.
    for module in norms:
        module.train()
        module.reset_running_stats()
        module.momentum = None  # the mean over all images
    with torch.no_grad():
        model(images)
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
    return model.eval()


def network(name: str) -> nn.Module:
    """An architecture as torchvision makes it, with seeded weights of a trained network's size."""
    import torch
    from torch import nn
    from torchvision import models

    torch.manual_seed(SEED)
    model: nn.Module = models.get_model(name, weights=None)
    for key, parameter in model.named_parameters():
        if key.endswith("layer_scale"):
            nn.init.constant_(parameter, _LAYER_SCALE)
    for module in model.modules():
        # The vision transformer's head: whatever comes before it, nothing would be left.
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
    return model.eval()


def _settled(name: str) -> nn.Module:
    import torch

    from benchmarks.quality.sets import photos

    def make() -> nn.Module:
        images = torch.from_numpy(photos("calib", PHOTOS)["input"])
        return settle(_network(name), varied(images))

    model = _network(name)
    model.load_state_dict(weights(name, Path(__file__), make))
    return model.eval()


def _network(name: str) -> nn.Module:
    if name != "vit_4_layers":
        return network(name)
    import torch
    from torch import nn
    from torchvision import models

    torch.manual_seed(SEED)
    model: nn.Module = models.VisionTransformer(224, 16, 4, 3, 192, 768)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
    return model

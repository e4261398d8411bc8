"""YOLO11n and YOLOv5nu by Ultralytics, as an optional package: its code is under the AGPL.

Random weights: only the structure and its latency can be judged. Input (1, 3, 320, 320) float32 in
0..1; output (1, 84, 2100), of which rows 0..3 are boxes in pixels and the others class scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.models.cached import weights
from benchmarks.models.untrained import PHOTOS, SEED, settle, varied

if TYPE_CHECKING:
    import torch
    from torch import nn

SIZE = 320
BOXES = 4


def yolo11n() -> nn.Module:
    return _detector("yolo11n")


def yolo11n_boxes() -> nn.Module:
    return _part("yolo11n", 0, BOXES)


def yolo11n_scores() -> nn.Module:
    return _part("yolo11n", BOXES, None)


def yolov5nu() -> nn.Module:
    return _detector("yolov5nu")


def yolov5nu_boxes() -> nn.Module:
    return _part("yolov5nu", 0, BOXES)


def yolov5nu_scores() -> nn.Module:
    return _part("yolov5nu", BOXES, None)


def example_inputs() -> tuple[torch.Tensor, ...]:
    import torch

    return (torch.zeros(1, 3, SIZE, SIZE),)


def _detector(name: str) -> nn.Module:
    import torch

    from benchmarks.quality.sets import photos_at_320

    def make() -> nn.Module:
        images = torch.from_numpy(photos_at_320("calib", PHOTOS)["input"])
        return settle(_network(name), (varied(2 * images - 1) + 1) / 2)

    model = _network(name)
    model.load_state_dict(weights(name, Path(__file__), make))
    return _exported(model)


def _part(name: str, start: int, stop: int | None) -> nn.Module:
    from torch import nn

    class Part(nn.Module):
        """Rows ``start``..``stop`` of the detector's output."""

        def __init__(self) -> None:
            super().__init__()
            self.detector = _detector(name)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.detector(images)[:, start:stop]
            return found

    return Part().eval()


def _network(name: str) -> nn.Module:
    import torch
    from ultralytics import YOLO

    torch.manual_seed(SEED)
    model: nn.Module = YOLO(f"{name}.yaml").model
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


def _exported(model: Any) -> nn.Module:
    """The network as Ultralytics exports it: batch norms folded, one decoded output."""
    import torch

    fused: Any = model.fuse(verbose=False).eval()
    head = fused.model[-1]
    head.export, head.format = True, "onnx"
    with torch.no_grad():
        # The first run sets the anchors of this input size.
        fused(*example_inputs())
    exported: nn.Module = fused
    return exported

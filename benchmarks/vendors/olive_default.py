"""Olive: its static quantization pass for ONNX Runtime with every setting at its default.

After microsoft.github.io/Olive, "ONNX" under "Quantization". Needs the package olive-ai.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import onnxruntime
import torch
from torch.utils.data import Dataset

from benchmarks.vendors.inputs import Inputs, read_inputs

# Before the import: it would report to its maker.
os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"

import olive
from olive.data.registry import Registry


class Samples(Dataset[tuple[dict[str, torch.Tensor], torch.Tensor]]):
    """Batches of one by the names of the model's inputs, with the label that Olive expects."""

    def __init__(self, model: str, samples: list[tuple[torch.Tensor, ...]]) -> None:
        names = [given.name for given in onnxruntime.InferenceSession(model).get_inputs()]
        self._batches = [dict(zip(names, sample, strict=True)) for sample in samples]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        return self._batches[index], torch.zeros(1)


def main(given: Inputs) -> None:
    float_file = str(given.out / "fp32.onnx")
    torch.onnx.export(given.model, given.example, float_file, dynamo=True, external_data=False)

    dataset = Samples(float_file, given.tensors())
    Registry.register_dataset("samples")(lambda **_: dataset)
    olive.run(
        {
            "input_model": {"type": "OnnxModel", "model_path": float_file},
            "data_configs": [
                {
                    "name": "calibration",
                    "load_dataset_config": {"type": "samples"},
                    "pre_process_data_config": {"type": "skip_pre_process"},
                    "dataloader_config": {"type": "no_auto_batch_dataloader"},
                }
            ],
            "passes": {
                "quantize": {"type": "OnnxStaticQuantization", "data_config": "calibration"}
            },
            "cache_dir": str(given.out / "cache"),
            "output_dir": str(given.out / "olive"),
        }
    )
    (made,) = Path(given.out / "olive").rglob("*.onnx")
    shutil.copy(made, given.out / "int8.onnx")


if __name__ == "__main__":
    main(read_inputs())

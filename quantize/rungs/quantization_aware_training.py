"""A short quantization-aware training: weights and biases learn to give the float model's outputs.

The quantized network is simulated with straight-through gradients ("Estimating or Propagating
Gradients Through Stochastic Neurons", Bengio et al., 2013) and taught by the float program
(distillation), so no labels are needed. Ranges stay those of the calibration. Only done where the
user gives training samples.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import fx

from edgekit.quantize import graph
from edgekit.quantize.prepare import flatten
from edgekit.quantize.rungs.base import Sample, Work
from edgekit.quantize.simulate import Grid, weight_scales

_STEPS = 300
#: Exported programs have their batch size built in, so gradients of single samples are summed up.
_SAMPLES_PER_STEP = 4
#: As a share of each tensor's own mean magnitude: layers differ by orders of magnitude. The second
#: is for networks that the first one leads astray, as it does where depthwise layers are many.
_RATES = (5e-4, 1e-4)


def apply(work: Work) -> str:
    """Change the weights and biases of ``work.program``."""
    samples = work.training()
    if not samples or not _learnable(work, samples[0]):
        return ""
    untrained, before = work.constants(), work.judge(work).sqnr_db
    for rate in _RATES:
        work.install(untrained)
        train(
            work.program,
            work.reference,
            samples,
            work.grids,
            float_nodes=work.float_nodes,
            rate=rate,
        )
        if work.judge(work).sqnr_db > before:
            break
    return f"{_STEPS} steps on {len(samples)} samples"


def _learnable(work: Work, sample: Sample) -> bool:
    """Whether there is a weight to learn, and an output that changes with it."""
    names = [name for x in graph.layers(work.program) for name in (x.weight, x.bias) if name]
    held = {name: graph.attribute(work.program, name).clone() for name in names}
    learned = {name: value.requires_grad_(True) for name, value in held.items()}
    outputs = flatten(_Student(work.program, {}, learned, {}).run(*sample))
    return any(value.requires_grad for value in outputs)


def train(
    gm: fx.GraphModule,
    reference: fx.GraphModule,
    samples: list[Sample],
    grids: Mapping[str, Grid],
    *,
    float_nodes: Collection[str] = (),
    rate: float = _RATES[0],
    steps: int = _STEPS,
) -> None:
    """Train ``gm`` in place to give the outputs of ``reference``.

    Args:
        gm: the program that will be exported.
        reference: the float program, the same graph.
        samples: training inputs.
        grids: activation grids by node name.
        float_nodes: layers of these names keep float weights.
        rate: of learning, as a share of each tensor's mean magnitude.
        steps: of the optimiser, each over :data:`_SAMPLES_PER_STEP` samples.
    """
    axes = {x.weight: x.channel_axis for x in graph.layers(gm) if x.name not in float_nodes}
    names = {name for x in graph.layers(gm) for name in (x.weight, x.bias) if name}
    learned = {
        name: graph.attribute(gm, name).clone().requires_grad_(True) for name in sorted(names)
    }
    groups = [
        {"params": [value], "lr": rate * max(float(value.detach().abs().mean()), 1e-6)}
        for value in learned.values()
    ]
    optimiser = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    student = _Student(gm, grids, learned, axes)
    order = random.Random(0)
    for _ in range(steps):
        optimiser.zero_grad()
        for sample in order.choices(samples, k=_SAMPLES_PER_STEP):
            with torch.no_grad():
                wanted = flatten(reference(*sample))
            loss = _distance(wanted, flatten(student.run(*sample))) / _SAMPLES_PER_STEP
            loss.backward()
        optimiser.step()
        schedule.step()
    for name, value in learned.items():
        graph.set_attribute(gm, name, value)


class _Student(fx.Interpreter):
    """The quantized network, with gradients."""

    def __init__(
        self,
        gm: fx.GraphModule,
        grids: Mapping[str, Grid],
        learned: Mapping[str, torch.Tensor],
        axes: Mapping[str, int],
    ) -> None:
        super().__init__(gm)
        self._grids, self._learned, self._axes = grids, learned, axes

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "get_attr" and str(n.target) in self._learned:
            value = self._learned[str(n.target)]
            axis = self._axes.get(str(n.target))
            return value if axis is None else _rounded_weight(value, axis)
        value = super().run_node(n)
        grid = self._grids.get(n.name)
        if grid is None or not isinstance(value, torch.Tensor):
            return value
        low = (grid.least - grid.zero_point) * grid.scale
        high = (grid.most - grid.zero_point) * grid.scale
        clipped = value.clamp(low, high)
        return clipped + (grid.round(value.detach()) - clipped).detach()


def _rounded_weight(weight: torch.Tensor, axis: int) -> torch.Tensor:
    scales = weight_scales(weight.detach(), axis)
    rounded = (weight.detach() / scales).round().clamp(-127, 127) * scales
    return weight + (rounded - weight).detach()


def _distance(wanted: tuple[torch.Tensor, ...], given: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Squared error as a share of the power, summed over the outputs that have a gradient.

    Where the float model gives infinity, as masked scores are, there is nothing to learn.
    """
    total = torch.zeros(())
    for a, b in zip(wanted, given, strict=True):
        if b.requires_grad:
            finite = a.isfinite()
            a, b = a.where(finite, 0.0), b.where(finite, 0.0)
            total = total + (a - b).square().mean() / a.square().mean().clamp_min(1e-12)
    return total

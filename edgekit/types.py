"""The data that the parts of edgekit exchange: frozen dataclasses, units in their names.

Everything here can be written as JSON and read back (see :mod:`edgekit.codec`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Precision = Literal["fp32", "int8"]
FpsMode = Literal["burst", "sustained"]
Metric = Literal["top1", "agreement", "cosine", "relative_error"]

RangeKind = Literal["", "minmax", "percentile", "histogram", "mse"]

#: Element sizes of the dtypes that tensors may have.
BYTES_PER_ELEMENT: Mapping[str, int] = {
    "float32": 4,
    "float16": 2,
    "int64": 8,
    "int32": 4,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model, batch dimension included.

    ``layout`` is ``"NCHW"``, ``"NHWC"`` or empty; ``scale`` and ``zero_point`` are set only where
    the tensor itself is an integer one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str = ""
    scale: float | None = None
    zero_point: int | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * BYTES_PER_ELEMENT[self.dtype]


@dataclass(frozen=True, slots=True)
class Preprocess:
    """From an image file to a model input: resize, crop, ``(pixel * scale - mean) / std``.

    ``resize`` is the target length in pixels of the shorter side (``resize_mode="shorter"``) or of
    both sides (``"stretch"``); None leaves the image as it is. ``crop`` is (height, width) of a
    centre crop. ``mean`` and ``std`` have one entry per channel and apply after ``scale``.
    """

    resize: int | None = None
    resize_mode: Literal["shorter", "stretch"] = "shorter"
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    antialias: bool = True
    crop: tuple[int, int] | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    color: Literal["RGB", "BGR", "L"] = "RGB"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The float model that all artifacts of a bundle come from."""

    name: str
    source: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: Preprocess | None
    weights_sha256: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an artifact was quantized. Names decode as in ``static_wi8_ai8``.

    ``scheme`` says when activations are quantized: never (``"float"``, ``"weight_only"``), at run
    time (``"dynamic"``) or with the calibrated ``ranges`` (``"static"``); ``activations`` is their
    dtype in between. ``steps`` are the rungs of the repair ladder that were kept, in the order in
    which they were applied. ``rewrites`` changed the program before calibration, and
    ``float_nodes`` names nodes of it that stay float; ``variant`` is what the two are called.
    """

    name: str
    precision: Precision
    steps: tuple[str, ...] = ()
    ranges: RangeKind = ""
    per_channel: bool = True
    scheme: Literal["float", "static", "dynamic", "weight_only"] = "float"
    activations: Literal["float32", "int8", "int16"] = "float32"
    variant: str = ""
    rewrites: tuple[str, ...] = ()
    float_nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RungResult:
    """One rung of the repair ladder, judged by simulation on the evaluation set.

    ``sqnr_db`` is that of the worst output, ``drop`` that of the set's metric; both with all rungs
    that were kept so far and this one. ``added_ns`` estimates what it costs per inference on the
    host that made it; 0 where the program that runs is the same.
    """

    rung: str
    kept: bool
    sqnr_db: float
    drop: float
    seconds: float
    added_ns: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class OpCount:
    """An operator and how often it occurs."""

    op: str
    count: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a finished artifact really contains, found by opening it.

    ``int8_mac_share`` and ``delegated_share`` are fractions (0..1) of the multiply-accumulates of
    convolutions and matrix products: with int8 weights and activations, and inside the runtime's
    accelerated delegate. None where the format does not let them be counted, or where the runtime
    has no delegate. ``dynamic_mac_share`` is the part of ``int8_mac_share`` whose activations are
    quantized at run time only; ``int8_weight_mac_share`` counts all that have int8 weights, with
    float or int16 activations too. ``uncounted_ops`` name operators that multiply but are in no
    share, because their multiply-accumulates are not known. ``outside_ops`` are the operators
    outside the delegate or, in an INT8 artifact for a runtime without one, those that still compute
    in float.
    """

    int8_mac_share: float | None
    delegated_share: float | None
    dynamic_mac_share: float | None = None
    int8_weight_mac_share: float | None = None
    outside_ops: tuple[OpCount, ...] = ()
    transposes: int = 0
    macs: int | None = None
    quantize_ops: int = 0
    weight_bytes: int = 0
    notes: tuple[str, ...] = ()
    uncounted_ops: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file that a runtime can load. ``path`` is relative to the bundle, with ``/``."""

    id: str
    runtime: str
    precision: Precision
    path: str
    sha256: str
    size_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    recipe: Recipe
    calibration_id: str
    tool_versions: Mapping[str, str]
    inspection: Inspection | None


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A raw little-endian, C-contiguous tensor file of a bundle; ``shape[0]`` counts samples."""

    name: str
    path: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class Golden:
    """Golden vectors: real inputs, and what the float model and each artifact gave on the host.

    The samples are the first ``n`` of the evaluation set ``set_id``. Tensors stack them along a new
    first axis: (n, *shape of the model's tensor with batch 1). ``labels``: int64, (n,), or None.
    """

    n: int
    set_id: str
    metric: Metric
    inputs: tuple[RawTensor, ...]
    outputs: tuple[RawTensor, ...]
    artifact_outputs: Mapping[str, tuple[RawTensor, ...]]
    labels: RawTensor | None = None


@dataclass(frozen=True, slots=True)
class OutputQuality:
    """How close one output tensor is to the float PyTorch model's, over all samples."""

    output: str
    sqnr_db: float
    max_abs_err: float


@dataclass(frozen=True, slots=True)
class EvalResult:
    """One artifact on one evaluation set, measured on the host (a preview; the device decides).

    ``drop`` is that of the worst output: of the first by the evaluation's metric, of the others
    against float (:func:`edgekit.quality.output_drops`).
    """

    artifact_id: str
    drop: float
    top1_agreement: float | None
    outputs: tuple[OutputQuality, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results on one set. Role ``choose`` feeds decisions; ``report`` is looked at at the end."""

    role: Literal["choose", "report"]
    set_id: str
    n: int
    metric: Metric
    float_value: float | None
    results: tuple[EvalResult, ...]


@dataclass(frozen=True, slots=True)
class RawFile:
    """A file of a bundle; ``path`` is relative to the bundle, with forward slashes."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """``manifest.json`` of a bundle.

    ``files`` are those that are neither artifacts nor tensors: ``recipe.json`` and, where the
    classes have names, ``labels.txt``. With them every file of a bundle has its hash here.
    """

    schema: int
    model: ModelSpec
    artifacts: tuple[Artifact, ...]
    golden: Golden
    evals: tuple[Evaluation, ...]
    files: tuple[RawFile, ...] = ()


@dataclass(frozen=True, slots=True)
class CandidateFailure:
    """A candidate that could not be made or could not be run, and why."""

    candidate: str
    runtime: str
    stage: Literal["export", "inspect", "evaluate", "probe"]
    kind: str
    message: str
    remedy: str = ""
    log_tail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RecipeLog:
    """``recipe.json`` of a bundle: how each artifact was made, and what could not be made.

    ``recipes`` and ``ladders`` map artifact ids to recipes and to the rungs that were tried.
    """

    schema: int
    recipes: Mapping[str, Recipe]
    failures: tuple[CandidateFailure, ...] = ()
    ladders: Mapping[str, tuple[RungResult, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Target:
    """A device to deploy to. Never holds a secret.

    ``options`` are the transport's own settings; ``workdir`` is the root on the device.
    """

    name: str
    transport: str
    address: str
    workdir: str = "~/.edgekit"
    profile: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What a device said about itself. Fields that it could not tell are None or empty."""

    model: str
    arch: str
    os: str
    kernel: str
    libc: str
    python: str
    cpu_features: tuple[str, ...]
    cpu_count: int
    governor: str
    freq_khz: tuple[int, ...]
    temp_c: float | None
    throttled: int | None
    mem_total_bytes: int
    disk_free_bytes: int
    emulated: bool
    soc: str = ""


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """One measurement: this artifact, with so many threads, ``processes`` times in a fresh process.

    ``budget_s`` bounds the timed loop of each process. ``fps_mode`` says what its frame rate is:
    see :func:`edgekit.stats.frame_rate`.
    """

    artifact_id: str
    artifact_sha256: str
    threads: int
    processes: int
    budget_s: float
    mode: Literal["latency"] = "latency"
    fps_mode: FpsMode = "burst"


@dataclass(frozen=True, slots=True)
class GoldenCheck:
    """One output tensor of the golden replay on the device, over all golden samples.

    ``drop`` is this output's own; None in results of earlier versions.
    """

    output: str
    sqnr_db_float: float
    max_abs_err_float: float
    sqnr_db_host: float
    max_abs_err_host: float
    drop: float | None = None


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one measurement gave. Times in nanoseconds, raw, one entry (or list) per process.

    ``drop`` is that of the worst output over the golden samples, from the device's own outputs.
    """

    schema: int
    request: ProbeRequest
    target: str
    status: Literal["ok", "failed"]
    error: CandidateFailure | None
    facts_before: DeviceFacts
    facts_after: DeviceFacts
    load_ns: tuple[int, ...]
    first_ns: tuple[int, ...]
    latency_ns: tuple[tuple[int, ...], ...]
    peak_rss_bytes: tuple[int, ...]
    golden: tuple[GoldenCheck, ...]
    golden_n: int
    top1_agreement: float | None
    drop: float | None
    runner_version: str
    runtime_version: str
    started_utc: str


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval; the unit is in the field that holds it.

    ``confidence`` is 0, and ``low`` and ``high`` are ``value``, where the interval is unknown.
    """

    value: float
    low: float
    high: float
    confidence: float = 0.95


@dataclass(frozen=True, slots=True)
class Budget:
    """What a candidate must keep. ``max_drop`` is absolute (0.01 = one point)."""

    max_drop: float
    max_size_bytes: int | None = None
    max_rss_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One artifact at one thread count, judged; ``reason`` says why it was not chosen.

    ``fps`` are frames per second; None where nothing was timed, or emulated.
    """

    artifact_id: str
    runtime: str
    precision: Precision
    threads: int
    p50_ns: Interval | None
    p90_ns: Interval | None
    drop: float | None
    size_bytes: int
    peak_rss_bytes: int | None
    emulated: bool
    eligible: bool
    reason: str
    fps: float | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """The verdict. ``chosen`` and ``tie_set`` index ``candidates``; ``rule`` says it in words."""

    chosen: int | None
    tie_set: tuple[int, ...]
    budget: Budget
    objective: Literal["p50", "p90"]
    candidates: tuple[Candidate, ...]
    rule: str


@dataclass(frozen=True, slots=True)
class Activation:
    """What is active on a device for one model; rollback returns to release ``previous``."""

    model: str
    release: str
    artifact_id: str
    runtime: str
    threads: int
    previous: str | None
    activated_utc: str

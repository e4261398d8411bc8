"""What is on a device: artifacts and runtimes pushed, releases made, activated and taken back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.bundle import Bundle
from edgekit.errors import DeviceError
from edgekit.progress import Progress
from edgekit.targets.answer import Answer
from edgekit.targets.channel import AgentRefused, Channel
from edgekit.targets.runtimes import Runtime
from edgekit.types import Activation, Artifact, RawTensor

#: Uploaded files are committed when so many bytes wait: what a cut can lose stays small.
COMMIT_BYTES = 8 * 2**20
RESERVE_BYTES = 16 * 2**20

_DEPLOY_INSTEAD = (
    "Deploy the bundle of that release instead: what is damaged is sent anew. "
    "`edgekit status --verify` names all of it."
)


@dataclass(frozen=True, slots=True)
class Blob:
    """A file that the device's store shall hold; an archive takes more once it is unpacked."""

    path: Path
    sha256: str
    size_bytes: int
    unpacked_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PushReport:
    """What a push sent and what the device had already; of a file that an earlier push had sent in
    part, only the rest counts as sent."""

    sent_bytes: int
    sent_blobs: int
    present_blobs: int


def bundle_blobs(bundle: Bundle, artifacts: Iterable[Artifact]) -> list[Blob]:
    """The artifacts' files and the golden vectors that a device needs to check them."""
    blobs = [Blob(bundle.file(a.path), a.sha256, a.size_bytes) for a in artifacts]
    return blobs + [tensor_blob(bundle, tensor) for tensor in bundle.manifest.golden.inputs]


def runtime_blobs(runtime: Runtime) -> list[Blob]:
    files = [Blob(file.path, file.sha256, file.path.stat().st_size) for file in runtime.files]
    return files + [
        Blob(one.path, one.sha256, one.path.stat().st_size, one.unpacked_bytes)
        for one in runtime.archives
    ]


def tensor_blob(bundle: Bundle, tensor: RawTensor) -> Blob:
    path = bundle.file(tensor.path)
    return Blob(path, tensor.sha256, path.stat().st_size)


def push(channel: Channel, blobs: Sequence[Blob], *, progress: Progress) -> PushReport:
    """Brings into the store what it lacks; nothing is sent twice, a cut one is resumed. The device
    hashes what it has, and what is damaged is replaced.

    Args:
        channel: with the lock held.
        blobs: what the store shall hold.
        progress: advances by bytes.

    Raises:
        AgentRefused: kind ``hash`` (arrived damaged), ``space`` or ``lost``.
        DeviceError: there is not enough space.
        LinkLost: the connection broke; what was committed stays.
    """
    wanted = {blob.sha256: blob for blob in blobs}
    asked = [{"sha256": b.sha256, "size": b.size_bytes} for b in wanted.values()]
    answer = channel.call("missing", blobs=asked, timeout_s=1800)
    told = set(answer.items_of("missing", str))
    missing = [blob for sha256, blob in wanted.items() if sha256 in told]
    parts = answer.object_of("parts")
    there = {blob.sha256: _resumable(blob, parts) for blob in missing}
    total = sum(blob.size_bytes - there[blob.sha256] for blob in missing)
    free = answer.number("free_bytes")
    taken = total + sum(blob.unpacked_bytes for blob in missing)
    if missing and taken + RESERVE_BYTES > free:
        raise DeviceError(
            f"{channel.name}: {taken / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB are free.",
            remedy="Remove what is not needed with `edgekit gc`, or free space there.",
        )
    if missing:
        with progress.stage(f"push to {channel.name}", total) as stage:
            waiting: list[Blob] = []
            for blob in missing:
                channel.transport.put(
                    blob.path,
                    f"{channel.incoming}/{blob.sha256}",
                    stage.advance,
                    keep=there[blob.sha256],
                )
                waiting.append(blob)
                if sum(b.size_bytes for b in waiting) >= COMMIT_BYTES:
                    _commit(channel, waiting)
                    waiting = []
            _commit(channel, waiting)
    return PushReport(total, len(missing), len(wanted) - len(missing))


def _resumable(blob: Blob, parts: Answer) -> int:
    """How many bytes of a file the device holds already: none, unless they are those of ours. After
    a power cut a file may have any content, whatever its size."""
    if blob.sha256 not in parts:
        return 0
    part = parts.object_of(blob.sha256)
    size = part.number("size")
    if not 0 < size <= blob.size_bytes:
        return 0
    return size if _prefix_sha256(blob.path, size) == part.text("sha256") else 0


def _prefix_sha256(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while size > 0 and (chunk := file.read(min(size, 1 << 20))):
            digest.update(chunk)
            size -= len(chunk)
    return digest.hexdigest()


def _commit(channel: Channel, blobs: Sequence[Blob]) -> None:
    if blobs:
        channel.call("commit", blobs=[blob.sha256 for blob in blobs], timeout_s=1800)


def place_runtime(channel: Channel, runtime: Runtime) -> None:
    """Assembles a runtime out of blobs that are in the store, and mends it where it is damaged."""
    channel.call(
        "runtime",
        name=runtime.folder,
        description=runtime.description,
        timeout_s=1800,
    )


def release_blobs(bundle: Bundle, artifact: Artifact) -> dict[str, Blob]:
    """What a release links to, by path: enough for an app to run and check the artifact."""
    golden = bundle.manifest.golden
    tensors = [*golden.inputs, *golden.outputs, *golden.artifact_outputs.get(artifact.id, ())]
    if golden.labels is not None:
        tensors.append(golden.labels)
    blobs = {tensor.path: tensor_blob(bundle, tensor) for tensor in tensors}
    for file in bundle.manifest.files:
        blobs[file.path] = Blob(bundle.file(file.path), file.sha256, file.size_bytes)
    blobs[artifact.path] = Blob(bundle.file(artifact.path), artifact.sha256, artifact.size_bytes)
    manifest = bundle.file("manifest.json")
    blobs["manifest.json"] = Blob(manifest, bundle.digest, manifest.stat().st_size)
    return blobs


def make_release(channel: Channel, bundle: Bundle, blobs: Mapping[str, Blob]) -> str:
    """Writes the release of a bundle's manifest; returns its id."""
    links = {path: blob.sha256 for path, blob in blobs.items()}
    answer = channel.call(
        "release", model=bundle.manifest.model.name, manifest=bundle.digest, links=links
    )
    return answer.text("release")


def switch(
    channel: Channel, bundle: Bundle, release: str, artifact: Artifact, threads: int, runtime: str
) -> tuple[Activation, bool]:
    """Makes the release current; returns what is active, and whether that is a change."""
    choice = {
        "release": release,
        "artifact_id": artifact.id,
        "path": artifact.path,
        "runtime": artifact.runtime,
        "runtime_dir": runtime,
        "threads": threads,
    }
    answer = channel.call("activate", model=bundle.manifest.model.name, active=choice)
    active = read_activation(answer.object_of("active"), channel.name)
    return active, answer.get("changed") is True


def rollback(channel: Channel, model: str) -> Activation:
    """Activates what was active before, once the device has hashed all that it needs.

    Raises:
        AgentRefused: kind ``nothing``: there is nothing to return to.
        DeviceError: that is damaged; what is active stays active.
    """
    try:
        answer = channel.call("rollback", model=model, timeout_s=1800)
    except AgentRefused as refused:
        if refused.kind != "damaged":
            raise
        raise DeviceError(refused.message, remedy=_DEPLOY_INSTEAD) from refused
    return read_activation(answer.object_of("active"), channel.name)


def read_activation(found: dict[str, Any], name: str) -> Activation:
    """An ``active.json`` of the device as an Activation."""
    active = Answer(found, name)
    return Activation(
        model=active.text("model"),
        release=active.text("release"),
        artifact_id=active.text("artifact_id"),
        runtime=active.text("runtime"),
        threads=active.number("threads"),
        previous=None if active.get("previous") is None else active.text("previous"),
        activated_utc=active.text("activated_utc"),
    )

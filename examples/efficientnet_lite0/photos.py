"""Makes the photo sets of this example: 224x224 PNG crops of real photos; no network but apt.

    photos/calib    54 crops of 9 photos    activation ranges come from here
    photos/choose   36 crops of 9 photos    decisions are taken on these
    photos/test    210 crops of 15 photos   looked at once, at the end

No photo is in two sets. The first two come with scikit-image and scikit-learn, the third is two
Debian packages of wallpapers under free licences (fetched with apt-get, unpacked without root).
Every source is checked against its SHA-256. A set that is there and whole is left alone.
"""

from __future__ import annotations

import importlib.util
import io
import json
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from edgekit.files import sha256_file, staged_dir, write_atomic

PHOTOS = Path(__file__).resolve().parent / "photos"
SIZE = 224
SCALE = (0.45, 1.0)  # side of a random crop, relative to the photo's shorter side
DRAWN = ("Fossa", "Infinite-Sea", "Painting-Colors", "umang")  # wallpapers that are no photos
CENTRE_RESIZE = 256  # the first crop of a photo is the usual 224 of 256 from its centre


@dataclass(frozen=True)
class PhotoSet:
    """``crops`` per photo; the first is the centre, the others are random ones of ``seed``."""

    name: str
    seed: int
    crops: int


SETS = (
    PhotoSet("calib", 1, crops=6),
    PhotoSet("choose", 2, crops=4),
    PhotoSet("test", 3, crops=14),
)


class Unavailable(Exception):
    """A source cannot be had on this machine; the message says why."""


def main() -> int:
    for photo_set in SETS:
        if is_current(photo_set):
            continue
        try:
            count = make(photo_set)
        except Unavailable as e:
            print(f"photos/{photo_set.name}: left out. {e}", file=sys.stderr)
        except ValueError as e:
            print(f"photos/{photo_set.name}: {e}", file=sys.stderr)
            return 1
        else:
            print(f"photos/{photo_set.name}: {count} crops")
    return 0


def is_current(photo_set: PhotoSet) -> bool:
    """Whether the set was made by these settings and every file is still as it was made."""
    try:
        record = json.loads(_record(photo_set).read_text(encoding="utf-8"))
        found = {p.name: sha256_file(p) for p in (PHOTOS / photo_set.name).iterdir()}
    except (OSError, ValueError):
        return False
    return bool(record == {"settings": _settings(photo_set), "files": found})


def make(photo_set: PhotoSet) -> int:
    """Writes the set's folder and then its record; returns the number of crops.

    Raises:
        Unavailable: a Debian package cannot be had here.
        ValueError: a source is not the file that the set was defined with.
    """
    rng = random.Random(photo_set.seed)
    with staged_dir(PHOTOS / photo_set.name) as folder:
        for source, sha256 in sources(photo_set).items():
            for name, content in read(source, sha256):
                photo = Image.open(io.BytesIO(content)).convert("RGB")
                for i in range(photo_set.crops):
                    crop = centre_crop(photo) if i == 0 else random_crop(photo, rng)
                    crop.save(folder / f"{Path(name).stem}-{i:02}.png")
        files = {p.name: sha256_file(p) for p in folder.iterdir()}
    record = {"settings": _settings(photo_set), "files": files}
    write_atomic(_record(photo_set), json.dumps(record, indent=1, sort_keys=True))
    return len(files)


def sources(photo_set: PhotoSet) -> dict[str, str]:
    """Source -> SHA-256, in the order of sources.txt."""
    lines = (Path(__file__).with_name("sources.txt")).read_text(encoding="utf-8").splitlines()
    rows = (line.split() for line in lines if not line.startswith("#"))
    return {source: sha256 for name, sha256, source in rows if name == photo_set.name}


def read(source: str, sha256: str) -> Iterator[tuple[str, bytes]]:
    """The photos of one source, as (file name, content)."""
    if "=" in source:
        yield from debian_photos(download(source, sha256))
        return
    package = source.split("/")[0]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f"the Python package {package} is not installed; run `make venv`.")
    path = Path(spec.origin).parent.parent / source
    if sha256_file(path) != sha256:
        raise ValueError(f"{path} is not the photo that this set is made of.")
    yield source, path.read_bytes()


def centre_crop(photo: Image.Image) -> Image.Image:
    scale = CENTRE_RESIZE / min(photo.size)
    width, height = round(photo.width * scale), round(photo.height * scale)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    resized = photo.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + SIZE, top + SIZE))


def random_crop(photo: Image.Image, rng: random.Random) -> Image.Image:
    side = int(min(photo.size) * rng.uniform(*SCALE))
    left, top = rng.randint(0, photo.width - side), rng.randint(0, photo.height - side)
    box = (left, top, left + side, top + side)
    crop = photo.crop(box).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def debian_photos(deb: Path) -> Iterator[tuple[str, bytes]]:
    """The photos in a Debian package, as (file name, content), sorted by name."""
    files = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(files)) as tar:
        pictures = (m for m in tar if m.isfile() and m.name.endswith(".jpg"))
        for member in sorted(pictures, key=lambda m: m.name):
            if Path(member.name).name.startswith(DRAWN):
                continue
            content = tar.extractfile(member)
            assert content is not None  # a regular file has content
            yield member.name, content.read()


def download(source: str, sha256: str) -> Path:
    """The .deb of ``name=version``, from the cache or by ``apt-get download``; needs no root.

    The machine's own package lists may be absent or old, and refreshing them needs root, so the
    second try uses private ones.
    """
    cache = PHOTOS / ".cache"
    name, _, version = source.partition("=")
    deb = cache / f"{name}_{version}_all.deb"
    if deb.exists() and sha256_file(deb) == sha256:
        return deb
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Unavailable(f"Its photos are Debian packages, and there is no {tool} here.")
    deb.unlink(missing_ok=True)
    (cache / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    private = ["-o", f"Dir::State::Lists={cache / 'lists'}", "-o", f"Dir::Cache={cache}"]
    print(f"photos/test: fetching the Debian package {source}", flush=True)
    for options in ([], private):
        if options:
            subprocess.run(["apt-get", *options, "update"], capture_output=True, check=False)
        command = ["apt-get", *options, "download", source]
        done = subprocess.run(command, cwd=cache, capture_output=True, text=True, check=False)
        if deb.exists():
            break
    else:
        reason = " ".join(done.stderr.split())[-300:]
        raise Unavailable(f"apt-get cannot download {source}: {reason}")
    if sha256_file(deb) != sha256:
        deb.unlink()
        raise ValueError(f"apt-get brought another {source} than the one this set is made of.")
    return deb


def _record(photo_set: PhotoSet) -> Path:
    return PHOTOS / f"{photo_set.name}.json"


def _settings(photo_set: PhotoSet) -> dict[str, object]:
    return {
        **asdict(photo_set),
        "sources": sources(photo_set),
        "drawn": list(DRAWN),
        "size": SIZE,
        "scale": list(SCALE),
        "centre_resize": CENTRE_RESIZE,
    }


if __name__ == "__main__":
    raise SystemExit(main())

"""(f) Batches made by workers against batches made in the step, of images that take their time to decode.

From the repository's root: ``python -m experiments.benchmarks.loading [--steps 30] [--repeats 3]``. CIFAR-10's images
are written to a folder as large JPEG files first, so that decoding and resizing one takes milliseconds.
"""

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from pyarrow import parquet

from experiments.benchmarks.measuring import run_times

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "cifar10"
WORKERS = (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pixels", type=int, default=900, help="height and width of the files' images")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for part, number in (("train", 200), ("test", 100)):
            write(Path(folder) / part, part, number, arguments.pixels)
        seconds = seconds_per_item(Path(folder) / "train")
        print(f"an image of {arguments.pixels} x {arguments.pixels} pixels: {1000 * seconds:.1f} ms of CPU")
        rates: dict[int, list[float]] = {workers: [] for workers in WORKERS}
        for _ in range(arguments.repeats):
            for workers in WORKERS:
                rates[workers].append(rate(Path(folder), workers, arguments.steps))
        for workers, found in rates.items():
            own = statistics.median(a / b for a, b in zip(found, rates[0], strict=True))
            print(f"{workers} workers: {statistics.median(found):.2f} steps/s, {own:.2f} of those without")


def write(folder: Path, part: str, number: int, pixels: int) -> None:
    """Write some of CIFAR-10's images as large JPEG files, one folder a class."""
    table = parquet.read_table(DATA / f"{part}.parquet").slice(0, number)
    columns = (table.column(name).to_pylist() for name in ("img", "label"))
    for place, (image, label) in enumerate(zip(*columns, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        large = Image.open(io.BytesIO(image["bytes"])).convert("RGB").resize((pixels, pixels))
        large.save(folder / str(label) / f"{place}.jpg", quality=95)


def seconds_per_item(folder: Path) -> float:
    """Return the CPU time of one item."""
    from ray_pcasgd.tasks.vision import ImageFolder

    samples = ImageFolder(train=folder, test=folder, size=64, in_memory=False).load().train
    began = time.process_time()
    samples.take(range(20))
    return (time.process_time() - began) / 20


def rate(folder: Path, workers: int, steps: int) -> float:
    """Return one agent's steps a second, without its first ones."""
    data = {"name": "image-folder", "train": str(folder / "train"), "test": str(folder / "test"), "in_memory": False}
    task = {"data": data, "model": {"name": "small-cnn", "channels": [16, 32]}, "loading": {"workers": workers}}
    settings = {"num_agents": 1, "algorithm": "d-psgd", "links": [], "batch_size": 16, "num_steps": steps}
    (times,) = run_times(task=task, engine={"name": "local"}, **settings)
    return (len(times) - 7) / (times[-2] - times[5])


if __name__ == "__main__":
    main()

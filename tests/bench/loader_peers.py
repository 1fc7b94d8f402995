"""Samples per second of our loader beside MosaicML Streaming with Pillow, from the same images.
Part of `make bench-loader`.

    loader_peers.py PROGRAM COORDINATOR [--resolution PIXELS] [--references N] [--rounds N]

PROGRAM is the built `model/examples/bench_loader.rs`, COORDINATOR the built coordinator, which
imports the images. A sample is a target and N references of the same character and outfit, each
read from disk, decoded from JPEG and resized (triangle filter) to a padded square.

- Ours does what a rank does: it also decodes the masks, crops faces or clothes, and chooses all
  random numbers. Its threads are one for each CPU.
- The peer is a StreamingDataset of uncompressed MDS shards whose `__getitem__` reads the references
  by index, and the DataLoader of PyTorch with one worker process for each CPU. It only resizes
  whole images, and reads no masks, so it does less.

Both sides take turns, so that changes of the machine's speed affect both, and neither finds an
image in a cache of decoded images; files are in the page cache. Prints the rates of each round, and
a line that begins with BENCH with medians and their ratio.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types

# Parts of the packages that are not used here, and that would need many others.
for unused in ("streaming.text", "streaming.vision", "streaming.multimodal", "transformers"):
    sys.modules[unused] = types.ModuleType(unused)
for module, name in (
    ("feature_extraction_utils", "BatchFeature"),
    ("tokenization_utils_base", "BatchEncoding"),
):
    unused = types.ModuleType(f"transformers.{module}")
    setattr(unused, name, dict)
    sys.modules[unused.__name__] = unused

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from streaming import MDSWriter, StreamingDataset  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

# A typical image of an image board after its download: 0.7 megapixels, JPEG of quality 90.
WIDTH, HEIGHT, QUALITY = 704, 1024, 90
IDENTITIES, IMAGES = 16, 8
BATCH = 16
# Of one round.
SAMPLES = 384
CPUS = len(os.sched_getaffinity(0))


def image(seed):
    """An image and its mask. Flat areas, soft shading, lines and some grain, as in drawn art."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    pixels = np.empty((HEIGHT, WIDTH, 3), np.float32)
    pixels[:] = rng.uniform(60, 220, 3)
    for _ in range(30):
        cx, cy = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)
        rx, ry = rng.uniform(10, WIDTH / 4), rng.uniform(10, HEIGHT / 4)
        box = np.s_[
            max(0, int(cy - ry)) : int(cy + ry) + 1, max(0, int(cx - rx)) : int(cx + rx) + 1
        ]
        inside = ((x[box] - cx) / rx) ** 2 + ((y[box] - cy) / ry) ** 2 < 1
        wave = np.sin(x[box][inside] / rng.uniform(3, 60))[:, None] * 12
        pixels[box][inside] = rng.uniform(0, 255, 3) + wave
    pixels += rng.normal(0, 3, pixels.shape)
    figure = ((x / WIDTH - 0.5) / 0.3) ** 2 + ((y / HEIGHT - 0.55) / 0.45) ** 2 < 1
    jpeg, mask = io.BytesIO(), io.BytesIO()
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    picture.save(jpeg, "JPEG", quality=QUALITY)
    Image.fromarray((figure * 255).astype(np.uint8)).save(mask, "PNG")
    return jpeg.getvalue(), mask.getvalue()


def write(folder):
    """The images as a folder that our coordinator imports, and as MDS shards."""
    source, shards = os.path.join(folder, "source"), os.path.join(folder, "shards")
    os.mkdir(source)
    columns = {"image": "bytes", "identity": "int"}
    lines = open(os.path.join(source, "samples.jsonl"), "w")
    with lines, MDSWriter(out=shards, columns=columns) as writer:
        for identity in range(IDENTITIES):
            ids = [f"{identity}-{n}" for n in range(IMAGES)]
            for n, name in enumerate(ids):
                jpeg, mask = image(identity * IMAGES + n)
                with open(f"{source}/{name}.jpg", "wb") as file:
                    file.write(jpeg)
                with open(f"{source}/{name}.png", "wb") as file:
                    file.write(mask)
                row = {
                    "id": name,
                    "character": f"character {identity}",
                    "artists": "bench",
                    "outfit": "one",
                    "prompts": "1girl, solo",
                    "bbox": [0.5, 0.25, 0.25, 0.2],
                    "image": f"{name}.jpg",
                    "mask": f"{name}.png",
                    "similar": [it for it in ids if it != name],
                }
                lines.write(json.dumps(row) + "\n")
                writer.write({"image": jpeg, "identity": identity})
    return source, shards


def square(jpeg, side, colour):
    """Decodes an image and fits it into a square, as our loader does."""
    picture = Image.open(io.BytesIO(jpeg)).convert("RGB")
    scale = side / max(picture.size)
    size = tuple(max(1, round(length * scale)) for length in picture.size)
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(picture.resize(size, Image.Resampling.BILINEAR))
    return np.asarray(canvas)


class Pairs(StreamingDataset):
    """Targets with references of the same identity."""

    def __init__(self, shards, side, references):
        super().__init__(local=shards, shuffle=True, batch_size=BATCH, epoch_size=SAMPLES)
        self.side, self.references = side, references

    def __getitem__(self, at):
        read = super().__getitem__
        target = read(at)
        first = target["identity"] * IMAGES
        others = [it for it in range(first, first + IMAGES) if it != at]
        chosen = np.random.default_rng(at).choice(others, self.references, replace=False)
        jpegs = [target["image"]] + [read(int(it))["image"] for it in chosen]
        return torch.from_numpy(np.stack([square(it, self.side, (9, 90, 200)) for it in jpegs]))


class Peer:
    """Epoch after epoch of a DataLoader, whose workers stay."""

    def __init__(self, shards, side, references):
        dataset = Pairs(shards, side, references)
        self.loader = DataLoader(
            dataset, batch_size=BATCH, num_workers=CPUS, persistent_workers=True
        )

    def run(self):
        begun, pixels = time.perf_counter(), 0
        for batch in self.loader:
            pixels += batch.numel() // 3
        return SAMPLES / (time.perf_counter() - begun), pixels


class Ours:
    """Our process: reads a number of samples per line, and prints one line for each."""

    def __init__(self, program, url, side, references):
        self.process = subprocess.Popen(
            [program, url, str(side), str(references)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self):
        self.process.stdin.write(f"{SAMPLES}\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["samples"] / answer["seconds"], answer["pixels"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("coordinator")
    parser.add_argument("--resolution", type=int, default=384)
    parser.add_argument("--references", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, shards = write(folder)
        data = os.path.join(folder, "data")
        command = [arguments.coordinator, "dataset", "import", source, "--out", data]
        subprocess.run(command, check=True)
        side, references = arguments.resolution, arguments.references
        ours = Ours(arguments.program, f"file://{data}", side, references)
        peer = Peer(shards, side, references)
        rates = {"ours": [], "peer": []}
        for round in range(arguments.rounds + 1):
            (our_rate, our_pixels), (peer_rate, peer_pixels) = ours.run(), peer.run()
            expected = SAMPLES * (1 + references) * side * side
            assert our_pixels == peer_pixels == expected, (our_pixels, peer_pixels, expected)
            # In the first round workers start, and the page cache fills.
            if round > 0:
                print(f"round {round}: ours {our_rate:.1f}, peer {peer_rate:.1f} samples/s")
                rates["ours"].append(our_rate)
                rates["peer"].append(peer_rate)
        # Its stdin does not end before the peer's workers, which inherited it.
        ours.process.terminate()
        ours.process.wait()
    medians = {name: statistics.median(list) for name, list in rates.items()}
    print(
        f"BENCH loader: {medians['ours']:.1f} samples/s, MosaicML Streaming with Pillow "
        f"{medians['peer']:.1f}, ratio {medians['ours'] / medians['peer']:.2f} "
        f"({1 + references} images of {WIDTH}x{HEIGHT} to {side} pixels, {CPUS} CPUs)"
    )


if __name__ == "__main__":
    main()

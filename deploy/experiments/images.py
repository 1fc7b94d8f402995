"""Measures what samples of the small model look like; `deploy/experiments/images.sh` runs it. It
uses only the `coordinator` command, and reads the data sets and the generated images itself.

The characters were used for no choice: their generator's seed is the first 8 hex digits of the
SHA-256 of the U-Net (of the autoencoder, where there is none). Samples are made at the defaults of
`coordinator sample`, with a prompt that says nothing of looks (`--prompt pose`).

  faces      animeface (likelihood over 0.5) finds a face in the image, enlarged to 256 px; only
             images whose prompt asks for a portrait. Compared with the true images of that framing.
  identity   the sample is nearest to its own character and outfit among 8, by colour inside the
             mask: square roots of a histogram of 8 x 8 x 8 colours, compared with the mean over the
             other images of each candidate. And among 16, by EfficientNet-Lite0's features (mean
             over positions, background white), compared with one other image of each candidate.
  swap       the same prompts and seeds with the references of another character: which of 8
             candidates, the new and the old among them, is nearest by colour.
  clothes    nearest of 8 outfits of characters whose hair has the same colour, by colour in the
             lower 40 % of the mask's box, where clothes and legs are; portraits are left out.

A sample's mask is what differs from its white background, filled from the border inwards. The masks
of true images are exact. Each measure has its ceiling beside it: the same on true images.
"""

import argparse
import hashlib
import io
import json
import pathlib
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from leakage import SIDE, Data, Features, ask, silhouette, unit
from networks import networks
from PIL import Image

CHARACTERS, OUTFITS, IMAGES = 112, 2, 6
HAIR = "_hair"
JOB = """# Written by deploy/experiments/images.py: holds weights, trains nothing.
name = "{name}"
[resources]
workers = {{ min = 1, max = 2 }}
[data]
dataset = "file://{data}"
resolution = 64
holdout = 0.9
seed = 1
{data_fields}
[model]
architecture = "{architecture}"
size = "small"
init = "file://{weights}"
{model_fields}
[train]
steps = 1
global_batch = 2
micro_batch = 1
learning_rate = 0
"""
# The architecture of each stage, and its job under deploy/jobs.
STAGES = {
    "autoencoder": ("autoencoder", "autoencoder"),
    "base": ("text-to-image", "base"),
    "retrinet": ("retrinet", "figures"),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("coordinator")
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("weights", type=pathlib.Path)
    parser.add_argument("base", type=pathlib.Path, nargs="?")
    parser.add_argument("--count", type=int, default=400)
    options = parser.parse_args()
    options.weights = options.weights.resolve()
    if options.stage == "retrinet" and options.base is None:
        parser.error("retrinet needs BASE, to show what the base alone samples")
    world = World(options)
    {"autoencoder": autoencoder, "base": base, "retrinet": retrinet}[options.stage](world)


class World:
    """The `coordinator` command, and the data set of new characters."""

    def __init__(self, options):
        self.options = options
        self.run = options.run / options.stage
        self.run.mkdir(parents=True, exist_ok=True)
        file = next(
            path
            for name in ("unet", "vae", "autoencoder")
            for path in sorted(options.weights.glob(f"{name}*/*model.safetensors"))
            + sorted(options.weights.glob(f"{name}.safetensors"))
        )
        self.digest = hashlib.sha256(file.read_bytes()).hexdigest()
        self.seed = int(self.digest[:8], 16)
        self.folder = self.run / f"data-{self.seed:08x}"
        if not (self.folder / "dataset.json").exists():
            self.ask(
                *["dataset", "synthesize", "--characters", str(CHARACTERS)],
                *["--outfits", str(OUTFITS), "--images", str(IMAGES), "--size", "64"],
                *["--seed", str(self.seed), "--backgrounds", "plain"],
                *["--out", f"file://{self.folder}"],
            )
        self.data = Data(self.folder)
        print(f"{file.name} {self.digest}, generator seed {self.seed}", flush=True)

    def ask(self, *arguments):
        return ask(self.options.coordinator, *arguments)

    def job(self, stage, weights, folder, data_fields=""):
        """The id of a job that holds these weights and reads this data set."""
        name = f"{stage}-{folder.name[:4]}"
        text = JOB.format(
            name=name,
            data=folder,
            architecture=STAGES[stage][0],
            weights=weights,
            data_fields=data_fields,
            model_fields=networks(
                tomllib.loads(pathlib.Path(f"deploy/jobs/{STAGES[stage][1]}.toml").read_text())
            ),
        )
        path = self.run / f"{name}.toml"
        path.write_text(text)
        return self.ask("submit", str(path))["job"]

    def sample(self, job, name, *arguments):
        """The records of the job's images, in the order of the data set."""
        out = self.run / f"{name}-{self.digest[:8]}"
        if not (out / "images.json").exists():
            count = str(self.options.count)
            self.ask(
                *["sample", job, "--base", "--count", count, "--seeds", "1", "--out", str(out)],
                *arguments,
            )
        records = json.loads((out / "images.json").read_text())["images"]
        for record in records:
            record["image"] = np.asarray(Image.open(out / record["file"]).convert("RGB"))
        return sorted(records, key=lambda record: record["target"]["id"])


class Faces:
    def __init__(self):
        import animeface

        self.detect = animeface.detect

    def found(self, image):
        large = Image.fromarray(image).resize((256, 256), Image.BICUBIC)
        return any(face.likelihood > 0.5 for face in self.detect(large))

    def count(self, images):
        return sum(self.found(image) for image in images)


def true(data, name):
    """The true image at the models' resolution, with its background, as the loader resizes it: with
    a triangle filter. Any other filter would count as an error of the model."""
    image = Image.open(io.BytesIO(data.rows[name]["image"])).convert("RGB")
    return np.asarray(image.resize((SIDE, SIDE), Image.BILINEAR))


def portrait(data, record):
    return "portrait" in data.rows[record["target"]["id"]]["prompts"].split(", ")


def autoencoder(world):
    """The gate: mean absolute error, faces."""
    records = world.sample(
        world.job("autoencoder", world.options.weights, world.folder), "reconstructions"
    )
    originals = [true(world.data, record["target"]["id"]) for record in records]
    images = [record["image"] for record in records]
    # Of pixels in [-1, 1].
    error = np.mean([np.abs(a.astype(float) - b).mean() / 127.5 for a, b in zip(originals, images)])
    faces = Faces()
    found = {"originals": faces.count(originals), "reconstructions": faces.count(images)}
    report(
        world,
        {"images": len(images), "mean_absolute_error": float(error), "faces": found},
        [[a, b] for a, b in zip(originals, images)],
    )


def base(world):
    """The gate: faces of samples that are told everything by their prompts."""
    records = world.sample(world.job("base", world.options.weights, world.folder), "base")
    busts = [record for record in records if portrait(world.data, record)]
    faces = Faces()
    found = {
        "portraits": len(busts),
        "true images": faces.count([true(world.data, r["target"]["id"]) for r in busts]),
        "samples": faces.count([record["image"] for record in busts]),
    }
    measures = Measures(world.data, [record["target"]["id"] for record in records])
    identity = measures.identity(records)
    report(
        world,
        {"images": len(records), "faces": found, "identity": identity},
        [[true(world.data, r["target"]["id"]), r["image"]] for r in records],
    )


def retrinet(world):
    # With the drop of figures.toml, which the defaults of `coordinator sample` depend on.
    fields = "references = 2\nreference_drop = 0.1"
    job = world.job("retrinet", world.options.weights, world.folder, fields)
    tasks = ("reconstruction", "composition")
    with ThreadPoolExecutor(2) as two:
        asked = {
            (task, swapped): two.submit(
                world.sample,
                job,
                f"{task}-swapped" if swapped else task,
                *["--prompt", "pose", "--pairing", "b", "--task", task],
                *["--swap-references"][:swapped],
            )
            for task in tasks
            for swapped in (False, True)
        }
        sampled = {key: records.result() for key, records in asked.items()}
    data = world.data
    measures = Measures(data, [r["target"]["id"] for r in sampled["composition", False]])
    results = {"images": len(sampled["composition", False]), "weights": world.digest}
    faces = Faces()
    for task in tasks:
        records = sampled[task, False]
        busts = [record for record in records if portrait(data, record)]
        results[task] = {
            "faces": {
                "portraits": len(busts),
                "true images": faces.count([true(data, r["target"]["id"]) for r in busts]),
                "samples": faces.count([record["image"] for record in busts]),
            },
            "identity": measures.identity(records),
            "swap": measures.swap(sampled[task, True]),
            "clothes": measures.clothes(records),
        }
    results["true images"] = measures.ceiling(sampled["composition", False])
    report(world, results, grid(world, sampled))


def grid(world, sampled, count=24):
    """Columns: the references, the sample, the sample with the references of another character, the
    autoencoder's own reconstruction of the target, what the base alone samples for that prompt."""
    data = world.data
    base_weights = world.options.base.resolve()
    rebuilt = world.sample(
        world.job("autoencoder", base_weights, world.folder), "reconstructions"
    )
    alone = world.sample(
        world.job("base", base_weights, world.folder), "base", "--prompt", "pose"
    )
    by_target = lambda records: {record["target"]["id"]: record["image"] for record in records}
    rebuilt, alone = by_target(rebuilt), by_target(alone)
    swapped = by_target(sampled["composition", True])
    rows = []
    for record in sampled["composition", False][:: max(1, world.options.count // count)][:count]:
        target = record["target"]["id"]
        shown = [true(data, reference["sample"]) for reference in record["references"]]
        rows.append([*shown, record["image"], swapped[target], rebuilt[target], alone[target]])
    return rows


class Measures:
    """Histograms and features of the data set's images, and the candidates of each target."""

    def __init__(self, data, targets):
        self.data = data
        self.features = Features()
        self.targets = targets
        self.held_out = sorted({data.rows[target]["identity"] for target in targets})
        self.cache = {}

    def colours(self, name, lower=False):
        """The histogram of a true image."""
        key = (name, lower)
        if key not in self.cache:
            self.cache[key] = histogram(*self.data.view(name), lower)
        return self.cache[key]

    def mean_colours(self, identity, without, lower=False):
        names = [name for name in self.data.identities[identity] if name not in without]
        return unit(np.mean([self.colours(name, lower) for name in names], axis=0)[None])[0]

    def strangers(self, target, count, usable=lambda _: True, without=()):
        """Identities of other characters; the same for every measure of a target."""
        rng = np.random.default_rng(int(hashlib.sha256(target.encode()).hexdigest()[:8], 16))
        own = self.data.rows[target]["character"]
        others = [
            identity
            for identity in self.held_out
            if identity not in without
            and self.data.rows[self.data.identities[identity][0]]["character"] != own
            and usable(identity)
        ]
        return rng.permutation(others)[:count].tolist()

    def nearest(self, image, shape, candidates, without, lower=False):
        own = histogram(image, shape, lower)
        scores = [self.mean_colours(it, without, lower) @ own for it in candidates]
        return candidates[int(np.argmax(scores))]

    def identity(self, records):
        hits, network_hits, views, names = 0, 0, [], []
        for record in records:
            target = record["target"]["id"]
            own = self.data.rows[target]["identity"]
            shown = {reference["sample"] for reference in record["references"]} | {target}
            shape = silhouette(record["image"])
            candidates = [own, *self.strangers(target, 7)]
            hits += self.nearest(record["image"], shape, candidates, shown) == own
            views.append(np.where(shape[..., None], record["image"], 255).astype(np.uint8))
            others = [name for name in self.data.identities[own] if name not in shown]
            firsts = [self.data.identities[it][0] for it in self.strangers(target, 15)]
            names.append([others[0], *firsts])
        found = self.features.network_of(views)
        wanted = sorted({name for row in names for name in row})
        known = dict(zip(wanted, self.features.network_of_views(self.data, wanted)))
        for own, row in zip(found, names):
            network_hits += int(np.argmax([known[name] @ own for name in row]) == 0)
        return {
            "nearest of 8 by colour": hits / len(records),
            "nearest of 16 by features": network_hits / len(records),
        }

    def swap(self, records):
        new_hits, old_hits = 0, 0
        for record in records:
            target = record["target"]["id"]
            old = self.data.rows[target]["identity"]
            new = self.data.rows[record["target"]["references_of"]]["identity"]
            candidates = [new, old, *self.strangers(target, 6, without=(new, old))]
            found = self.nearest(record["image"], silhouette(record["image"]), candidates, ())
            new_hits += found == new
            old_hits += found == old
        return {"new": new_hits / len(records), "old": old_hits / len(records)}

    def hair(self, identity):
        words = self.data.rows[self.data.identities[identity][0]]["prompts"].split(", ")
        colours = ("aqua", "black", "blonde", "blue", "brown", "green", "grey", "orange", "pink")
        colours += ("purple", "red", "white")
        return next((word for word in words if word in [c + HAIR for c in colours]), None)

    def clothes(self, records):
        hits, count = 0, 0
        for record in records:
            target = record["target"]["id"]
            if portrait(self.data, record):
                continue
            own = self.data.rows[target]["identity"]
            like = self.hair(own)
            candidates = [own, *self.strangers(target, 7, lambda it: self.hair(it) == like)]
            shown = {reference["sample"] for reference in record["references"]} | {target}
            shape = silhouette(record["image"])
            hits += self.nearest(record["image"], shape, candidates, shown, True) == own
            count += 1
        return {"nearest of 8 outfits": hits / max(count, 1), "images": count}

    def ceiling(self, records):
        """The measures with the true target in place of each sample."""
        real = []
        for record in records:
            image, shape = self.data.view(record["target"]["id"])
            on_white = np.where(shape[..., None], image, 255).astype(np.uint8)
            real.append({**record, "image": on_white})
        return {"identity": self.identity(real), "clothes": self.clothes(real)}


def histogram(image, shape, lower=False):
    if lower:
        rows = np.flatnonzero(shape.any(axis=1))
        if len(rows):
            shape = shape.copy()
            shape[: int(rows[-1] - 0.4 * (rows[-1] - rows[0]))] = False
    bins = (image[shape] // 32).astype(int) if shape.any() else np.zeros((1, 3), int)
    counts = np.bincount(bins[:, 0] * 64 + bins[:, 1] * 8 + bins[:, 2], minlength=512)
    return np.sqrt(counts / counts.sum())


def report(world, results, rows, scale=2):
    folder = world.options.run / "report"
    folder.mkdir(exist_ok=True)
    results = {"stage": world.options.stage, "generator_seed": world.seed, **results}
    text = json.dumps(results, indent=1)
    (folder / f"{world.options.stage}.json").write_text(text + "\n")
    rows = rows[:24]
    side = SIDE * scale + 2
    width = len(rows[0])
    # Three blocks of rows beside each other.
    blocks = 3
    height = -(-len(rows) // blocks)
    canvas = Image.new("RGB", (blocks * (width * side + 12), height * side), "grey")
    for index, row in enumerate(rows):
        x, y = (index // height) * (width * side + 12), (index % height) * side
        for column, image in enumerate(row):
            tile = Image.fromarray(image).resize((side - 2, side - 2), Image.BICUBIC)
            canvas.paste(tile, (x + column * side, y))
    canvas.save(folder / f"{world.options.stage}.png")
    print(text)


if __name__ == "__main__":
    main()

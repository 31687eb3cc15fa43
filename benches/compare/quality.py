#!/usr/bin/env python3
"""How good images become: a job of ours beside PyTorch's DCGAN example, given the same number of images.

Both sides learn the same data with networks of the same width, for the same number of images, and both
are scored by `gan-worker evaluate`: the same feature extractor (trained on the data's own labels), the
same real samples, as many samples of each. The example's are drawn as it draws them (batch norm by the
batch's statistics) and by running statistics, and the better of the two counts for it.

    benches/compare/quality.py                              # MNIST, 640,000 images, one seed
    benches/compare/quality.py --seeds 0 1 2 --markdown benches/results/quality.md
    benches/compare/quality.py --images 6400 --samples 500  # a look whether it works
    benches/compare/quality.py --keep runs/quality … # what has ended there stays, if it is stopped
    benches/compare/quality.py --set train.objective=relativistic --set …   # another setting of ours

Every side runs alone, one after the other. Build first: cargo build --release.
"""

import argparse
import gzip
import json
import pathlib
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from typing import Any, Callable, Dict, List

import torch
from torch import nn

from pytorch_dcgan import discriminator, generator, initialise

ROOT = pathlib.Path(__file__).resolve().parents[2]
# How long a side took, in its folder: the last thing that it leaves there.
SECONDS = "seconds"


def read_idx(path: pathlib.Path) -> torch.Tensor:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        magic, count, rows, columns = struct.unpack(">IIII", file.read(16))
        assert magic == 0x803, f"{path} is no IDX file of images"
        data = bytearray(file.read(count * rows * columns))
    return torch.frombuffer(data, dtype=torch.uint8).view(count, 1, rows, columns)


def padded(images: torch.Tensor, size: int) -> torch.Tensor:
    """Black around them, in -1 … 1: as `data.fit = "pad"` has it."""
    over = size - images.shape[-1]
    before, after = over // 2, over - over // 2
    images = nn.functional.pad(images, (before, after, before, after))
    return images.float() / 127.5 - 1


def data_of(folder: pathlib.Path) -> List[pathlib.Path]:
    if folder.is_file():
        return [folder]
    found = sorted(p for p in folder.iterdir() if "idx3" in p.name and not p.name.startswith("."))
    assert found, f"{folder}: no IDX files of images"
    return found


def write_idx(folder: pathlib.Path, images: torch.Tensor) -> None:
    folder.mkdir(parents=True)
    bytes_ = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    count, _, rows, columns = bytes_.shape
    header = struct.pack(">IIII", 0x803, count, rows, columns)
    (folder / "drawn-images-idx3-ubyte").write_bytes(header + bytes_.contiguous().numpy().tobytes())


def example(args: argparse.Namespace, seed: int, images: torch.Tensor, folder: pathlib.Path) -> None:
    """PyTorch's example: its networks, loss, optimizers and order of updates, on images in memory."""
    torch.manual_seed(seed)
    torch.set_num_threads(args.threads)
    net_g = generator(args.image_size, 1, args.latent, args.width).apply(initialise)
    net_d = discriminator(args.image_size, 1, args.width).apply(initialise)
    adam = lambda net: torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999))
    optimizer_g, optimizer_d = adam(net_g), adam(net_d)
    criterion = nn.BCELoss()
    batch = args.batch
    began = time.monotonic()
    order: List[int] = []
    for _ in range(args.images // batch):
        if len(order) < batch:
            order = torch.randperm(len(images)).tolist()
        chosen, order = order[:batch], order[batch:]
        real = images[chosen]
        net_d.zero_grad()
        label = torch.full((batch,), 1.0)
        criterion(net_d(real), label).backward()
        fake = net_g(torch.randn(batch, args.latent, 1, 1))
        label.fill_(0.0)
        criterion(net_d(fake.detach()), label).backward()
        optimizer_d.step()
        net_g.zero_grad()
        label.fill_(1.0)
        criterion(net_d(fake), label).backward()
        optimizer_g.step()
    seconds = time.monotonic() - began

    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(seed + 1)
    latents = torch.randn(args.samples, args.latent, 1, 1)
    for name, train in (("batch", True), ("running", False)):
        net_g.train(train)
        with torch.no_grad():
            # Whole batches, as with batch statistics an image depends on its neighbours.
            drawn = torch.cat([net_g(z) for z in latents.split(batch)])
        write_idx(folder / name, drawn)
    (folder / SECONDS).write_text(str(seconds))


def run(*command: Any) -> str:
    command = [str(part) for part in command]
    print("+", " ".join(command), file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"failed with {done.returncode}: {' '.join(command)}")
    return done.stdout


def ours(args: argparse.Namespace, seed: int, run_dir: pathlib.Path) -> None:
    shutil.rmtree(run_dir, ignore_errors=True)
    steps = args.images // args.batch
    sets = [
        f"job.seed={seed}", f"data.uri={args.data}", f"train.steps={steps}",
        f"model.latent={args.latent}", f"model.generator_width={args.width}",
        f"model.discriminator_width={args.width}", "checkpoint.every_steps=0", "sample.every_steps=0",
    ] + args.set
    began = time.monotonic()
    options = [part for value in sets for part in ("--set", value)]
    run(args.bin / "gan-coord", "run", args.job, "--workers", args.workers, "--run-dir", run_dir, *options)
    (run_dir / SECONDS).write_text(str(time.monotonic() - began))


def seconds_of(folder: pathlib.Path, train: Callable[[], None]) -> float:
    """How long a side took, which --keep may have kept; or else it runs."""
    if not (folder / SECONDS).exists():
        train()
    return float((folder / SECONDS).read_text())


def score(args: argparse.Namespace, checkpoint: pathlib.Path, *more: Any) -> Dict[str, Any]:
    told = run(args.bin / "gan-worker", "evaluate", checkpoint, "--samples", args.samples, "--json", *more)
    return json.loads(told)


def spread(values: List[float]) -> str:
    mean = statistics.mean(values)
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{mean:.2f}{error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", type=pathlib.Path, default=ROOT / "deploy/jobs/mnist.toml")
    parser.add_argument("--data", type=pathlib.Path, default=ROOT / "tests/data/mnist",
                        help="a folder of IDX files with labels; images are padded")
    parser.add_argument("--images", type=int, default=640_000, help="that each side is given")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", action="append", default=[], help="of our job, section.key=value")
    parser.add_argument("--batch", type=int, default=64, help="must be the job's replicas × batch")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--latent", type=int, default=100)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2, help="processes of ours")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "target/release")
    parser.add_argument("--only-ours", action="store_true", help="leave PyTorch's example out")
    parser.add_argument("--markdown", type=pathlib.Path, help="write the table there")
    parser.add_argument("--keep", type=pathlib.Path,
                        help="keep runs and images in this folder, and don't repeat those that are there; what "
                             "made them must have been the same")
    args = parser.parse_args()
    args.data, args.bin = args.data.resolve(), args.bin.resolve()

    images = padded(torch.cat([read_idx(path) for path in data_of(args.data)]), args.image_size)
    rows: List[Dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.keep or pathlib.Path(temporary)).resolve()
        for seed in args.seeds:
            run_dir, drawn_in = folder / f"ours-{seed}", folder / f"example-{seed}"
            seconds = {"ours": seconds_of(run_dir, lambda: ours(args, seed, run_dir))}
            checkpoint = run_dir / f"checkpoints/step-{args.images // args.batch:08}"
            scores: Dict[str, Any] = {"ours": score(args, checkpoint)}
            if not args.only_ours:
                seconds["example"] = seconds_of(drawn_in, lambda: example(args, seed, images, drawn_in))
                for statistics_ in ("batch", "running"):
                    scores[statistics_] = score(args, checkpoint, "--images", drawn_in / statistics_)
                better = min(("batch", "running"), key=lambda kind: scores[kind]["scores"]["fid"])
                scores["example"] = scores[better]
            for side in ("ours", "example"):
                if side in scores:
                    rows.append({"seed": seed, "side": side, "seconds": seconds[side], **scores[side]})
                    print(json.dumps(rows[-1]), flush=True)

    table = report(args, rows)
    print(table)
    if args.markdown:
        args.markdown.write_text(table)


def report(args: argparse.Namespace, rows: List[Dict[str, Any]]) -> str:
    names = [name for name in ("fid", "kid", "precision", "recall", "density", "coverage", "kl-data")
             if all(name in row["scores"] for row in rows)]
    protocol, floor = rows[0]["protocol"], rows[0]["floor"]
    out = [
        f"{args.images:,} images to each side, width {args.width}, batch {args.batch}; "
        f"{protocol['samples']:,} samples against {protocol['reals']:,} real ones; features of a "
        f"{protocol['extractor']['kind']} `{protocol['extractor']['hash'][:16]}`"
        + (f" ({100 * protocol['extractor']['accuracy']:.2f} % right)" if "accuracy" in protocol["extractor"] else "")
        + f". Ours: `{args.job.name}` {' '.join(args.set)}", "",
        "| seed | side | minutes | " + " | ".join(names) + " |",
        "|---|---|---|" + "---|" * len(names),
    ]
    cells = lambda scores: " | ".join(f"{scores[name]:.4g}" for name in names)
    for row in rows:
        out.append(f"| {row['seed']} | {row['side']} | {row['seconds'] / 60:.1f} | {cells(row['scores'])} |")
    out.append(f"| | data against data ({protocol['floor_samples']:,}) | | {cells(floor)} |")
    fid = {side: [row["scores"]["fid"] for row in rows if row["side"] == side] for side in ("ours", "example")}
    out += ["", f"FID: ours {spread(fid['ours'])}"]
    if fid["example"]:
        lower = 100 * (1 - statistics.mean(fid["ours"]) / statistics.mean(fid["example"]))
        out[-1] += f", PyTorch's example {spread(fid['example'])}: {lower:.0f} % lower (goal: at least 30 %)"
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    main()

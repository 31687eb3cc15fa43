#!/usr/bin/env python3
"""Modes of the ring and the grid over many seeds: PacGAN's table 1 (Lin et al. 2018, arXiv 1712.04086).

Trains the job once a seed and setting, and scores 2,500 samples of each as the paper does: a sample is
good within three standard deviations of the nearest mode, and a mode is found with one good sample.
Means with their standard errors, beside the published ones; and coverage (Naeem et al. 2020), for modes
that have shrunk to their centres score best in both of the paper's.

    benches/protocols/modes.py                         # both, GAN, PacGAN2 and ours, 10 seeds
    benches/protocols/modes.py --tasks ring --variants best --seeds 3
    benches/protocols/modes.py --variants GAN-small PacGAN2-small   # the same two games, shortened
    benches/protocols/modes.py --steps 500 --seeds 1   # a look whether it works

The jobs are deploy/jobs/ring.toml and grid.toml; a variant is a list of --set. Build first: cargo build
--release. Several jobs run at a time (--at-once), one worker each.
"""

import argparse
import concurrent.futures
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any, Dict, List, Tuple

ROOT = pathlib.Path(__file__).resolve().parents[2]

# The paper's two, and what those two don't see: whether modes are as wide as the data's.
SCORES = ["modes", "high-quality", "coverage"]

SMALL = [
    "model.generator_width=128", "model.discriminator_width=64", "optimizer.learning_rate=1e-3", "train.steps=6000",
]

# What sets them apart in a job file, and modes and share of good samples, %, as published.
VARIANTS: Dict[str, Dict[str, Any]] = {
    "GAN": {"set": [], "ring": (6.3, 98.2), "grid": (17.3, 94.8)},
    "PacGAN2": {"set": ["train.packing=2"], "ring": (7.9, 95.6), "grid": (23.8, 91.3)},
    # The two games in minutes instead of hours: a third of the width, ten times the rate, 6,000 steps of 400,000.
    "GAN-small": {"set": SMALL, "ring": (6.3, 98.2), "grid": (17.3, 94.8)},
    "PacGAN2-small": {"set": [*SMALL, "train.packing=2"], "ring": (7.9, 95.6), "grid": (23.8, 91.3)},
    # Found by search, see benches/results: small networks and a high rate, for minutes instead of hours. Noise that
    # fades shows G all modes at first; a deeper G jumps from mode to mode with fewer samples on the way.
    "best": {"set": [
        "model.generator_width=128", "train.ema_decay=0.999", "optimizer.beta1=0.5", "regularise.r1=0.001",
    ], "ring-set": [
        "model.generator_layers=6", "model.discriminator_width=96", "train.packing=2", "train.epochs=15",
        "optimizer.learning_rate=1e-3", "regularise.instance_noise=0.2", "regularise.instance_noise_steps=10000",
    ], "grid-set": [
        "model.generator_layers=6", "model.discriminator_width=64", "train.epochs=36",
        "optimizer.learning_rate=2e-3", "regularise.instance_noise=1.0", "regularise.instance_noise_steps=33000",
    ]},
}


def settings(variant: Dict[str, Any], task: str) -> List[str]:
    """What it sets in any job, and in this one."""
    return variant["set"] + variant.get(f"{task}-set", [])


def train(args: argparse.Namespace, task: str, variant: str, seed: int, folder: pathlib.Path) -> Dict[str, Any]:
    run_dir = folder / f"{task}-{variant}-{seed}"
    sets = [f"job.seed={seed}", "checkpoint.every_steps=0", "sample.every_steps=0"]
    sets += settings(args.variants[variant], task)
    if args.steps:
        sets.append(f"train.steps={args.steps}")
    options = [part for value in sets for part in ("--set", value)]
    log = run_dir.with_suffix(".log")
    with log.open("w") as out:
        job = ROOT / "deploy/jobs" / f"{task}.toml"
        command = [args.bin / "gan-coord", "run", job, "--workers", "1", "--run-dir", run_dir, *options]
        done = subprocess.run([str(part) for part in command], stdout=out, stderr=subprocess.STDOUT)
    if done.returncode:
        raise RuntimeError(f"{task}, {variant}, seed {seed}: failed, see {log}\n{log.read_text()[-2000:]}")
    checkpoint = max((run_dir / "checkpoints").glob("step-*"))
    command = [args.bin / "gan-worker", "evaluate", checkpoint, "--samples", "2500", "--json", "--workers", "1"]
    told = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True)
    evaluation = json.loads(told.stdout)
    scores = {"seed": seed, "task": task, "variant": variant, "step": evaluation["step"]}
    scores.update({name: evaluation["scores"][name] for name in SCORES})
    scores["floor"] = {name: evaluation["floor"][name] for name in SCORES}
    print(json.dumps(scores), flush=True)
    return scores


def mean(values: List[float], scale: float = 1.0) -> str:
    values = [scale * value for value in values]
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {error:.1f}"


def variant(text: str) -> Tuple[str, List[str]]:
    name, _, sets = text.partition(":")
    return name, [part for part in sets.split(",") if part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=["ring", "grid"], default=["ring", "grid"])
    parser.add_argument("--variants", nargs="+", type=variant, default=[(name, []) for name in ("GAN", "PacGAN2", "best")],
                        help="GAN, PacGAN2, GAN-small, PacGAN2-small, best, or NAME:section.key=value,section.key=value")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, help="instead of the job's length")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "target/release")
    parser.add_argument("--keep", type=pathlib.Path, help="keep the runs in this folder")
    parser.add_argument("--markdown", type=pathlib.Path, help="write the table there")
    args = parser.parse_args()
    args.variants = {
        name: VARIANTS[name] if name in VARIANTS and not sets else {"set": sets} for name, sets in args.variants
    }
    tasks = [(task, name, seed) for task in args.tasks for name in args.variants for seed in range(args.seeds)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.keep or pathlib.Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        with concurrent.futures.ThreadPoolExecutor(args.at_once) as pool:
            work = [pool.submit(train, args, *task, folder) for task in tasks]
            try:
                found = [future.result() for future in work]
            except RuntimeError as error:
                pool.shutdown(cancel_futures=True)
                sys.exit(str(error))
    out = [f"{args.seeds} seeds, 2,500 samples; mean ± standard error.", "",
           "| data | setting | modes | good samples, % | coverage, % | published: modes | % |",
           "|---|---|---|---|---|---|---|"]
    for task in args.tasks:
        for name, chosen in args.variants.items():
            rows = [row for row in found if (row["task"], row["variant"]) == (task, name)]
            published = chosen.get(task, ("–", "–"))
            sets = settings(chosen, task)
            setting = name + (f" (`{' '.join(sets)}`)" if sets else "")
            out.append(f"| {task} | {setting} | {mean([row['modes'] for row in rows])} | "
                       f"{mean([row['high-quality'] for row in rows], 100)} | "
                       f"{mean([row['coverage'] for row in rows], 100)} | {published[0]} | {published[1]} |")
    table = "\n".join(out) + "\n"
    print(table)
    if args.markdown:
        args.markdown.write_text(table)


if __name__ == "__main__":
    main()

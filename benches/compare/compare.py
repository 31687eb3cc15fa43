"""Measures Ganglion against PyTorch's DCGAN example: the same networks, batch and update order.

Both sides run in turns, A B A B …, so that a machine that slows down slows both; what counts is the
ratio within a pair. Sides:

  ddp        PyTorch, as many processes as Ganglion has workers, one thread each, over Gloo
  ganglion   gan-coord run … --workers N, over TCP on this machine
  single     (with --single) PyTorch, one process, as many threads as there are workers

Both give the median over the steps after the warm-up. PyTorch's data lies in memory as tensors;
Ganglion's comes through its loader from an IDX file of noise that this script writes. Needs only
Python's standard library for itself; PYTHON, or --python, names one that imports PyTorch 2.11.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List, NamedTuple, NoReturn, Optional

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
JOB = HERE / "bench64.toml"
IMAGE_SIZE, REPLICAS, BATCH = 64, 2, 32  # those of bench64.toml
GLOBAL_BATCH = REPLICAS * BATCH
LONGEST = 1800  # seconds that one run may take

# Keys of a record of metrics.jsonl.
STEP, RATE, TIME, REDUCE = "step", "images_per_s", "time", "reduce_s"


def fail(text: str) -> NoReturn:
    sys.exit(f"compare: {text}")


class Result(NamedTuple):
    """One run of one side."""

    images_per_s: float
    by_clock: Optional[float] = None  # the same, from the coordinator's clock over all the steps
    reduce_share: Optional[float] = None  # of a step's time, the reduction's
    first_step_s: Optional[float] = None  # from the launch to the first step's end


# --- PyTorch -------------------------------------------------------------------------------------


def pytorch(args: argparse.Namespace, processes: int, threads: int) -> Result:
    command = [args.python, str(HERE / "pytorch_dcgan.py"), "--image-size", str(IMAGE_SIZE),
               "--batch", str(GLOBAL_BATCH // processes), "--processes", str(processes),
               "--threads", str(threads), "--ddp", args.ddp,
               "--steps", str(args.steps), "--warmup", str(args.warmup)]
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads))
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True,
                               start_new_session=True)
    try:
        output, _ = process.communicate(timeout=LONGEST)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it spawned
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            fail(f"the PyTorch side did not end within {LONGEST} s")
        raise
    if process.returncode != 0:
        fail(f"the PyTorch side ended with exit status {process.returncode}; its message is above")
    return Result(json.loads(output.strip().splitlines()[-1])["images_per_s"])


# --- Ganglion ------------------------------------------------------------------------------------


def write_noise(path: Path, images: int) -> None:
    """Grey noise as an IDX file, the format of MNIST: magic, three sizes, the pixels.

    The data room turns it into RGB; a step takes as long on noise as on pictures.
    """
    pixels = random.Random(0).getrandbits(8 * images * IMAGE_SIZE * IMAGE_SIZE)
    with open(path, "wb") as file:
        file.write(struct.pack(">IIII", 0x0803, images, IMAGE_SIZE, IMAGE_SIZE))
        file.write(pixels.to_bytes(images * IMAGE_SIZE * IMAGE_SIZE, "little"))


def binary(name: str) -> Path:
    path = ROOT / "target/release" / name
    if not path.is_file():
        fail(f"{path} is missing: build it with `cargo build --release --locked`, "
             "or let `make bench-compare` do it")
    return path


def records(path: Path) -> List[Dict[str, float]]:
    """The whole lines of a metrics.jsonl that are about a step; it may still be written to."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    found = []
    for line in text.split("\n")[:-1]:
        record = json.loads(line)
        if STEP in record and record.get(RATE):
            found.append(record)
    return found


def stop(process: subprocess.Popen) -> None:
    """Asks a run to end, which ends its workers too; kills it if it doesn't."""
    for ask in (process.terminate, process.kill):
        try:
            ask()
            process.wait(timeout=20)
            return
        except subprocess.TimeoutExpired:
            continue


def rate_by_clock(measured: List[Dict[str, float]]) -> Optional[float]:
    """Images a second between the first and the last record's time.

    Records that reached the coordinator together carry one time, that of their last step.
    """
    reached = {record[TIME]: record[STEP] for record in measured if TIME in record}
    if len(reached) < 2:
        return None
    first, last = min(reached), max(reached)
    return (reached[last] - reached[first]) * GLOBAL_BATCH / (last - first)


def ganglion(args: argparse.Namespace, scratch: Path) -> Result:
    run = Path(tempfile.mkdtemp(prefix="run.", dir=scratch)) / "bench64"
    metrics = run / "metrics.jsonl"
    log = run.with_suffix(".log")
    command = [str(binary("gan-coord")), "run", str(JOB), "--workers", str(args.workers),
               "--run-dir", str(run),
               "--set", f"data.uri={scratch / 'images-idx3-ubyte'}",
               "--set", f"data.shard_folder={scratch / 'cache'}",
               "--set", f"train.steps={args.warmup + args.steps}"]
    with open(log, "w") as output:
        start = time.time()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT,
                                   stdin=subprocess.DEVNULL, start_new_session=True)
        first_step_s = None
        try:
            while process.poll() is None:
                if time.time() - start > LONGEST:
                    fail(f"gan-coord did not end within {LONGEST} s; its log:\n{log.read_text()}")
                if first_step_s is None and (seen := records(metrics)):
                    # Steps come in batches: those after the first one are taken off.
                    later = sum(GLOBAL_BATCH / record[RATE] for record in seen[1:])
                    first_step_s = time.time() - start - later
                time.sleep(0.02 if first_step_s is None else 0.5)
        finally:
            stop(process)
    if process.returncode != 0:
        fail(f"gan-coord ended with exit status {process.returncode}; its log:\n{log.read_text()}")

    measured = [record for record in records(metrics) if record[STEP] > args.warmup]
    if len(measured) < 2:
        fail(f"{metrics} has {len(measured)} records after step {args.warmup}; at least 2 are "
             f"needed, each with {STEP} and {RATE}")
    shares = [record[REDUCE] * record[RATE] / GLOBAL_BATCH for record in measured]
    return Result(
        images_per_s=statistics.median(record[RATE] for record in measured),
        by_clock=rate_by_clock(measured),
        reduce_share=statistics.median(shares),
        first_step_s=first_step_s,
    )


# --- the account ---------------------------------------------------------------------------------


def machine() -> str:
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{model}, {len(os.sched_getaffinity(0))} cores; {platform.system()} " \
           f"{platform.release()}; load {load} before the first run"


def pytorch_version(python: str) -> str:
    done = subprocess.run([python, "-c", "import torch; print(torch.__version__)"],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if done.returncode != 0:
        fail(f"{python} does not import torch; name one that does with --python, or use "
             "`make bench-compare`, which makes one")
    return done.stdout.strip()


def table(rows: List[List[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths))
                     for row in rows)


def report(sides: List[str], pairs: List[Dict[str, Result]]) -> Dict[str, object]:
    rows = [["pair", *(f"{side}, images/s" for side in sides)]]
    ratios = []
    for number, pair in enumerate(pairs, 1):
        rows.append([str(number), *(f"{pair[side].images_per_s:.2f}" for side in sides)])
    medians = {side: statistics.median(pair[side].images_per_s for pair in pairs) for side in sides}
    rows.append(["median", *(f"{medians[side]:.2f}" for side in sides)])
    summary: Dict[str, object] = {"median_images_per_s": medians}
    if "ganglion" in sides and "ddp" in sides:
        ratios = [pair["ganglion"].images_per_s / pair["ddp"].images_per_s for pair in pairs]
        median = statistics.median(ratios)
        for row, text in zip(rows, ["ganglion / ddp", *(f"{r:.3f}" for r in ratios), f"{median:.3f}"]):
            row.append(text)
        summary["ratio"] = median
    print("\n" + table(rows))
    if "ganglion" in sides:
        runs = [pair["ganglion"] for pair in pairs]
        for text, key, values, form in [
            ("images/s by the coordinator's clock, over all measured steps", "by_clock", [r.by_clock for r in runs], "{:.2f}"),
            ("share of a step spent on reduction", "reduce_share", [r.reduce_share for r in runs], "{:.1%}"),
            ("launch to the end of the first step, s", "first_step_s", [r.first_step_s for r in runs], "{:.2f}"),
        ]:
            known = [value for value in values if value is not None]
            if known:
                summary[key] = statistics.median(known)
                print(f"ganglion: {text}: " + form.format(statistics.median(known)))
            else:
                print(f"ganglion: {text}: not recorded")
        startups = [r.first_step_s - GLOBAL_BATCH / r.images_per_s for r in runs if r.first_step_s]
        if startups:
            summary["start_up_s"] = statistics.median(startups)
            print(f"ganglion: launch to the start of the first step, s: "
                  f"{statistics.median(startups):.2f}, the slowest {max(startups):.2f} "
                  "(a step's median time taken off)")
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="how often each side runs")
    parser.add_argument("--steps", type=int, default=25, help="measured steps a run")
    parser.add_argument("--warmup", type=int, default=5, help="steps before those")
    parser.add_argument("--workers", type=int, default=2, choices=[1, 2],
                        help="Ganglion's workers, and DDP's processes")
    parser.add_argument("--ddp", choices=["plain", "frugal"], default="frugal",
                        help="frugal spares DDP the reductions that nobody uses")
    parser.add_argument("--single", action="store_true", help="run the side `single` too")
    parser.add_argument("--pytorch-only", action="store_true", help="leave Ganglion out")
    parser.add_argument("--python", default=os.environ.get("PYTHON") or sys.executable,
                        help="a Python that imports PyTorch 2.11")
    parser.add_argument("--json", type=Path, help="write the summary to this file too")
    args = parser.parse_args()
    if min(args.pairs, args.steps - 1, args.warmup) < 1:
        parser.error("--pairs and --warmup are at least 1, --steps at least 2")

    sides = ["ddp"] + (["single"] if args.single else []) + ([] if args.pytorch_only else ["ganglion"])
    if not args.pytorch_only:
        binary("gan-coord")
        binary("gan-worker")
    version = pytorch_version(args.python)
    described = machine()
    print(f"machine: {described}")
    print(f"PyTorch {version}; DCGAN {IMAGE_SIZE}×{IMAGE_SIZE}, width 64, {GLOBAL_BATCH} samples a "
          f"step, {args.workers} processes; median of {args.steps} steps after {args.warmup}",
          flush=True)

    scratch = Path(tempfile.mkdtemp(prefix="ganglion-compare."))
    pairs: List[Dict[str, Result]] = []
    try:
        write_noise(scratch / "images-idx3-ubyte", images=GLOBAL_BATCH * 32)
        for number in range(1, args.pairs + 1):
            pair = {}
            for side in sides:
                if side == "ganglion":
                    pair[side] = ganglion(args, scratch)
                else:
                    ddp = side == "ddp"
                    pair[side] = pytorch(args, processes=args.workers if ddp else 1,
                                         threads=1 if ddp else args.workers)
                print(f"pair {number}, {side}: {pair[side].images_per_s:.2f} images/s", flush=True)
            pairs.append(pair)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    summary = report(sides, pairs)
    if args.json:
        summary.update(machine=described, pytorch=version, steps=args.steps, pairs=args.pairs)
        args.json.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ncompare: interrupted")

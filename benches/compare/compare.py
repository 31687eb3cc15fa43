"""Measures Ganglion against PyTorch's DCGAN example: the same networks and the same batch.

All sides of the chosen cases run in turns, the whole round again and again, so that a machine that
slows down slows all of them; what counts is the ratio within a round, and its median over rounds.

  PyTorch    example        the example's step: alternating updates, f32
             …-same         the example's step with the update and precision of Ganglion's side
             tuned-…        PyTorch at its best: channels_last, bf16, fused Adam, torch.compile where
                            that is faster (tried beforehand, and said)
  Ganglion   <update>-<precision>

On a CPU both run as many processes as --workers says, one thread each, over loopback: PyTorch with
DistributedDataParallel and Gloo, Ganglion as `gan-coord run --workers N`. On a GPU (--device cuda)
both are one process. Each side gives the median over the steps after the warm-up, on a GPU the mean,
for there steps overlap. PyTorch's data lies in memory as tensors; Ganglion's comes through its
loader from an IDX file of noise that this script writes. Needs only Python's standard library for
itself; PYTHON, or --python, names one that imports PyTorch 2.11.
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
from typing import Dict, List, NamedTuple, NoReturn, Optional, Tuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
JOB = HERE / "bench64.toml"
IMAGE_SIZE = 64
LONGEST = 1800  # seconds that one run may take

# Keys of a record of metrics.jsonl.
STEP, RATE, TIME, REDUCE = "step", "images_per_s", "time", "reduce_s"


def fail(text: str) -> NoReturn:
    sys.exit(f"compare: {text}")


class Side(NamedTuple):
    """One way to train."""

    name: str
    update: str = "alternating"
    precision: str = "default"
    tuned: bool = False
    ganglion: bool = False
    workers: Optional[int] = None  # Ganglion's, if not those of the command line
    settings: Tuple[str, ...] = ()  # of the job file
    batch: int = 64  # samples a step, over all processes


class Claim(NamedTuple):
    """Two sides whose ratio is asked for, and what it should be at least, if anything."""

    ours: Side
    theirs: Side
    goal: Optional[float] = None


def ganglion_side(update: str, precision: str, **more: object) -> Side:
    return Side(f"ganglion {update}-{precision}", update, precision, ganglion=True)._replace(**more)


def cpu_cases() -> Dict[str, List[Claim]]:
    example = Side("example")
    same = Side("simultaneous-same", "simultaneous")
    same_bf16 = Side("simultaneous-bf16-same", "simultaneous", "bf16")
    tuned = [Side(f"tuned-{update}", update, "bf16", tuned=True)
             for update in ("alternating", "simultaneous")]
    ours = {(update, precision): ganglion_side(update, precision)
            for update in ("alternating", "simultaneous") for precision in ("f32", "bf16")}
    two, one = ours["alternating", "f32"], ganglion_side("alternating", "f32", workers=1)
    one = one._replace(name="ganglion alternating-f32, one worker")
    return {
        "alternating": [Claim(ours["alternating", "f32"], example, 1.2)],
        "simultaneous": [Claim(ours["simultaneous", "f32"], example, 1.4),
                         Claim(ours["simultaneous", "f32"], same)],
        "bf16": [Claim(ours["simultaneous", "bf16"], example, 2.5),
                 Claim(ours["simultaneous", "bf16"], same_bf16),
                 Claim(ours["alternating", "bf16"], example)],
        "tuned": [Claim(ours["alternating", "bf16"], tuned[0], 1.2),
                  Claim(ours["simultaneous", "bf16"], tuned[1], 1.2)],
        # One worker has all the cores that two have together.
        "workers": [Claim(two, one, 0.97)],
    }


def gpu_cases() -> Dict[str, List[Claim]]:
    cases = {}
    for batch in (128, 1024):
        settings = ("data.cache=device",)
        example = Side(f"example, batch {batch}", batch=batch)
        tuned = Side(f"tuned-alternating, batch {batch}", precision="bf16", tuned=True, batch=batch)
        tf32 = ganglion_side("alternating", "tf32", batch=batch, settings=settings)
        exact = ganglion_side("alternating", "bf16", batch=batch, settings=settings)
        free = exact._replace(settings=settings + ("train.deterministic=false",))
        tf32, exact, free = (side._replace(name=f"{side.name}, batch {batch}{more}") for side, more
                             in ((tf32, ""), (exact, ""), (free, ", not deterministic")))
        cases[f"batch-{batch}"] = [
            Claim(tf32, example),  # like for like: TF32 is PyTorch's default in convolutions
            Claim(exact, example, 3.0),
            Claim(exact, tuned, 1.2),
            Claim(free, tuned),  # like for like: PyTorch chooses kernels by timing here too
        ]
    return cases


class Result(NamedTuple):
    """One run of one side."""

    images_per_s: float
    by_clock: Optional[float] = None  # the same, from the coordinator's clock over all the steps
    reduce_share: Optional[float] = None  # of a step's time, the reduction's
    first_step_s: Optional[float] = None  # from the launch to the first step's end


# --- PyTorch -------------------------------------------------------------------------------------


def pytorch(args: argparse.Namespace, side: Side, execution: str, steps: int,
            patience: float = LONGEST) -> Result:
    """One run. Raises RuntimeError if it fails or takes too long."""
    processes = args.workers if args.device == "cpu" else 1
    command = [args.python, str(HERE / "pytorch_dcgan.py"), "--device", args.device,
               "--update", side.update, "--precision", side.precision,
               "--image-size", str(IMAGE_SIZE), "--width", str(args.width),
               "--batch", str(side.batch // processes), "--processes", str(processes),
               "--threads", "1", "--ddp", args.ddp,
               "--steps", str(steps), "--warmup", str(args.warmup)]
    if side.tuned:
        command += ["--tuned", "--execution", execution]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        output, errors = process.communicate(timeout=patience)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it spawned
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise RuntimeError(f"it did not end within {patience:.0f} s") from None
        raise
    if process.returncode != 0:
        raise RuntimeError(f"it ended with exit status {process.returncode}:\n{errors.strip()}")
    told = json.loads(output.strip().splitlines()[-1])
    if not told["finite"]:
        raise RuntimeError("its parameters are not finite")
    return Result(told["images_per_s"], first_step_s=told["first_step_s"])


def fastest_execution(args: argparse.Namespace, side: Side) -> str:
    """How PyTorch runs the tuned step best here, found out by trying."""
    candidates = ["eager", "compiled"] if args.device == "cpu" else ["eager", "compiled", "graph"]
    if args.execution != "auto":
        return args.execution
    rates = {}
    for execution in candidates:
        try:
            # A compiler takes its time.
            rates[execution] = pytorch(args, side, execution, max(args.steps // 2, 5), 600).images_per_s
            print(f"trying {side.name}, {execution}: {rates[execution]:.2f} images/s", flush=True)
        except RuntimeError as error:
            told = str(error).splitlines()
            print(f"trying {side.name}, {execution}: {told[0]} {told[-1] if told[1:] else ''}", flush=True)
    if not rates:
        fail(f"PyTorch's side {side.name} runs in no way")
    return max(rates, key=lambda execution: rates[execution])


# --- Ganglion ------------------------------------------------------------------------------------


def write_noise(path: Path, images: int) -> None:
    """Grey noise as an IDX file, the format of MNIST: magic, three sizes, the pixels.

    The data room turns it into RGB; a step takes as long on noise as on pictures.
    """
    pixels = random.Random(0).getrandbits(8 * images * IMAGE_SIZE * IMAGE_SIZE)
    with open(path, "wb") as file:
        file.write(struct.pack(">IIII", 0x0803, images, IMAGE_SIZE, IMAGE_SIZE))
        file.write(pixels.to_bytes(images * IMAGE_SIZE * IMAGE_SIZE, "little"))


def binary(args: argparse.Namespace, name: str) -> Path:
    folders = [args.binaries] if args.binaries else [ROOT / "bin", ROOT / "target/release"]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    fail(f"{name} is missing in {' and '.join(map(str, folders))}: build it with "
         "`cargo build --release --locked`, let `make bench-compare` do it, or name its folder "
         "with --binaries")


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


def rate_by_clock(measured: List[Dict[str, float]], batch: int) -> Optional[float]:
    """Images a second between the first and the last record's time.

    Records that reached the coordinator together carry one time, that of their last step.
    """
    reached = {record[TIME]: record[STEP] for record in measured if TIME in record}
    if len(reached) < 2:
        return None
    first, last = min(reached), max(reached)
    return (reached[last] - reached[first]) * batch / (last - first)


def ganglion(args: argparse.Namespace, side: Side, scratch: Path) -> Result:
    run = Path(tempfile.mkdtemp(prefix="run.", dir=scratch)) / "bench64"
    metrics = run / "metrics.jsonl"
    log = run.with_suffix(".log")
    workers = (side.workers or args.workers) if args.device == "cpu" else 1
    # As many replicas as DistributedDataParallel has processes, whoever hosts them.
    replicas = args.workers if args.device == "cpu" else 1
    settings = [f"data.uri={scratch / 'images-idx3-ubyte'}",
                f"data.shard_folder={scratch / 'cache'}",
                f"train.steps={args.warmup + args.steps}",
                f"train.replicas={replicas}", f"train.batch={side.batch // replicas}",
                f"train.update={side.update}", f"train.precision={side.precision}",
                f"model.generator_width={args.width}", f"model.discriminator_width={args.width}",
                f"workers.min={workers}", *side.settings]
    command = [str(binary(args, "gan-coord")), "run", str(JOB), "--workers", str(workers),
               "--device", args.device, "--run-dir", str(run)]
    for setting in settings:
        command += ["--set", setting]
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
                    later = sum(side.batch / record[RATE] for record in seen[1:])
                    first_step_s = time.time() - start - later
                time.sleep(0.02 if first_step_s is None else 0.5)
        finally:
            stop(process)
    if process.returncode != 0:
        workers_say = "".join(path.read_text()[-2000:] for path in sorted(run.glob("worker-*.log")))
        fail(f"gan-coord ended with exit status {process.returncode}; its log:\n{log.read_text()}"
             f"{workers_say}")

    measured = [record for record in records(metrics) if record[STEP] > args.warmup]
    if len(measured) < 2:
        fail(f"{metrics} has {len(measured)} records after step {args.warmup}; at least 2 are "
             f"needed, each with {STEP} and {RATE}")
    shares = [record[REDUCE] * record[RATE] / side.batch for record in measured]
    rates = [record[RATE] for record in measured]
    shutil.rmtree(run, ignore_errors=True)
    return Result(
        images_per_s=statistics.median(rates) if args.device == "cpu" else statistics.harmonic_mean(rates),
        by_clock=rate_by_clock(measured, side.batch),
        reduce_share=statistics.median(shares),
        first_step_s=first_step_s,
    )


# --- the account ---------------------------------------------------------------------------------


def machine(args: argparse.Namespace) -> str:
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    if args.device == "cuda":
        ask = "import torch; print(torch.cuda.get_device_name(0))"
        model = f"{ask_python(args.python, ask)}; {model}"
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{model}, {len(os.sched_getaffinity(0))} cores; {platform.system()} " \
           f"{platform.release()}; load {load} before the first run"


def ask_python(python: str, program: str) -> str:
    done = subprocess.run([python, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True)
    if done.returncode != 0:
        told = (done.stderr.strip().splitlines() or ["no message"])[-1]
        fail(f"{python} can't `{program}` ({told}); name a Python with PyTorch 2.11 with --python, "
             "or use `make bench-compare`, which makes one")
    return done.stdout.strip()


def table(rows: List[List[str]]) -> str:
    """Markdown, aligned."""
    rows = [rows[0], ["-" * len(rows[0][0])] + ["-" * len(cell) for cell in rows[0][1:]], *rows[1:]]
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"
                     for row in rows)


def of(side: Side, executions: Dict[Side, str]) -> str:
    where = "" if side.ganglion else "PyTorch "
    how = f" ({executions[side]})" if side in executions else ""
    return f"{where}{side.name}{how}"


def report(case: str, claims: List[Claim], rounds: List[Dict[Side, Result]],
           executions: Dict[Side, str]) -> Dict[str, object]:
    summary: List[Dict[str, object]] = []
    print(f"\n## {case}")
    for claim in claims:
        ours = [results[claim.ours].images_per_s for results in rounds]
        theirs = [results[claim.theirs].images_per_s for results in rounds]
        ratios = [a / b for a, b in zip(ours, theirs)]
        rows = [["round", f"{of(claim.theirs, executions)}, images/s",
                 f"{of(claim.ours, executions)}, images/s", "ratio"]]
        for number, (a, b, ratio) in enumerate(zip(theirs, ours, ratios), 1):
            rows.append([str(number), f"{a:.2f}", f"{b:.2f}", f"{ratio:.3f}"])
        median = statistics.median(ratios)
        verdict = ""
        if claim.goal is not None:
            verdict = f" (goal {claim.goal:g}: {'reached' if median >= claim.goal else 'NOT reached'})"
        rows.append(["median", f"{statistics.median(theirs):.2f}", f"{statistics.median(ours):.2f}",
                     f"{median:.3f}{verdict}"])
        print("\n" + table(rows), flush=True)
        summary.append({
            "ours": claim.ours.name, "theirs": claim.theirs.name,
            "execution": executions.get(claim.theirs), "ratios": ratios, "ratio": median,
            "goal": claim.goal, "reached": claim.goal is None or median >= claim.goal,
            "ours_images_per_s": ours, "theirs_images_per_s": theirs,
        })
    return {"claims": summary}


def tell_more(sides: List[Side], rounds: List[Dict[Side, Result]]) -> Dict[str, Dict[str, float]]:
    """What is known of Ganglion's runs beside their rates."""
    rows = [["Ganglion's runs (medians)", "images/s by the coordinator's clock",
             "share of a step in the reduction", "launch to the first step's end, s"]]
    summary = {}
    for side in sides:
        runs = [results[side] for results in rounds]
        known = {key: [value for run in runs if (value := getattr(run, key)) is not None]
                 for key in ("by_clock", "reduce_share", "first_step_s")}
        medians = {key: statistics.median(values) for key, values in known.items() if values}
        form = {"by_clock": "{:.2f}", "reduce_share": "{:.1%}", "first_step_s": "{:.2f}"}
        rows.append([side.name, *(form[key].format(medians[key]) if key in medians else "not recorded"
                                  for key in form)])
        summary[side.name] = medians
    print("\n" + table(rows))
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--cases", default="all", help="with commas between them, of "
                        f"{', '.join(cpu_cases())} on a CPU, {', '.join(gpu_cases())} on a GPU")
    parser.add_argument("--pairs", type=int, default=5, help="rounds: how often each side runs")
    parser.add_argument("--steps", type=int, help="measured steps a run [default: 25, on a GPU 500]")
    parser.add_argument("--warmup", type=int, help="steps before those [default: 5, on a GPU 50]")
    parser.add_argument("--workers", type=int, default=2, choices=[1, 2],
                        help="on a CPU, Ganglion's workers and DDP's processes")
    parser.add_argument("--width", type=int, default=64, help="feature maps, ngf = ndf")
    parser.add_argument("--ddp", choices=["plain", "frugal"], default="frugal",
                        help="frugal spares DDP the reductions that nobody uses")
    parser.add_argument("--execution", choices=["auto", "eager", "compiled", "graph"], default="auto",
                        help="of PyTorch's tuned sides; auto tries them and takes the fastest")
    parser.add_argument("--binaries", type=Path, help="folder of gan-coord and gan-worker")
    parser.add_argument("--python", default=os.environ.get("PYTHON") or sys.executable,
                        help="a Python that imports PyTorch 2.11")
    parser.add_argument("--json", type=Path, help="write all figures to this file too")
    parser.add_argument("--fail", action="store_true", help="exit with 1 if a goal is not reached")
    args = parser.parse_args()
    args.steps = args.steps or (25 if args.device == "cpu" else 500)
    args.warmup = args.warmup or (5 if args.device == "cpu" else 50)
    if min(args.pairs, args.steps - 1, args.warmup) < 1:
        parser.error("--pairs and --warmup are at least 1, --steps at least 2")
    known = cpu_cases() if args.device == "cpu" else gpu_cases()
    names = list(known) if args.cases == "all" else args.cases.split(",")
    for name in names:
        if name not in known:
            parser.error(f"no case {name} on this device: there are {', '.join(known)}")
    cases = {name: known[name] for name in names}
    if "workers" in cases and args.workers < 2:
        parser.error("the case `workers` needs --workers 2")

    claims = [claim for of_case in cases.values() for claim in of_case]
    sides = list(dict.fromkeys(side for claim in claims for side in (claim.theirs, claim.ours)))
    for program in ("gan-coord", "gan-worker"):
        binary(args, program)
    version = ask_python(args.python, "import torch; print(torch.__version__)")
    described = machine(args)
    who = f"{args.workers} processes" if args.device == "cpu" else "one process"
    print(f"machine: {described}")
    print(f"PyTorch {version}; DCGAN {IMAGE_SIZE}×{IMAGE_SIZE}, width {args.width}, "
          f"{', '.join(sorted({str(side.batch) for side in sides}, key=int))} samples a step, {who}; "
          f"{args.steps} steps after {args.warmup}", flush=True)
    executions = {side: fastest_execution(args, side) for side in sides if side.tuned and not side.ganglion}

    scratch = Path(tempfile.mkdtemp(prefix="ganglion-compare."))
    rounds: List[Dict[Side, Result]] = []
    try:
        write_noise(scratch / "images-idx3-ubyte", images=max(2048, 8 * max(side.batch for side in sides)))
        for number in range(1, args.pairs + 1):
            results = {}
            # Forth and back, so that a drift within a round favours nobody.
            for side in sides if number % 2 else reversed(sides):
                if side.ganglion:
                    results[side] = ganglion(args, side, scratch)
                else:
                    try:
                        results[side] = pytorch(args, side, executions.get(side, "eager"), args.steps)
                    except RuntimeError as error:
                        fail(f"PyTorch's side {side.name}: {error}")
                print(f"round {number}, {of(side, executions)}: "
                      f"{results[side].images_per_s:.2f} images/s", flush=True)
            rounds.append(results)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    summary: Dict[str, object] = {"machine": described, "pytorch": version, "steps": args.steps,
                                  "rounds": args.pairs, "cases": {}}
    for name, of_case in cases.items():
        summary["cases"][name] = report(name, of_case, rounds, executions)
    summary["ganglion"] = tell_more([side for side in sides if side.ganglion], rounds)
    if args.json:
        args.json.write_text(json.dumps(summary, indent=2) + "\n")
    missed = [claim for case in summary["cases"].values() for claim in case["claims"]
              if not claim["reached"]]
    if args.fail and missed:
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ncompare: interrupted")

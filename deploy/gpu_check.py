"""Checks Ganglion on a GPU, and prints one table: `make gpu-check`, or deploy/gpu-check.sh.

Every row runs real processes, has a time limit of its own, and fails if what it needs isn't there.
Several ranks share the one GPU that is needed at least: NCCL takes them for machines of their own
(NCCL_HOSTID). The exit status is 0 if every row that was asked for is good.

    deploy/gpu-check.sh                      all rows
    deploy/gpu-check.sh --rows devices,nccl  those (a name stands for all that begin with it)
    deploy/gpu-check.sh --pack DIR           builds, and collects in DIR what another machine needs
    deploy/gpu-check.sh --rehearse           the same rows on this CPU, with debug programs and the
                                             tests' stand-in for NCCL: a check of this script

The machine needs NVIDIA's driver and a Python (PYTHON, or --python) with PyTorch 2.11 for CUDA 13,
whose libtorch and NCCL Ganglion's programs load too.
"""

import argparse
import datetime
import json
import os
import platform
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, NoReturn, Optional

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
JOB = "tests/data/small.toml"
PROGRAMS = ["gan-coord", "gan-worker"]
RANKS = "nccl_ranks"  # the executable of tests/nccl_ranks.rs
CARRIED = ["deploy/gpu-check.sh", "deploy/gpu_check.py", "deploy/gpu_parity.py",
           "benches/compare/compare.py", "benches/compare/pytorch_dcgan.py",
           "benches/compare/bench64.toml", JOB, "tests/data/mnist"]
LARGEST_PACK = 64 << 20

# Several ranks of NCCL on one GPU: each is told that it is a machine of its own.
ONE_GPU = {
    "CUDA_VISIBLE_DEVICES": "0", "NCCL_SOCKET_IFNAME": "lo", "NCCL_NET": "Socket",
    "NCCL_IB_DISABLE": "1", "NCCL_MNNVL_ENABLE": "0", "NCCL_NVLS_ENABLE": "0",
    "NCCL_MAX_CTAS": "1", "NCCL_ALGO": "Ring", "NCCL_PROTO": "Simple",
}


def fail(text: str) -> NoReturn:
    sys.exit(f"gpu-check: {text}")


class Bad(Exception):
    """Why a row fails."""


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Bad(otherwise)


class Process:
    """A child with a log file; it never outlives its row."""

    def __init__(self, command: List[str], log: Path, environment: Dict[str, str]) -> None:
        self.log = log
        with open(log, "w") as output:
            self.child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT,
                                          stdin=subprocess.DEVNULL, env=environment,
                                          start_new_session=True)
        self.name = Path(command[0]).name

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self) -> None:
        """Kills it, and what it has started."""
        if self.child.poll() is None:
            try:
                os.killpg(self.child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.child.wait()


def last_lines(text: str, count: int = 3) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-count:])[-600:]


class Check:
    """What all rows share."""

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        self.args, self.scratch = args, scratch
        self.rehearse: bool = args.rehearse
        self.device = "cpu" if self.rehearse else "cuda:0"
        self.environment = dict(os.environ)
        self.processes: List[Process] = []
        self.deadline = 0.0
        self.jobs = 0
        self.ranks_said: Dict[int, str] = {}
        self.facts: Dict[str, object] = {}
        if self.rehearse:
            self.folder = args.binaries or ROOT / "target/debug"
            self.stand_in = self.folder / "examples/libnccl_stand_in.so"
            self.environment.update(GAN_TRANSPORT="nccl", GAN_NCCL_LIBRARY=str(self.stand_in))
        else:
            carried = (ROOT / "bin/gan-worker").is_file()
            self.folder = args.binaries or (ROOT / "bin" if carried else ROOT / "target/release")
            if carried:
                paths = [libraries_of(args.python), os.environ.get("LD_LIBRARY_PATH")]
                self.environment["LD_LIBRARY_PATH"] = ":".join(filter(None, paths))

    # --- processes ---------------------------------------------------------------------------

    def program(self, name: str) -> str:
        path = self.folder / name
        require(path.is_file(), f"{path} is missing: build it, or `deploy/gpu-check.sh --pack DIR`")
        return str(path)

    def left(self) -> float:
        left = self.deadline - time.monotonic()
        require(left > 0, "it takes too long")
        return left

    def start(self, command: List[str], log: str, **more: str) -> Process:
        process = Process(command, self.scratch / log, dict(self.environment, **more))
        self.processes.append(process)
        return process

    def wait(self, process: Process, codes: List[int] = [0]) -> str:
        """Until it ends; what it has said."""
        try:
            code = process.child.wait(self.left())
        except subprocess.TimeoutExpired:
            raise Bad(f"{process.name} does not end: {last_lines(process.text())}") from None
        require(code in codes, f"{process.name} ended with {code}: {last_lines(process.text())}")
        return process.text()

    def run(self, command: List[str], log: str, codes: List[int] = [0], **more: str) -> str:
        return self.wait(self.start(command, log, **more), codes)

    def ask(self, command: List[str]) -> str:
        """What it prints, its log lines left aside."""
        done = subprocess.run(command, env=self.environment, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, timeout=self.left())
        require(done.returncode == 0,
                f"{Path(command[0]).name} {command[1]} ended with {done.returncode}: {last_lines(done.stderr)}")
        return done.stdout

    def sleep(self) -> None:
        self.left()
        time.sleep(0.02)

    def end_all(self) -> None:
        for process in self.processes:
            process.end()
        self.processes.clear()

    # --- jobs ----------------------------------------------------------------------------------

    def job(self, settings: List[str], workers: int, job: Optional[Path] = None) -> "Job":
        self.jobs += 1
        return Job(self, f"job-{self.jobs}", settings, workers, job or ROOT / JOB)

    def digest(self, settings: List[str], workers: int = 1) -> str:
        """Of the last checkpoint of a job that runs to its end in peace."""
        job = self.job(settings, workers)
        job.finish()
        return job.digest()


class Job:
    """A coordinator and its workers, all on the one device."""

    def __init__(self, check: Check, name: str, settings: List[str], workers: int, file: Path) -> None:
        self.check, self.name = check, name
        self.run_dir = check.scratch / name
        settings = [f"data.shard_folder={check.scratch / 'shards'}", "train.ema_decay=0.9",
                    f"workers.min={workers}", *settings]
        command = [check.program("gan-coord"), "serve", str(file), "--listen", "127.0.0.1:0",
                   "--run-dir", str(self.run_dir)]
        for setting in settings:
            command += ["--set", setting]
        self.coordinator = check.start(command, f"{name}-coord.log")
        while not (said := re.search(r"listening on (\S+)", self.coordinator.text())):
            require(self.coordinator.child.poll() is None,
                    f"gan-coord ended: {last_lines(self.coordinator.text())}")
            check.sleep()
        self.url = f"http://{said.group(1)}"
        self.workers = []
        for _ in range(workers):
            self.add()

    def add(self) -> Process:
        rank = len(self.workers)
        command = [self.check.program("gan-worker"), "train", "--coordinator", self.url,
                   "--device", self.check.device, "--cores", "1", "--advertise", "127.0.0.1"]
        environment = {} if self.check.rehearse else dict(ONE_GPU, NCCL_HOSTID=f"{self.name}-{rank}")
        worker = self.check.start(command, f"{self.name}-worker-{rank}.log", **environment)
        self.workers.append(worker)
        return worker

    def records(self) -> List[Dict[str, float]]:
        try:
            lines = (self.run_dir / "metrics.jsonl").read_text().split("\n")[:-1]
        except FileNotFoundError:
            return []
        return [record for record in map(json.loads, lines) if "step" in record]

    def reach(self, step: int) -> None:
        while not any(record["step"] >= step for record in self.records()):
            require(self.coordinator.child.poll() is None,
                    f"the job ended before step {step}: {last_lines(self.coordinator.text())}")
            self.check.sleep()

    def finish(self) -> None:
        for worker in self.workers:
            if worker.child.poll() is None:
                # What gan-coord says when a job fails tells more than that a worker waits.
                while worker.child.poll() is None and self.coordinator.child.poll() is None:
                    self.check.sleep()
        self.check.wait(self.coordinator)
        for worker in self.workers:
            if worker.child.poll() != -signal.SIGKILL:
                self.check.wait(worker)

    def digest(self) -> str:
        folder = max((self.run_dir / "checkpoints").glob("step-*"))
        return self.check.ask([self.check.program("gan-worker"), "inspect", str(folder), "--digest"]).strip()

    def said(self, pattern: str) -> bool:
        """Whether all workers have said something like it."""
        return all(re.search(pattern, worker.text(), re.I) for worker in self.workers)

    def on_nccl(self) -> None:
        require(self.said("sums go over NCCL"), "a worker did not say that it uses NCCL: "
                f"{last_lines(self.workers[0].text(), 6)}")


def same(digests: Dict[str, str]) -> str:
    require(len(set(digests.values())) == 1,
            "digests differ: " + ", ".join(f"{name} {digest[:12]}" for name, digest in digests.items()))
    digest = next(iter(digests.values()))
    return f"{', '.join(digests)}: {digest[:16]}…"


# --- rows ------------------------------------------------------------------------------------------


def devices(check: Check) -> str:
    found = json.loads(check.ask([check.program("gan-worker"), "devices", "--json"]))
    nccl = found["nccl"]
    check.facts["devices"] = found
    require("version" in nccl, f"NCCL: {nccl.get('missing')}")
    if check.rehearse:
        return f"{found['cpu']['model']}; NCCL {nccl['version']}, stand-in: {nccl['stand_in']}"
    require(bool(found["gpus"]), f"no GPU: {found['driver']}")
    cuda = found["libtorch"]["cuda"]
    require(cuda.get("gpus", 0) > 0, f"libtorch sees no GPU: {cuda}")
    require(not nccl["stand_in"], "NCCL is the tests' stand-in")
    return f"{found['gpus'][0]['name']}; libtorch {found['libtorch']['version']}; NCCL {nccl['version']}"


def ranks_program(check: Check) -> str:
    if not check.rehearse and (check.folder / RANKS).is_file():
        return check.program(RANKS)
    require(not (ROOT / "bin").is_dir(), f"{ROOT / 'bin' / RANKS} is missing")
    return test_program(release=not check.rehearse)


def nccl_ranks(count: int) -> Callable[[Check], str]:
    def row(check: Check) -> str:
        command = [ranks_program(check), "--device", check.device, "--ranks", str(count)]
        if check.rehearse:
            command += ["--library", str(check.stand_in)]
        said = check.run(command, f"nccl-{count}.log", codes=[0, 1])
        check.ranks_said[count] = said
        good = re.findall(r"^ok +(.*)", said, re.M)
        bad = re.findall(r"^FAIL +(.*)", said, re.M)
        require(not bad, f"{len(bad)} of {len(bad) + len(good)}: {'; '.join(bad)[:400]}")
        require(bool(good), f"it checked nothing: {last_lines(said)}")
        return f"{len(good)} checks"
    return row


def abort_latency(check: Check) -> str:
    if 2 not in check.ranks_said:
        nccl_ranks(2)(check)
    lines = re.findall(r"^ok +(.*(?:abort|kill).*)", check.ranks_said[2], re.M | re.I)
    told = [line for line in lines if re.search(r"\d+(\.\d+)? *(ms|s|µs)\b", line)]
    require(bool(told), "nccl_ranks did not tell how long an abort took")
    return "; ".join(" ".join(line.split()) for line in told)


def world_sizes(counts: List[int], *settings: str) -> Callable[[Check], str]:
    """The same bits for so many workers, and others than without the settings."""
    def row(check: Check) -> str:
        digests = {}
        for workers in counts:
            job = check.job(list(settings), workers)
            job.finish()
            if workers > 1:
                job.on_nccl()
            digests[f"{workers} worker{'s' if workers > 1 else ''}"] = job.digest()
        told = same(digests)
        if settings:
            require(check.digest([]) not in digests.values(), f"{', '.join(settings)} has no effect")
        return told
    return row


def killed(check: Check) -> str:
    settings = ["train.steps=400", "checkpoint.every_steps=400", "sample.every_steps=0"]
    peace = check.digest(settings)
    job = check.job(settings, 2)
    job.reach(40)
    job.workers[1].end()
    at = max(record["step"] for record in job.records())
    # workers.min is 2: the job goes on when somebody takes the dead worker's place.
    job.add()
    job.finish()
    job.on_nccl()
    require(job.workers[1].child.returncode == -signal.SIGKILL, "the worker ended before it was killed")
    require(at < 400, "the worker was killed too late")
    return f"kill -9 near step {at:.0f}; " + same({"in peace": peace, "with a death and a join": job.digest()})


def variants(key: str, values: List[str], *settings: str, says: Optional[str] = None,
             never: Optional[str] = None) -> Callable[[Check], str]:
    """The same bits whatever a key says. On a GPU the worker must say `says` of the first value, and
    must not say `never`: that it does the same as with the second one."""
    def row(check: Check) -> str:
        digests = {}
        for value in values:
            job = check.job([f"{key}={value}", *settings], 1)
            job.finish()
            digests[f"{key}={value}"] = job.digest()
            if value == values[0] and not check.rehearse:
                told = last_lines(job.workers[0].text(), 6)
                require(says is None or job.said(says), f"the worker did not say {says!r}: {told}")
                require(never is None or not job.said(never), f"the worker said {never!r}: {told}")
        return same(digests)
    return row


def only_on_gpus(row: Callable[[Check], str], needle: str, *settings: str) -> Callable[[Check], str]:
    """`row`; in a rehearsal, that a CPU refuses it clearly."""
    def either(check: Check) -> str:
        if not check.rehearse:
            return row(check)
        job = check.job(list(settings), 1)
        worker = job.workers[0]
        while worker.child.poll() is None:
            check.sleep()
        require(worker.child.returncode != 0 and needle in worker.text(),
                f"a CPU should refuse it: {last_lines(worker.text())}")
        return f"rehearsed: a CPU refuses it ({last_lines(worker.text(), 1)[-160:]})"
    return either


def fast(check: Check) -> str:
    job = check.job(["train.reduction=fast"], 4)
    job.finish()
    job.on_nccl()
    losses = [record[key] for record in job.records() for key in ("loss_d", "loss_g")]
    exact = check.job([], 1)
    exact.finish()
    expected = [record[key] for record in exact.records() for key in ("loss_d", "loss_g")]
    apart = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
    require(apart < 1e-3, f"losses are {apart:.1e} from the exact reduction's")
    return f"ncclAllReduce: losses within {apart:.1e} of the exact reduction's"


def parity(precision: str) -> Callable[[Check], str]:
    def row(check: Check) -> str:
        images, side = 32, 32
        folder = check.scratch / "parity"
        folder.mkdir(exist_ok=True)
        # Blocks of grey, so that there is something to learn.
        noise = random.Random(5)
        pixels = bytearray()
        for _ in range(images):
            blocks = [[noise.randrange(256) for _ in range(4)] for _ in range(4)]
            pixels += bytes(blocks[y // 8][x // 8] for y in range(side) for x in range(side))
        (folder / "pixels").write_bytes(pixels)
        (folder / "images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x0803, images, side, side) + pixels)
        job = check.job([f"data.uri={folder / 'images-idx3-ubyte'}", "train.replicas=1",
                         f"train.batch={images}", "train.steps=6", f"train.precision={precision}",
                         "checkpoint.every_steps=1", "checkpoint.keep_last=99",
                         "sample.every_steps=0"], 1)
        job.finish()
        said = check.run([check.args.python, str(HERE / "gpu_parity.py"), str(job.run_dir),
                          str(folder / "pixels"), "--device", check.device, "--precision", precision,
                          "--seed", "7"], f"parity-{precision}.log", codes=[0, 1])
        found = re.search(r"^\{.*\}$", said, re.M)
        require(found is not None, f"no figures: {last_lines(said)}")
        told = json.loads(found.group(0))
        text = (f"{told['steps']} steps: losses within {told['loss']:.1e} (bound {told['loss_bound']:g}), "
                f"parameters within {told['weights']:.1e} (bound {told['weights_bound']:g})")
        require(told["loss"] <= told["loss_bound"] and told["weights"] <= told["weights_bound"], text)
        return text
    return row


def bench(batch: int) -> Callable[[Check], str]:
    def row(check: Check) -> str:
        told = []
        for precision in ("bf16",) if check.rehearse else ("bf16", "tf32"):
            settings = [f"train.batch={batch}", f"train.precision={precision}"]
            if check.rehearse:
                settings += ["train.batch=2", "model.generator_width=8", "model.discriminator_width=8"]
            command = [check.program("gan-worker"), "bench", "--device", check.device, "--json",
                       "--replicas", "1", "--steps", "3" if check.rehearse else "300",
                       "--warmup", "1" if check.rehearse else "30"]
            for setting in settings:
                command += ["--set", setting]
            found = json.loads(check.ask(command))
            check.facts[f"bench-{batch}-{precision}"] = found
            told.append(f"{precision}: {found['images_per_s']:.0f} images/s, "
                        f"{found['step']['whole_s'] * 1e3:.3f} ms a step, "
                        f"{found['arithmetic']['share']:.1%} of {found['arithmetic']['ceiling'] / 1e12:.1f} TFLOP/s, "
                        f"{found['traffic']['share']:.1%} of {found['traffic']['ceiling'] / 1e12:.2f} TB/s, "
                        f"{found['memory_bytes'] / 1e9:.2f} GB, first step {found['start']['first_step_s']:.2f} s")
        return "; ".join(told)
    return row


def compare(batch: int) -> Callable[[Check], str]:
    def row(check: Check) -> str:
        figures = check.scratch / f"compare-{batch}.json"
        command = [sys.executable, str(ROOT / "benches/compare/compare.py"), "--python", check.args.python,
                   "--binaries", str(check.folder), "--json", str(figures)]
        if check.rehearse:
            command += ["--pairs", "1", "--steps", "3", "--warmup", "1", "--width", "8",
                        "--cases", "alternating", "--execution", "eager"]
        else:
            command += ["--device", "cuda", "--pairs", "3", "--cases", f"batch-{batch}"]
        said = check.run(command, f"compare-{batch}.log")
        check.facts[f"compare-{batch}"] = said
        claims = [claim for case in json.loads(figures.read_text())["cases"].values() for claim in case["claims"]]
        text = "; ".join(
            f"{claim['ours']} / {claim['theirs']}{' (' + claim['execution'] + ')' if claim['execution'] else ''} "
            f"= {claim['ratio']:.2f}{' (goal %g)' % claim['goal'] if claim['goal'] else ''}" for claim in claims)
        # Debug programs and three steps show nothing but that the script runs.
        require(check.rehearse or all(claim["reached"] for claim in claims), text)
        return text
    return row


class Row(NamedTuple):
    name: str
    what: str
    limit: float  # seconds
    run: Callable[[Check], str]


PLAIN = ["checkpoint.every_steps=0", "sample.every_steps=0"]
TF32 = "train.precision=tf32"
ROWS = [
    Row("devices", "what the worker sees", 30, devices),
    Row("nccl-1", "exact reductions on NCCL, 1 rank", 60, nccl_ranks(1)),
    Row("nccl-2", "2 ranks on one GPU", 90, nccl_ranks(2)),
    Row("nccl-4", "4 ranks on one GPU", 120, nccl_ranks(4)),
    Row("abort", "abort latency", 90, abort_latency),
    Row("digests-alternating", "same digest for 1, 2, 4 workers", 90, world_sizes([1, 2, 4])),
    Row("digests-simultaneous", "same, simultaneous updates", 90,
        world_sizes([1, 2, 4], "train.update=simultaneous")),
    Row("digests-bf16", "same, bf16", 60, world_sizes([1, 2], "train.precision=bf16")),
    Row("digests-tf32", "same, TF32", 60, only_on_gpus(world_sizes([1, 2], TF32), "tf32", TF32)),
    Row("fast", "reduction = \"fast\" trains as exact does", 60, fast),
    Row("kill", "kill -9 of a worker, another joins: same digest", 120, killed),
    Row("graphs-alternating", "CUDA graphs or not: same digest", 60,
        variants("workers.cuda_graphs", ["true", "false"], *PLAIN, "train.steps=40", never="kernel by kernel")),
    Row("graphs-simultaneous", "same, simultaneous updates, bf16", 60,
        variants("workers.cuda_graphs", ["true", "false"], *PLAIN, "train.steps=40",
                 "train.update=simultaneous", "train.precision=bf16", never="kernel by kernel")),
    Row("cache", "data on the device or not: same digest", 60,
        variants("data.cache", ["device", "host"], *PLAIN, "train.steps=40",
                 says="samples lie on the device")),
    Row("parity-f32", "PyTorch goes on from a checkpoint, f32", 60, parity("f32")),
    Row("parity-bf16", "same, bf16", 60, parity("bf16")),
    Row("bench-128", "gan-worker bench, batch 128", 90, bench(128)),
    Row("bench-1024", "gan-worker bench, batch 1024", 90, bench(1024)),
    Row("compare-128", "against PyTorch, batch 128", 570, compare(128)),
    Row("compare-1024", "against PyTorch, batch 1024", 570, compare(1024)),
]


# --- packing ---------------------------------------------------------------------------------------


def libraries_of(python: str) -> str:
    """The folders of that Python's libtorch and of NVIDIA's libraries beside it."""
    program = ("import os, glob, torch; root = os.path.dirname(torch.__file__); "
               "print(':'.join([root + '/lib'] + sorted(glob.glob(os.path.dirname(root) + '/nvidia/*/lib'))))")
    done = subprocess.run([python, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        fail(f"{python} has no PyTorch ({last_lines(done.stderr, 1)}); name one that has with --python or PYTHON")
    return done.stdout.strip()


def test_program(release: bool) -> str:
    """The executable of tests/nccl_ranks.rs, built if need be."""
    command = [os.environ.get("CARGO", "cargo"), "test", "--locked", "--no-run", "--test", RANKS,
               "--message-format=json", *(["--release"] if release else [])]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in built.stdout.splitlines():
        message = json.loads(line) if line.startswith("{") else {}
        if message.get("executable") and message["target"]["name"] == RANKS:
            return message["executable"]
    raise Bad(f"`{' '.join(command[:6])}` makes no {RANKS}: {last_lines(built.stderr)}")


def pack(folder: Path) -> None:
    """Collects what another machine needs, in the layout of the repository."""
    cargo = os.environ.get("CARGO", "cargo")
    subprocess.run([cargo, "build", "--release", "--locked", "--bins"], cwd=ROOT, check=True)
    ranks = test_program(release=True)
    if folder.exists() and any(folder.iterdir()) and not (folder / "bin").is_dir():
        fail(f"{folder} holds something else; give --pack a new folder")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "bin").mkdir(parents=True)
    for source, name in [*((ROOT / "target/release" / name, name) for name in PROGRAMS), (ranks, RANKS)]:
        shutil.copy2(source, folder / "bin" / name)
        subprocess.run(["strip", str(folder / "bin" / name)], check=True)
    for name in CARRIED:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, target)
    (folder / "commit").write_text(commit() + "\n")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"gpu-check: {folder} has {size / 1e6:.1f} MB; there: deploy/gpu-check.sh")
    if size > LARGEST_PACK:
        fail(f"that is more than {LARGEST_PACK >> 20} MiB")


def commit() -> str:
    if (ROOT / "commit").is_file():
        return (ROOT / "commit").read_text().strip()
    told = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True)
    return told.stdout.strip() or "unknown"


# --- the table -------------------------------------------------------------------------------------


def described(check: Check) -> str:
    found = check.facts.get("devices")
    if found is None:
        check.deadline = time.monotonic() + 30
        try:
            found = json.loads(check.ask([check.program("gan-worker"), "devices", "--json"]))
        except (Bad, ValueError, OSError, subprocess.TimeoutExpired):
            return platform.platform()
    gpus = ", ".join(gpu["name"] for gpu in found["gpus"]) or "no GPU"
    driver = found["driver"].get("version") or "none"
    return (f"{gpus}; driver {driver}; {found['cpu']['model']}, {found['cpu']['cores']} cores; "
            f"libtorch {found['libtorch']['version']}; NCCL {found['nccl'].get('version', 'missing')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", help="with commas between them; a name stands for all that begin with it")
    parser.add_argument("--list", action="store_true", help="print the rows")
    parser.add_argument("--rehearse", action="store_true", help="on this CPU, with the stand-in for NCCL")
    parser.add_argument("--pack", type=Path, metavar="DIR", help="collect what another machine needs")
    parser.add_argument("--binaries", type=Path, metavar="DIR",
                        help="folder of the programs [default: bin, or cargo's]")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    parser.add_argument("--keep", action="store_true", help="leave the logs, and say where")
    parser.add_argument("--python", default=os.environ.get("PYTHON") or sys.executable,
                        help="a Python with PyTorch 2.11")
    args = parser.parse_args()
    if args.pack:
        pack(args.pack.resolve())
        return
    wanted = args.rows.split(",") if args.rows else [""]
    for name in wanted:
        if not any(row.name.startswith(name) for row in ROWS):
            parser.error(f"no row {name}: there are {', '.join(row.name for row in ROWS)}")
    rows = [row for row in ROWS if any(row.name.startswith(name) for name in wanted)]
    if args.list:
        for row in rows:
            print(f"{row.name:22} {row.limit:4.0f} s  {row.what}")
        return

    # A run that is told to go takes its processes with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    scratch = Path(tempfile.mkdtemp(prefix="gpu-check."))
    check = Check(args, scratch)
    lines, bad = [], 0
    try:
        for row in rows:
            began = time.monotonic()
            check.deadline = began + row.limit
            try:
                verdict, detail = "ok", row.run(check)
            except Bad as error:
                verdict, detail = "FAIL", str(error)
            except subprocess.TimeoutExpired:
                verdict, detail = "FAIL", "it takes too long"
            except Exception as error:  # a row that breaks is a row that fails
                verdict, detail = "FAIL", f"{type(error).__name__}: {error}"
            finally:
                check.end_all()
            bad += verdict == "FAIL"
            took = time.monotonic() - began
            detail = detail.replace("|", "/").replace("\n", " ")
            lines.append(f"| {row.name} | {row.what} | {verdict} | {took:.1f} s | {detail} |")
            print(f"{verdict:4} {row.name} ({took:.1f} s): {detail}", flush=True)
    finally:
        check.end_all()
        if args.keep:
            print(f"logs: {scratch}")
        else:
            shutil.rmtree(scratch, ignore_errors=True)
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    title = "Rehearsal of the GPU check on a CPU" if args.rehearse else "GPU check"
    table = [f"# {title}, {now}", "", f"{described(check)}. Commit {commit()}.", "",
             "| row | what | result | time | detail |", "|---|---|---|---|---|", *lines, "",
             f"{len(rows) - bad} of {len(rows)} rows are good."]
    for name, said in check.facts.items():
        if name.startswith("compare-"):
            table += ["", f"## {name}", "", str(said).strip()]
    text = "\n".join(table) + "\n"
    print("\n" + text)
    if args.out:
        args.out.write_text(text)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ngpu-check: interrupted")

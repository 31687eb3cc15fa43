"""A short training, watched by a real Prometheus: a coordinator, two workers, one of them killed and
replaced. Every wait has a deadline, and every process ends with this one."""

import json
import math
import re
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

import yaml

import promql

ROOT = Path(__file__).resolve().parent.parent.parent
RULES = ROOT / "deploy" / "prometheus"
PATIENCE = 120  # seconds, for anything
WINDOW = "30s"  # for $__rate_interval

# Points of a ring, so that a step takes milliseconds and an evaluation no feature extractor.
JOB = ROOT / "deploy" / "jobs" / "ring.toml"
SETTINGS = [
    "train.replicas=4", "train.batch=16", "train.epochs=1000000", "model.generator_width=32",
    "model.discriminator_width=16", "sample.every_steps=0", "checkpoint.every_steps=200",
    "checkpoint.keep_best=modes", "evaluate.every_steps=200", "evaluate.samples=1000",
    "guard.collapsed=warn",
]

Series = Dict[str, Any]
Problems = Iterator[str]


class Trouble(Exception):
    """Something did not come about; the text says what, and what was logged."""


class Process:
    """A child that logs to a file."""

    def __init__(self, command: List[str], log: Path):
        self.name = log.stem
        self.log = log
        with log.open("w") as file:
            self.child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file,
                                          stderr=subprocess.STDOUT)

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def said(self, pattern: str) -> str:
        """What the log has in the place of the pattern's group, once it has it."""
        def look() -> str:
            if self.child.poll() is not None:
                raise Trouble(f"{self.name} ended with {self.child.returncode}:\n{self.text()[-2000:]}")
            match = re.search(pattern, self.text())
            return match[1] if match else ""

        return wait(f"{self.name} to say {pattern!r}", look, self.text)

    def ended(self) -> int:
        try:
            return self.child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Trouble(f"{self.name} does not end:\n{self.text()[-2000:]}") from None

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()


def wait(what: str, holds: Callable[[], Any], told: Callable[[], str]) -> Any:
    until = time.monotonic() + PATIENCE
    while True:
        found = holds()
        if found:
            return found
        if time.monotonic() > until:
            raise Trouble(f"waited {PATIENCE} s for {what}:\n{told()[-2000:]}")
        time.sleep(0.1)


def fetch(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        # A query that is none: the body says why.
        return error.read().decode()


class Watched:
    """The training and its Prometheus, as a context."""

    def __init__(self, programs: Path, prometheus: Path):
        self.programs, self.prometheus = programs, prometheus
        self.processes: List[Process] = []
        self.scratch = tempfile.TemporaryDirectory(prefix="gan-monitoring-")
        self.place = Path(self.scratch.name)
        self.began = time.time()
        self.targets: Dict[str, List[str]] = {}
        self.url = self.coordinator = ""

    def __enter__(self) -> "Watched":
        return self

    def __exit__(self, *_: Any) -> None:
        for process in self.processes:
            process.kill()
        self.scratch.cleanup()

    def start(self, command: List[Any], name: str) -> Process:
        process = Process([str(word) for word in command], self.place / f"{name}.log")
        self.processes.append(process)
        return process

    # --- Prometheus -----------------------------------------------------------------------------

    def watch(self) -> None:
        """Starts Prometheus with the configuration of deploy/prometheus, but for the targets, which
        come from files, and the intervals."""
        configuration = yaml.safe_load((RULES / "prometheus.yml").read_text())
        configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        configuration["rule_files"] = [str(RULES / file) for file in configuration["rule_files"]]
        self.labels = {}
        for job in configuration["scrape_configs"]:
            self.labels[job["job_name"]] = job.pop("static_configs")[0]["labels"]
            job["file_sd_configs"] = [{"files": [str(self.place / f"{job['job_name']}.json")],
                                       "refresh_interval": "1s"}]
        file = self.place / "prometheus.yml"
        file.write_text(yaml.safe_dump(configuration))
        process = self.start([self.prometheus / "prometheus", f"--config.file={file}",
                              f"--storage.tsdb.path={self.place}/series",
                              "--web.listen-address=127.0.0.1:0"], "prometheus")
        self.url = "http://" + process.said(r'msg="Listening on" address=(\S+)')
        process.said("(Server is ready to receive web requests)")

    def scrape(self, job: str, address: str) -> None:
        """One target more."""
        self.targets.setdefault(job, []).append(address)
        written = self.place / "new.json"
        written.write_text(json.dumps([{"targets": self.targets[job], "labels": self.labels[job]}]))
        written.rename(self.place / f"{job}.json")

    def ask(self, path: str, **parameters: Any) -> Any:
        answer = json.loads(fetch(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"))
        if answer["status"] != "success":
            raise Trouble(f"{parameters}: {answer['error']}")
        return answer["data"]

    def now(self, expression: str) -> List[Series]:
        return numbers(self.ask("query", query=expression)["result"])

    def since(self, expression: str) -> List[Series]:
        """Second by second, since the training began."""
        return numbers(self.ask("query_range", query=expression, start=self.began, end=time.time(),
                                step="1s")["result"])

    def holds(self, expression: str) -> None:
        """Waits until there is such a series."""
        def told() -> str:
            return "\n".join(f"{process.name}: {process.text()[-500:]}" for process in self.processes)

        wait(f"Prometheus to see {expression}", lambda: self.now(expression), told)

    # --- the training ---------------------------------------------------------------------------

    def serve(self) -> str:
        """Starts the coordinator; where its metrics are."""
        settings = [*SETTINGS, f"data.shard_folder={self.place}/shards"]
        process = self.start(
            [self.programs / "gan-coord", "serve", JOB, "--listen", "127.0.0.1:0", "--metrics-listen",
             "127.0.0.1:0", "--run-dir", self.place / "run",
             *(word for setting in settings for word in ("--set", setting))], "gan-coord")
        self.coordinator = "http://" + process.said(r"listening on (\S+)")
        return process.said(r"metrics on http://(\S+)/metrics")

    def work(self, name: str, coordinator: str = "") -> Tuple[Process, str]:
        """Starts a worker; where its metrics are."""
        process = self.start(
            [self.programs / "gan-worker", "train", "--coordinator", coordinator or self.coordinator,
             "--device", "cpu", "--cores", "1", "--advertise", "127.0.0.1", "--metrics-listen",
             "127.0.0.1:0"], name)
        return process, process.said(r"metrics on http://(\S+)/metrics")

    def train(self) -> Dict[str, List[str]]:
        """All of it; what programs exported, by their names: first at the beginning, then later."""
        bodies: Dict[str, List[str]] = {"gan-coord": [], "gan-worker": []}
        self.watch()
        # A worker without a coordinator, so that nothing can have happened yet.
        alone, address = self.work("alone", "http://127.0.0.1:1")
        bodies["gan-worker"].append(body(address))
        alone.kill()
        self.began = time.time()
        coordinator = self.serve()
        bodies["gan-coord"].append(body(coordinator))
        self.scrape("gan-coord", coordinator)
        workers = []
        for name in ("first", "second"):
            process, address = self.work(name)
            self.scrape("gan-worker", address)
            workers.append((process, address))
        self.holds("sum(gan_coord_workers{state='training'}) == 2")
        self.holds("gan_evaluate_best_step > 0 and on (namespace) gan_checkpoint_bytes > 0")
        self.holds("count(count_over_time(gan_train_step[30s]) >= 3) == 2")
        bodies["gan-worker"] += [body(address) for _, address in workers]
        workers[1][0].kill()
        self.holds("sum(gan_coord_reconfigurations_total{cause='death'}) > 0")
        self.holds("ALERTS{alertname='GanglionFewerWorkers', alertstate='pending'}")
        process, address = self.work("third")
        self.scrape("gan-worker", address)
        workers[1] = (process, address)
        self.holds("sum(gan_coord_reconfigurations_total{cause='join'}) > 0 "
                   "and sum(gan_coord_workers{state='training'}) == 2")
        self.holds("count(count_over_time(gan_train_step[30s]) >= 3 and gan_train_step) == 2")
        self.holds("sum(gan_coord_workers_wanted) == 2 "
                   "unless on () ALERTS{alertname='GanglionFewerWorkers'}")
        bodies["gan-worker"] += [body(address) for _, address in workers]
        bodies["gan-coord"].append(body(coordinator))
        return bodies

    def stop(self) -> Problems:
        done = subprocess.run([self.programs / "gan-coord", "stop", "--coordinator",
                               self.coordinator], capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode != 0:
            yield f"gan-coord stop: {done.stderr.strip()}"
            return
        for process in self.processes:
            if process.name in ("gan-coord", "first", "third") and process.ended() != 0:
                yield f"{process.name} ended with {process.child.returncode}: {process.text()[-500:]}"


def body(address: str) -> str:
    text = fetch(f"http://{address}/metrics")
    if not text.strip():
        raise Trouble(f"http://{address}/metrics is empty")
    return text


def numbers(result: List[Series]) -> List[Series]:
    """The series with a number in them: 0 divided by 0 is an answer, and says nothing."""
    found = []
    for series in result:
        values = series.get("values") or [series["value"]]
        if any(not math.isnan(float(value)) for _, value in values):
            found.append(series)
    return found


# --- what Prometheus is asked -------------------------------------------------------------------


def answers(watched: Watched, queries: List[Tuple[str, Dict[str, Any]]]) -> Problems:
    """Each of a dashboard's queries has an answer, with the labels that its legend names."""
    for name, target in queries:
        elapsed = math.ceil(time.time() - watched.began)
        text = target["expr"].replace("$__rate_interval", WINDOW).replace("$__range", f"{elapsed}s")
        text = re.sub(r"\$(namespace|job|instance)\b", ".+", text)
        try:
            found = watched.now(text) if target.get("instant") else watched.since(text)
        except Trouble as trouble:
            yield f"{name}: {trouble}"
            continue
        if not found:
            yield f"{name} has no answer: {text}"
            continue
        legend = " ".join(target.get(key, "") for key in ("legendFormat", "titleFormat", "textFormat"))
        for label in promql.labels(legend):
            if not all(label in series["metric"] for series in found):
                yield f"{name}: its legend names {label}, which is no label of the answer"


def defined(watched: Watched, groups: List[Dict[str, Any]]) -> Problems:
    """There is what rules ask for, selector by selector; and what they record."""
    for rule in (rule for group in groups for rule in group["rules"]):
        name = rule.get("alert") or rule["record"]
        for selector in promql.selectors(rule["expr"]):
            if not watched.since(selector.text()):
                yield f"{name} asks for {selector.text()}, and there is none"
        if "record" in rule and not watched.since(rule["record"]):
            yield f"{name} has recorded nothing"


class Health(NamedTuple):
    """What Prometheus says of its own work."""

    groups: List[Dict[str, Any]]
    targets: List[Dict[str, Any]]  # without the killed worker

    def problems(self) -> Problems:
        for rule in (rule for group in self.groups for rule in group["rules"]):
            if rule["health"] != "ok":
                yield f"{rule['name']}: {rule['health']} {rule.get('lastError', '')}"
        for target in self.targets:
            if target["health"] != "up":
                yield f"{target['scrapeUrl']}: {target['lastError']}"


def health(watched: Watched) -> Health:
    _, killed, _ = watched.targets["gan-worker"]
    return Health(watched.ask("rules")["groups"],
                  [target for target in watched.ask("targets")["activeTargets"]
                   if target["labels"]["instance"] != killed])

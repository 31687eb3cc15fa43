"""Checks what watches a job, the dashboard, the rules and the metrics' table: `make monitoring-check`.

    1. the dashboard is as Grafana's linter wants it: dashboard.py
    2. each alert has its paragraph in the runbook, its tests, and metrics that exist: alerts.py
    3. promtool takes the configuration and the rules, and its tests of every alert pass
    4. the overlay `monitoring` brings the very same rules and dashboard to a cluster
    5. a real Prometheus watches a real coordinator and two workers through a short training, in which one
       is killed and replaced (training.py): what they export is what README.md's table tells, every query
       of the dashboard has an answer, and there is all that the rules ask for
    6. each of these notices a fault: spoils.py

The exit status is 0 if all of that holds. Tools come by deploy/tools.py; --bin names the folder of
gan-coord and gan-worker (default: target/debug). --write makes deploy/prometheus/prometheus-rule.yaml anew
from the rules, and does nothing else.
"""

import argparse
import copy
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set, Tuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))
import tools  # noqa: E402

sys.path.insert(0, str(tools.packages()))
import yaml  # noqa: E402

import alerts  # noqa: E402
import catalog  # noqa: E402
import dashboard  # noqa: E402
import spoils  # noqa: E402
import training  # noqa: E402
from alerts import Book  # noqa: E402

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "ganglion.json"
RESOURCE = PROMETHEUS / "prometheus-rule.yaml"
OVERLAY = ROOT / "deploy" / "kubernetes" / "overlays" / "monitoring"
RULES = [PROMETHEUS / "recording.yaml", PROMETHEUS / "alerts.yaml"]
TESTS = sorted((PROMETHEUS / "tests").glob("*.yaml"))
PATIENCE = 120

Problems = Iterator[str]


def groups() -> List[Dict[str, Any]]:
    return [group for file in RULES for group in yaml.safe_load(file.read_text())["groups"]]


# --- Kubernetes ---------------------------------------------------------------------------------


class Text(str):
    """Text of several lines, which YAML has as a block."""


yaml.SafeDumper.add_representer(
    Text, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|"))


def resource() -> str:
    """The rules as an object for the Prometheus operator."""
    rules = groups()
    for rule in (rule for group in rules for rule in group["rules"]):
        if "\n" in rule["expr"]:
            rule["expr"] = Text(rule["expr"])
    made = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule",
            "metadata": {"name": "gan-rules", "labels": {"app.kubernetes.io/part-of": "ganglion"}},
            "spec": {"groups": rules}}
    return ("# Made of recording.yaml and alerts.yaml by `python3 deploy/monitoring/check.py --write`.\n"
            + yaml.safe_dump(made, sort_keys=False, width=110, allow_unicode=True))


def kubernetes(documents: List[Dict[str, Any]]) -> Problems:
    rules = [one["spec"] for one in documents if one["kind"] == "PrometheusRule"]
    if rules != [{"groups": groups()}]:
        yield ("the overlay's PrometheusRule has other rules than deploy/prometheus: run "
               "python3 deploy/monitoring/check.py --write")
    maps = [one for one in documents if one["kind"] == "ConfigMap"
            and one["metadata"].get("labels", {}).get("grafana_dashboard") == "1"]
    if [one["data"] for one in maps] != [{DASHBOARD.name: DASHBOARD.read_text()}]:
        yield f"the overlay has no ConfigMap that brings {DASHBOARD.name} to Grafana"


def overlay() -> List[Dict[str, Any]]:
    done = subprocess.run([str(tools.kubectl()), "kustomize", str(OVERLAY)], capture_output=True,
                          text=True, timeout=PATIENCE)
    if done.returncode != 0:
        sys.exit(f"monitoring-check: {OVERLAY.name} can't be rendered: {done.stderr.strip()}")
    return [document for document in yaml.safe_load_all(done.stdout) if document]


# --- promtool -----------------------------------------------------------------------------------


def promtool(*arguments: Any, text: str = "") -> Tuple[int, str]:
    done = subprocess.run([str(tools.prometheus() / "promtool"), *map(str, arguments)], input=text,
                          capture_output=True, text=True, timeout=PATIENCE)
    return done.returncode, done.stdout + done.stderr


def accepted() -> Problems:
    for arguments in (["check", "config", PROMETHEUS / "prometheus.yml"],
                      ["check", "rules", *RULES], ["test", "rules", *TESTS]):
        code, said = promtool(*arguments)
        if code != 0:
            yield f"promtool {' '.join(map(str, arguments[:2]))}: {said}"


def failing(changed: List[Dict[str, Any]]) -> Set[Tuple[str, int]]:
    """The tests that fail with other rules: alerts, and seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        (place / "tests").mkdir()
        (place / RULES[0].name).write_text(yaml.safe_dump({"groups": changed}))
        (place / RULES[1].name).write_text("groups: []\n")
        for file in TESTS:
            (place / "tests" / file.name).write_text(file.read_text())
        _, said = promtool("test", "rules", *sorted((place / "tests").iterdir()))
    return {(name, seconds(at)) for name, at in re.findall(r"alertname: (\w+), time: (\w+)", said)}


def seconds(text: str) -> int:
    return sum(int(count) * {"h": 3600, "m": 60, "s": 1}[unit]
               for count, unit in re.findall(r"(\d+)([hms])", text))


def blind(book: Book) -> Problems:
    """Alerts whose tests would pass if they never fired, always, or without a delay."""
    fires, silent = set(), set()
    for file in book.tests:
        for case in (case for test in file["tests"] for case in test["alert_rule_test"]):
            (fires if case["exp_alerts"] else silent).add(
                (case["alertname"], seconds(case["eval_time"])))
    hasty = {alert["alert"] for alert in book.alerts() if "for" in alert}
    for how, cases in (("never", fires), ("always", silent), ("at once", None)):
        changed = copy.deepcopy(book.groups)
        for rule in (rule for group in changed for rule in group["rules"] if "alert" in rule):
            if how != "at once":
                rule["expr"] = "vector(1) > 2" if how == "never" else "vector(1)"
            rule.pop("for", None)
        found = failing(changed)
        missed = (hasty - {name for name, _ in found} if cases is None
                  else {name for name, _ in cases - found})
        for name in sorted(missed):
            yield f"the tests don't notice if {name} fires {how}"


# --- metrics ------------------------------------------------------------------------------------


def metrics(readme: str, bodies: Dict[str, List[str]]) -> Problems:
    """Of each program's bodies the first is from its beginning."""
    table = catalog.table(readme)
    for program, texts in bodies.items():
        scraped = [catalog.exported(text) for text in texts]
        found = {problem for one in scraped for problem in catalog.compare(table, program, one)}
        yield from sorted(found)
        yield from catalog.begins(table, program, scraped[0])
        merged: Dict[str, catalog.Exported] = {}
        for one in scraped:
            merged.update({name: metric for name, metric in one.items() if metric.series})
        yield from catalog.whole(table, program, merged)


def linted(bodies: Dict[str, List[str]]) -> Problems:
    for program, texts in bodies.items():
        for text in texts:
            _, said = promtool("check", "metrics", text=text)
            for line in said.splitlines():
                # D is the discriminator, and no day.
                if not re.match(r"gan_train_d_\w+ metric names should not contain abbrev", line):
                    yield f"{program}: promtool check metrics: {line}"


# --- faults -------------------------------------------------------------------------------------


class Faults:
    """How many were planted, and which were not noticed."""

    def __init__(self) -> None:
        self.count = 0
        self.missed: List[str] = []

    def plant(self, spoil: spoils.Spoil, noticed: bool) -> None:
        self.count += 1
        if not noticed:
            self.missed.append(f"{spoil.check} does not notice: {spoil.what}")

    def dashboard(self, whole: Dict[str, Any], table: Dict[str, catalog.Metric]) -> None:
        for spoil in spoils.DASHBOARD:
            broken = copy.deepcopy(whole)
            spoil.do(broken)
            rule = getattr(dashboard, spoil.check)
            self.plant(spoil, bool(set(rule(broken, table)) - set(rule(whole, table))))

    def book(self, whole: Book) -> None:
        for spoil in spoils.BOOK:
            broken = {"groups": copy.deepcopy(whole.groups), "tests": copy.deepcopy(whole.tests),
                      "runbook": whole.runbook}
            spoil.do(broken)
            rule = getattr(alerts, spoil.check)
            found = rule(whole._replace(**broken))
            self.plant(spoil, bool(set(found) - set(rule(whole))))

    def table(self, readme: str, bodies: Dict[str, List[str]]) -> None:
        before = set(metrics(readme, bodies))
        for spoil in spoils.TABLE:
            broken = spoil.do(readme)
            assert broken != readme, spoil.what
            self.plant(spoil, bool(set(metrics(broken, bodies)) - before))

    def live(self, watched: training.Watched, whole: Dict[str, Any], book: Book) -> None:
        for spoil in spoils.ANSWERS:
            broken = copy.deepcopy(whole)
            spoil.do(broken)
            changed = [(name, query) for name, query in dashboard.queries(broken)
                       if (name, query) not in dashboard.queries(whole)]
            self.plant(spoil, any(True for _ in training.answers(watched, changed)))
        for spoil in spoils.DEFINED:
            broken = copy.deepcopy(book.groups)
            spoil.do(broken)
            changed = [{"rules": [rule for rule in group["rules"] if rule not in book.rules()]}
                       for group in broken]
            self.plant(spoil, any(True for _ in training.defined(watched, changed)))

    def health(self, whole: training.Health) -> None:
        for spoil in spoils.HEALTH:
            broken = copy.deepcopy(whole)
            spoil.do(broken)
            self.plant(spoil, len(list(broken.problems())) > len(list(whole.problems())))

    def overlay(self, whole: List[Dict[str, Any]]) -> None:
        for spoil in spoils.OVERLAY:
            broken = copy.deepcopy(whole)
            spoil.do(broken)
            self.plant(spoil, len(list(kubernetes(broken))) > len(list(kubernetes(whole))))

    def unchecked(self) -> Problems:
        planted = {spoil.check for spoil in [*spoils.DASHBOARD, *spoils.BOOK]}
        for rule in [*dashboard.RULES, *alerts.RULES]:
            if rule.__name__ not in planted:
                yield f"nothing breaks the rule {rule.__name__}"


class Report:
    """One line a check."""

    def __init__(self) -> None:
        self.passed = self.failed = 0

    def tell(self, name: str, what: str, problems: Problems) -> None:
        found = list(problems)
        self.passed, self.failed = self.passed + (not found), self.failed + bool(found)
        print(f"{name:<12} {what:<44} {'BAD' if found else 'good'}", flush=True)
        for problem in found:
            print(f"    {problem}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=ROOT / "target" / "debug", metavar="DIR",
                        help="where gan-coord and gan-worker are")
    parser.add_argument("--write", action="store_true", help=f"make {RESOURCE.name} anew")
    options = parser.parse_args()
    if options.write:
        RESOURCE.write_text(resource())
        return
    for name in catalog.PROGRAMS:
        if not (options.bin / name).is_file():
            sys.exit(f"monitoring-check: there is no {options.bin / name}; build it (cargo build)")
    readme = (ROOT / "README.md").read_text()
    try:
        table = catalog.table(readme)
    except ValueError as error:
        sys.exit(f"monitoring-check: README.md's table of metrics can't be read: {error}")
    whole = json.loads(DASHBOARD.read_text())
    book = Book(groups(), (ROOT / alerts.RUNBOOK).read_text(),
                [yaml.safe_load(file.read_text()) for file in TESTS], table)
    queries = dashboard.queries(whole)

    report, faults = Report(), Faults()
    report.tell("dashboard", f"{len(dashboard.panels(whole))} panels, as the linter wants them",
                (problem for rule in dashboard.RULES for problem in rule(whole, table)))
    report.tell("rules", f"{len(book.alerts())} alerts, {len(book.recorded())} records",
                (problem for rule in alerts.RULES for problem in rule(book)))
    report.tell("promtool", "configuration, rules, tests", accepted())
    rendered = overlay()
    report.tell("kubernetes", "the same rules and dashboard", kubernetes(rendered))
    try:
        with training.Watched(options.bin, tools.prometheus()) as watched:
            bodies = watched.train()
            report.tell("metrics", f"{len(table)}, as README.md has them", metrics(readme, bodies))
            report.tell("", "promtool check metrics", linted(bodies))
            report.tell("answers", f"to {len(queries)} queries of the dashboard",
                        training.answers(watched, queries))
            report.tell("", "to what the rules ask", training.defined(watched, book.groups))
            health = training.health(watched)
            report.tell("", f"{len(health.targets)} targets' scrapes, every rule", health.problems())
            faults.health(health)
            faults.live(watched, whole, book)
            report.tell("training", "ended as it was told to", watched.stop())
    except training.Trouble as trouble:
        report.tell("training", "", iter([str(trouble)]))
    else:
        faults.table(readme, bodies)
    faults.dashboard(whole, table)
    faults.book(book)
    faults.overlay(rendered)
    noticed = f"{faults.count - len(faults.missed)} of {faults.count} noticed"
    report.tell("faults", noticed, iter([*faults.missed, *faults.unchecked()]))
    report.tell("", "alerts that fire never, always, at once", blind(book))
    print(f"monitoring-check: {report.passed} passed, {report.failed} failed")
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    main()

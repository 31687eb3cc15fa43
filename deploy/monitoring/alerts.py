"""PURE. What must hold of the rules of deploy/prometheus, their runbook and their tests: files in,
sentences out. Whether the expressions mean what they should, promtool's tests say, and whether there is
anything that they ask for, training.py's Prometheus."""

import re
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Set

import catalog
import promql
from catalog import Metric

Document = Dict[str, Any]
Problems = Iterator[str]

RUNBOOK = "deploy/prometheus/runbook.md"
# What somebody has to be told of.
WANTED = {"GanglionStalled", "GanglionNonFinite", "GanglionCollapsed", "GanglionCheckpointStale",
          "GanglionDataStarved", "GanglionStraggler", "GanglionFewerWorkers",
          "GanglionGenerationChurn", "GanglionTargetDown"}
# Prometheus' own.
OTHERS = {"up"}


class Book(NamedTuple):
    """Everything about alerts."""

    groups: List[Document]
    runbook: str
    tests: List[Document]  # promtool's
    metrics: Dict[str, Metric]

    def rules(self) -> List[Document]:
        return [rule for group in self.groups for rule in group["rules"]]

    def alerts(self) -> List[Document]:
        return [rule for rule in self.rules() if "alert" in rule]

    def recorded(self) -> Set[str]:
        return {rule["record"] for rule in self.rules() if "record" in rule}


def title(rule: Document) -> str:
    return rule.get("alert") or rule["record"]


def names(book: Book) -> Problems:
    found = [title(rule) for rule in book.rules()]
    for name in sorted(set(found)):
        if found.count(name) > 1:
            yield f"{name} is there {found.count(name)} times"
    for rule in book.rules():
        pattern = r"Ganglion[A-Z]\w+" if "alert" in rule else r"(namespace|instance):\w+:\w+"
        if not re.fullmatch(pattern, title(rule)):
            yield f"{title(rule)} is not named as the others are"
    for name in sorted(WANTED - set(found)):
        yield f"there is no alert {name}"


def told(book: Book) -> Problems:
    """What comes with an alert, and that the runbook tells more."""
    paragraphs = {}
    for section in re.split(r"(?m)^## ", book.runbook)[1:]:
        heading, _, text = section.partition("\n")
        paragraphs[heading.strip()] = text.strip()
    for alert in book.alerts():
        name, notes = alert["alert"], alert.get("annotations", {})
        if alert.get("labels", {}).get("severity") not in ("critical", "warning"):
            yield f"{name} says not how severe it is"
        for note in ("summary", "description"):
            if not notes.get(note, "").endswith("."):
                yield f"{name} has no {note}"
        if notes.get("runbook") != f"{RUNBOOK}#{name.lower()}":
            yield f"{name} leads to {notes.get('runbook')}, expected {RUNBOOK}#{name.lower()}"
        if len(paragraphs.get(name, "")) < 100:
            yield f"{name}: {RUNBOOK} has no paragraph for it"
    for name in sorted(set(paragraphs) - {alert["alert"] for alert in book.alerts()}):
        yield f"{RUNBOOK} tells of {name}, which is no alert"


def tested(book: Book) -> Problems:
    cases = [case for file in book.tests for test in file["tests"]
             for case in test.get("alert_rule_test", [])]
    for name in (alert["alert"] for alert in book.alerts()):
        fires = [bool(case.get("exp_alerts")) for case in cases if case["alertname"] == name]
        if set(fires) != {True, False}:
            yield f"{name} has no test in which it fires, and one in which it doesn't"


def expressions(book: Book) -> Problems:
    for rule in book.rules():
        found = promql.selectors(rule["expr"])
        if not found:
            yield f"{title(rule)} asks for nothing"
        for selector in found:
            series = f"{title(rule)}: {selector.name}"
            if selector.name in OTHERS | book.recorded():
                continue
            kind = catalog.kind(book.metrics, selector.name)
            rated = selector.function in ("rate", "increase")
            if not kind:
                yield f"{series} is nothing that is exported or recorded"
            elif rated != (kind != "gauge"):
                yield f"{series} is a {kind}, within {selector.function or 'no function'}"


RULES: List[Callable[[Book], Problems]] = [names, told, tested, expressions]

"""PURE. The table of metrics in the README, and what programs export, side by side."""

import re
from typing import Dict, Iterator, List, NamedTuple, Set, Tuple

Problems = Iterator[str]

PROGRAMS = ("gan-coord", "gan-worker")
UNITS = ("seconds", "bytes")
# What a histogram's series end in.
PARTS = ("_bucket", "_sum", "_count")


class Metric(NamedTuple):
    """A row of the table."""

    kind: str
    unit: str
    label: str  # empty if it has none
    values: Tuple[str, ...]  # of the label; empty if they are not fixed
    programs: Tuple[str, ...]
    help: str


class Exported(NamedTuple):
    """A metric as a program exports it."""

    kind: str
    help: str
    series: List[Tuple[str, Dict[str, str], float]]  # name, labels, value


def table(readme: str) -> Dict[str, Metric]:
    rows = readme.split("<!-- metrics -->\n")[1].split("<!-- /metrics -->")[0].splitlines()
    if rows[0] != "| metric | type | unit | labels | exported by | meaning |":
        raise ValueError(f"its columns are {rows[0]}")
    found = {}
    for row in rows[2:]:
        name, kind, unit, label, by, meaning = (cell.strip() for cell in row.strip("|").split("|"))
        match = re.fullmatch(r"`(\w+)`(?:: (.+))?", label)
        values = tuple((match[2] or "").split(", ")) if match and match[2] else ()
        found[name.strip("`")] = Metric(kind, unit, match[1] if match else "", values,
                                        PROGRAMS if by == "both" else (by,), meaning)
    return found


def kind(metrics: Dict[str, Metric], series: str) -> str:
    """Of the metric that a series belongs to: its type, or nothing if there is none."""
    if series in metrics:
        return metrics[series].kind if metrics[series].kind != "histogram" else ""
    for part in PARTS:
        if series.endswith(part) and series[:-len(part)] in metrics:
            base = metrics[series[:-len(part)]].kind
            return "histogram" if base == "histogram" else ""
    return ""


def exported(body: str) -> Dict[str, Exported]:
    """What a scrape's body says."""
    helps: Dict[str, str] = {}
    found: Dict[str, Exported] = {}
    for line in body.splitlines():
        words = line.split(" ", 3)
        if line.startswith("# HELP "):
            helps[words[2]] = words[3]
        elif line.startswith("# TYPE "):
            found[words[2]] = Exported(words[3], helps.get(words[2], ""), [])
        elif line and not line.startswith("#"):
            match = re.fullmatch(r"(\w+)(?:{(.*)})? (\S+)", line)
            if match is None:
                raise ValueError(f"a scrape has the line {line!r}")
            name, labels, value = match.groups()
            pairs = dict(re.findall(r'(\w+)="((?:\\.|[^"\\])*)"', labels or ""))
            base = next((name[:-len(part)] for part in PARTS
                         if name.endswith(part) and name[:-len(part)] in found), name)
            if base not in found:
                raise ValueError(f"{name} has no type")
            found[base].series.append((name, pairs, float(value)))
    return found


def compare(metrics: Dict[str, Metric], program: str, found: Dict[str, Exported]) -> Problems:
    """What a program exports is in the table, and as the table has it."""
    for name, one in found.items():
        if name not in metrics:
            yield f"{program} exports {name}, of which README.md doesn't tell"
            continue
        row = metrics[name]
        if program not in row.programs:
            yield f"{program} exports {name}, and by README.md {' and '.join(row.programs)}"
        if one.kind != row.kind:
            yield f"{name} is a {one.kind}, and by README.md a {row.kind}"
        if one.help != row.help:
            yield f"{name}: {one.help!r}, and by README.md {row.help!r}"
        for series, labels, _ in one.series:
            own = {label: value for label, value in labels.items() if label != "le"}
            if set(own) != ({row.label} if row.label else set()):
                yield f"{series} has the labels {sorted(own)}, and by README.md {row.label!r}"
            elif row.values and not set(own.values()) <= set(row.values):
                yield f"{series}: README.md doesn't tell of {own}"
            if (one.kind == "histogram") != any(series.endswith(part) for part in PARTS):
                yield f"{series} is no series of a {one.kind}"
    for name, row in metrics.items():
        for unit in UNITS:
            if (f"_{unit}" in name) != (row.unit == unit):
                yield f"{name} is named as if its unit were another one than {row.unit!r}"


def begins(metrics: Dict[str, Metric], program: str, found: Dict[str, Exported]) -> Problems:
    """Before anything has happened: each series of a counter is there and 0, and of a histogram."""
    for name, row in metrics.items():
        if program not in row.programs or row.kind == "gauge":
            continue
        series = found[name].series if name in found else []
        there: Set[str] = {labels.get(row.label, "") for _, labels, _ in series}
        if not there >= set(row.values or ("",)):
            yield f"{name} begins with {sorted(there)}, expected {list(row.values)}"
        if any(value != 0 for _, _, value in series):
            yield f"{name} does not begin with 0"


def whole(metrics: Dict[str, Metric], program: str, found: Dict[str, Exported]) -> Problems:
    """After a training with everything in it: what the table has is exported."""
    for name, row in metrics.items():
        if program in row.programs and not (name in found and found[name].series):
            yield f"{program} does not export {name}"

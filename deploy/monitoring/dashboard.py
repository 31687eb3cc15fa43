"""PURE. What must hold of deploy/grafana/ganglion.json, by Grafana's linter and the issue: a dashboard
in, sentences out. Whether its queries are answered, training.py's Prometheus says."""

import re
from typing import Any, Callable, Dict, Iterator, List, Tuple

import catalog
import promql
from catalog import Metric

Document = Dict[str, Any]
Problems = Iterator[str]

ROWS = ["Overview", "Training", "Communication", "Data", "Elasticity", "Workers", "Checkpoints"]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Of Grafana's units, those that Ganglion's metrics can have.
UNITS = {"none", "short", "s", "bytes", "Bps", "cps", "percentunit"}
# What every series of a query is chosen by.
CHOSEN = {name: ("=~", f"${name}") for name in ("namespace", "job", "instance")}
WINDOWS = {"$__rate_interval", "$__range"}
COLUMNS = 24


def panels(dashboard: Document) -> List[Document]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries(dashboard: Document) -> List[Tuple[str, Document]]:
    """Each query and what it is called: of panels, then of annotations."""
    found = [(f"{panel.get('title')}/{target.get('refId')}", target)
             for panel in panels(dashboard) for target in panel.get("targets", [])]
    found += [(f"annotation {one['name']}", one) for one in dashboard["annotations"]["list"]]
    return found


def identity(dashboard: Document, _: Dict[str, Metric]) -> Problems:
    if dashboard.get("id", "") is not None:
        yield "its id is Grafana's to choose: null"
    if not re.fullmatch(r"[a-z0-9-]{1,40}", str(dashboard.get("uid"))):
        yield f"its uid is to be fixed, and is {dashboard.get('uid')!r}"
    if not 39 <= dashboard.get("schemaVersion", 0) <= 42:
        yield f"schemaVersion {dashboard.get('schemaVersion')}, expected 39 to 42"
    if dashboard.get("editable") is not False:
        yield "it can be edited, and the next one to lay it out would undo that"
    if not dashboard.get("title") or not dashboard.get("description"):
        yield "it has no title or description"


def ids(dashboard: Document, _: Dict[str, Metric]) -> Problems:
    seen: Dict[Any, str] = {}
    for panel in dashboard["panels"]:
        number, title = panel.get("id"), panel.get("title")
        if not isinstance(number, int) or number < 1:
            yield f"{title}: its id is {number!r}"
        elif number in seen:
            yield f"{title} and {seen[number]} have one id, {number}"
        seen[number] = title


def places(dashboard: Document, _: Dict[str, Metric]) -> Problems:
    taken: Dict[Tuple[int, int], str] = {}
    for panel in dashboard["panels"]:
        title, place = panel.get("title"), panel["gridPos"]
        if place["x"] < 0 or place["w"] < 1 or place["h"] < 1 or place["x"] + place["w"] > COLUMNS:
            yield f"{title} is not within {COLUMNS} columns: {place}"
        cells = [(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])]
        under = {taken[cell] for cell in cells if cell in taken}
        if under:
            yield f"{title} lies over {', '.join(sorted(under))}"
        taken.update({cell: title for cell in cells})


def rows(dashboard: Document, _: Dict[str, Metric]) -> Problems:
    kinds = [panel["type"] for panel in dashboard["panels"]]
    titles = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    if titles != ROWS:
        yield f"its rows are {titles}, expected {ROWS}"
    for kind, next_, panel in zip(kinds, [*kinds[1:], "row"], dashboard["panels"]):
        if kind == next_ == "row":
            yield f"row {panel['title']} has no panels"
    heights = [panel["gridPos"]["y"] for panel in dashboard["panels"]]
    if heights != sorted(heights):
        yield "panels are not in the order in which they are seen, so some are in another row"


def words(dashboard: Document, _: Dict[str, Metric]) -> Problems:
    for panel in panels(dashboard):
        title = panel.get("title")
        if not title or len(panel.get("description", "")) < 10:
            yield f"panel {panel.get('id')} ({title!r}) has no title or no description"
        unit = panel.get("fieldConfig", {}).get("defaults", {}).get("unit")
        if unit not in UNITS:
            yield f"{title}: its unit is {unit!r}"


def sources(dashboard: Document, _: Dict[str, Metric]) -> Problems:
    for owner in [*panels(dashboard), *dashboard["annotations"]["list"],
                  *(variable for variable in dashboard["templating"]["list"]
                    if variable["type"] == "query")]:
        if owner.get("datasource") != SOURCE:
            yield f"{owner.get('title', owner.get('name'))}: its data source is not ${{datasource}}"
    for name, target in queries(dashboard):
        if target.get("datasource", SOURCE) != SOURCE:
            yield f"{name}: its data source is not ${{datasource}}"


def variables(dashboard: Document, _: Dict[str, Metric]) -> Problems:
    found = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    source = found.get("datasource", {})
    if (source.get("type"), source.get("query")) != ("datasource", "prometheus"):
        yield "there is no variable for the data source"
    for name in CHOSEN:
        variable = found.get(name, {})
        asked = variable.get("query", {}).get("query", "")
        if variable.get("type") != "query" or not re.fullmatch(rf"label_values\(.+, {name}\)", asked):
            yield f"the variable {name} does not ask for the label"
        # A job outside Kubernetes may have no namespace.
        everything = ".*" if name == "namespace" else ".+"
        if (variable.get("includeAll"), variable.get("multi"), variable.get("allValue")) != (
                True, True, everything):
            yield f"the variable {name} can't be all, or several"


def targets(dashboard: Document, metrics: Dict[str, Metric]) -> Problems:
    for panel in panels(dashboard):
        references = [target.get("refId") for target in panel.get("targets", [])]
        if not references or len(set(references)) != len(references) or None in references:
            yield f"{panel.get('title')}: its queries are called {references}"
    for name, target in queries(dashboard):
        found = promql.selectors(target.get("expr", ""))
        if not found:
            yield f"{name} asks for nothing"
        for selector in found:
            series = f"{name}: {selector.name}"
            kind = catalog.kind(metrics, selector.name)
            if not kind:
                yield f"{series} is no metric of Ganglion's"
            if not CHOSEN.items() <= selector.matchers.items():
                yield f"{series} is not chosen by {', '.join(CHOSEN)}"
            rated = selector.function in ("rate", "increase")
            if kind in ("counter", "histogram") and not rated:
                yield f"{series} is a {kind}, and only its rate or increase says anything"
            if kind == "gauge" and rated:
                yield f"{series} is a gauge, and has no rate"
            if selector.window and selector.window not in WINDOWS:
                yield f"{series} looks back over [{selector.window}]"


def annotations(dashboard: Document, _: Dict[str, Metric]) -> Problems:
    marked = {selector.name for one in dashboard["annotations"]["list"] if one.get("enable")
              for selector in promql.selectors(one["expr"])}
    for metric in ("gan_coord_reconfigurations_total",
                   "gan_checkpoint_last_success_timestamp_seconds"):
        if metric not in marked:
            yield f"no annotation tells of {metric}"


RULES: List[Callable[[Document, Dict[str, Metric]], Problems]] = [
    identity, ids, places, rows, words, sources, variables, targets, annotations,
]

"""PURE. What an expression of Prometheus' language asks for: its selectors. No more of the language is
understood than that takes; whether an expression is one, promtool and Prometheus say."""

import re
from typing import Dict, List, NamedTuple, Optional, Tuple

TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|[A-Za-z_:][\w:]*|[=!]~|!=|\d[\w.]*|\S')
NAME = re.compile(r"[A-Za-z_:][\w:]*")
# Words before a list of labels.
LISTS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
WORDS = {"and", "or", "unless", "offset", "bool", "inf", "nan"}
AGGREGATIONS = {"sum", "min", "max", "avg", "group", "stddev", "stdvar", "count", "count_values",
                "bottomk", "topk", "quantile"}


class Selector(NamedTuple):
    """Series that an expression asks for."""

    name: str
    matchers: Dict[str, Tuple[str, str]]  # by label: operator and value
    window: Optional[str]  # what stands in brackets
    function: Optional[str]  # whose argument it is

    def text(self) -> str:
        """As a query of its own, without a window."""
        inner = ", ".join(f'{label}{how}"{value}"' for label, (how, value) in self.matchers.items())
        return f"{self.name}{{{inner}}}" if inner else self.name


def selectors(expression: str) -> List[Selector]:
    tokens = TOKEN.findall(expression)
    found: List[Selector] = []
    functions: List[Optional[str]] = []
    before, at = "", 0
    while at < len(tokens):
        token = tokens[at]
        at += 1
        following = tokens[at] if at < len(tokens) else ""
        if token == "(":
            functions.append(before if NAME.fullmatch(before) else None)
        elif token == ")":
            functions = functions[:-1]
        elif token.lower() in LISTS:
            if following == "(":
                at = tokens.index(")", at) + 1
            # What an aggregation is of may stand after its labels.
            token = before
        elif NAME.fullmatch(token) and not (
                following == "(" or token.lower() in WORDS | AGGREGATIONS):
            matchers, window = {}, None
            if following == "{":
                end = tokens.index("}", at)
                inner = [word for word in tokens[at + 1:end] if word != ","]
                for label, how, value in zip(inner[::3], inner[1::3], inner[2::3]):
                    matchers[label] = (how, value[1:-1])
                at = end + 1
            if at < len(tokens) and tokens[at] == "[":
                end = tokens.index("]", at)
                window = "".join(tokens[at + 1:end])
                at = end + 1
            found.append(Selector(token, matchers, window, functions[-1] if functions else None))
        elif token == "offset":
            at += 1
        before = token
    return found


def labels(legend: str) -> List[str]:
    """The labels that a legend names."""
    return re.findall(r"{{\s*(\w+)\s*}}", legend)

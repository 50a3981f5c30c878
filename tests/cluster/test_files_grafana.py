"""The Grafana dashboard: panels that do not overlap, over metrics that exist."""

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from jobs.runners.metrics import COUNTERS, GAUGES
from tests.test_house import ROOT

DASHBOARD = json.loads((ROOT / "cluster" / "grafana" / "captioning.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]

#: Words of PromQL that are not followed by a bracket.
OPERATORS = {"or", "and", "unless", "bool"}


def expressions() -> list[tuple[str, str]]:
    """Each query, with its panel's title."""
    found = [(panel["title"], target["expr"]) for panel in PANELS for target in panel.get("targets", [])]
    variables = [each for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    return found + [(f"${each['name']}", each["query"]["query"]) for each in variables]


def metrics(expression: str) -> set[str]:
    """The metrics of a query: its names that are neither a function, nor an operator, nor a label, nor text."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\b(by|on|without|group_left)\s*\([^)]*\)", "", bare)
    bare = re.sub(r"label_values\((\w+)[^)]*\)", r"\1", bare)
    bare = re.sub(r"\{[^}]*\}", "", bare)
    bare = re.sub(r"\[[^\]]*\]", "", bare)
    return set(re.findall(r"\b[a-zA-Z_]\w*\b(?!\s*\()", bare)) - OPERATORS


def known() -> set[str]:
    """The metrics that Ray's nodes, its autoscaler and Ray Data export, and those of runs."""
    import ray.dashboard.modules.reporter.reporter_agent as reporter
    from ray.dashboard.modules.metrics.dashboards import data_dashboard_panels, default_dashboard_panels

    texts = [Path(module.__file__).read_text() for module in (data_dashboard_panels, default_dashboard_panels)]
    used = {name for text in texts for name in re.findall(r"\b(?:ray|autoscaler)_\w+", text)}
    ours = {f"ray_{name}_total" for name in COUNTERS} | {f"ray_{name}" for name in GAUGES}
    return {f"ray_{name}" for name in reporter.METRICS_GAUGES} | used | ours


def test_it_imports_into_any_grafana() -> None:
    assert DASHBOARD["uid"] == "captioning"
    assert DASHBOARD["title"]
    assert DASHBOARD.get("id") is None
    assert DASHBOARD["schemaVersion"] >= 30
    sources = {json.dumps(panel["datasource"], sort_keys=True) for panel in PANELS if panel["type"] != "row"}
    assert sources == {'{"type": "prometheus", "uid": "${datasource}"}'}
    variables = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert variables[0] == "datasource"
    used = {name for _, text in expressions() for name in re.findall(r"\$\{?(\w+)", text)}
    used -= {"__rate_interval", "__range"}  # Grafana's own
    assert used <= set(variables)


@pytest.mark.parametrize(("title", "expression"), expressions(), ids=[title for title, _ in expressions()])
def test_queries_ask_for_metrics_that_there_are(title: str, expression: str) -> None:
    asked = metrics(expression)
    assert asked, title
    assert asked <= known(), asked - known()
    for opening, closing in ("()", "{}", "[]"):
        assert expression.count(opening) == expression.count(closing)


def test_stages_machines_and_gpus_are_shown() -> None:
    shown = set().union(*(metrics(expression) for _, expression in expressions()))
    assert {"ray_node_gpus_utilization", "ray_node_cpu_utilization", "autoscaler_active_nodes"} <= shown
    assert {"ray_captioning_images_total", "ray_captioning_errors_total", "ray_captioning_pending_images"} <= shown
    assert {"ray_data_num_task_outputs_generated", "ray_data_num_external_inqueue_blocks"} <= shown


def test_the_captioner_is_found_by_its_name() -> None:
    """Ray Data names an operator after the class that it runs."""
    from jobs.runners import pipeline

    [name] = {match for _, text in expressions() for match in re.findall(r'operator=~"\.\*(\w+)\.\*"', text)}
    assert name in Path(pipeline.__file__).read_text()


def test_a_query_for_something_else_would_be_found() -> None:
    assert metrics('sum(rate(ray_x_total{a=~"$b"}[$__rate_interval])) by (c) / on () vector(1)') == {"ray_x_total"}
    assert "ray_x_total" not in known()


def test_panels_have_ids_titles_and_something_to_say() -> None:
    assert max(Counter(panel["id"] for panel in PANELS).values()) == 1
    assert max(Counter(panel["title"] for panel in PANELS).values()) == 1
    for panel in PANELS:
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0


def test_panels_lie_on_the_grid_side_by_side() -> None:
    places = [(panel["title"], *(panel["gridPos"][key] for key in "xywh")) for panel in PANELS]
    for title, x, y, w, h in places:
        assert 0 <= x < x + w <= 24, title
        assert y >= 0 < h, title
    for (title, x, y, w, h), (other, x2, y2, w2, h2) in combinations(places, 2):
        apart = x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
        assert apart, f"{title} lies over {other}"

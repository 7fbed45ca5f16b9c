"""A study drawn with Plotly, for the report and for Optuna's dashboard alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10
from typing import Any

import plotly.graph_objects as go

from ranksearch.facts import StudyFacts, macs_under
from ranksearch.front import front
from ranksearch.importance import by_stage as sums_by_stage
from ranksearch.importance import importance
from ranksearch.palette import BLUE, GREEN, GREY, ORANGE, SEVERAL, SKY, SPEEDUP_TICKS
from ranksearch.plan import DENSE, LayerSpec
from ranksearch.records import TrialRecord
from ranksearch.review.plans import by_speedup, by_stage, completed, short

# Pixels of a layer's row.
ROW = 15


def _figure(height: int, x_title: str, y_title: str, **axes: Any) -> go.Figure:
    """An empty figure, without colours that would not go with a dark page."""
    plain = {"automargin": True, "zeroline": False}
    x, y = ({**plain, "title": title, **axes.pop(axis, {})} for axis, title in (("x", x_title), ("y", y_title)))
    figure = go.Figure(layout={"template": go.layout.Template(), "height": height, "xaxis": x, "yaxis": y, **axes})
    figure.update_layout(
        margin={"l": 50, "r": 20, "t": 30, "b": 45},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hoverlabel={"font": {"family": "monospace", "size": 11}, "align": "left"},
    )
    return figure


def front_figure(facts: StudyFacts, records: Sequence[TrialRecord], picked: int | None = None) -> go.Figure:
    """Validation accuracy against speedup: every trial, the front, the dense network, the budget, the picked trial."""
    done, counted = completed(records), facts.scale.name
    shown = [result.speedup for _, result in done] + [1.0, facts.speedup]
    ticks = [tick for tick in SPEEDUP_TICKS if tick <= 1.1 * max(shown)]
    x = {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}x" for tick in ticks]}
    figure = _figure(420, f"speedup in {counted}", "validation accuracy, %", x=x)
    for closed_form, symbol, label in ((True, "diamond", "closed form"), (False, "circle", "sampler")):
        some = [(record, result) for record, result in done if record.closed_form == closed_form]
        figure.add_scatter(
            x=[round(result.speedup, 4) for _, result in some],
            y=[round(100 * result.accuracy, 3) for _, result in some],
            customdata=[record.number for record, _ in some],
            text=["<br>".join(by_stage(facts, result.plan)) for _, result in some],
            hovertemplate="trial %{customdata}: %{y:.2f} % at %{x:.2f}x<br>%{text}<extra></extra>",
            mode="markers",
            marker={"symbol": symbol, "size": 9, "color": GREY, "line": {"width": 1, "color": "#666666"}},
            name=f"{label} ({len(some)})",
        )
    points = front(records)[::-1]
    figure.add_scatter(
        x=[round(point.result.speedup, 4) for point in points],
        y=[round(100 * point.result.accuracy, 3) for point in points],
        customdata=[point.number for point in points],
        line={"color": BLUE, "shape": "vh", "width": 2},
        marker={"size": 6},
        mode="lines+markers",
        hoverinfo="skip",
        name="front",
    )
    figure.add_scatter(
        x=[1],
        y=[round(100 * facts.accuracy, 3)],
        mode="markers",
        marker={"symbol": "square", "size": 12, "color": GREEN},
        hovertemplate="dense: %{y:.2f} %<extra></extra>",
        name=DENSE,
    )
    for record, result in done:
        if record.number == picked:
            figure.add_scatter(
                x=[result.speedup],
                y=[100 * result.accuracy],
                mode="markers",
                marker={"symbol": "star", "size": 16, "color": ORANGE},
                hoverinfo="skip",
                name="picked",
            )
    figure.add_vline(x=facts.speedup, line={"color": GREEN, "dash": "dash", "width": 1})
    said = {"text": f"budget {facts.speedup:g}x", "showarrow": False, "yref": "paper", "y": 0.02, "xanchor": "left"}
    figure.add_annotation(x=log10(facts.speedup), **said)  # as logarithmic axes want it, but for lines
    return figure


def heat_map(facts: StudyFacts, records: Sequence[TrialRecord]) -> go.Figure:
    """The share of its MACs that every layer keeps in every trial, trials by rising speedup."""
    done = by_speedup(records)
    kept, said = [], []
    for layer in facts.layers:
        choices = [result.plan.layers.get(layer.name) for _, result in done]
        kept.append([round(macs_under(layer, choice) / layer.dense_macs, 3) for choice in choices])
        said.append([short(choice) for choice in choices])
    x = {"type": "category", "tickangle": -90, "tickfont": {"size": 9}, "nticks": 60}
    y = {"autorange": "reversed", "tickfont": {"size": 10}, "dtick": 1, "type": "category"}
    figure = _figure(120 + ROW * len(facts.layers), "trial, by rising speedup", "", x=x, y=y)
    figure.add_heatmap(
        z=kept,
        x=[f"{record.number}" for record, _ in done],
        y=[layer.name for layer in facts.layers],
        text=said,
        customdata=[[f"{result.speedup:.2f}x" for _, result in done]] * len(facts.layers),
        hovertemplate="%{y}<br>trial %{x}, %{customdata}: %{text}, %{z:.0%} of its MACs<extra></extra>",
        colorscale="Cividis",
        zmin=0,
        zmax=1,
        colorbar={"title": "kept", "tickformat": ".0%", "thickness": 12},
    )
    return figure


def importance_figure(facts: StudyFacts, records: Sequence[TrialRecord]) -> go.Figure:
    """Each layer's share of the loss that trials were expected to have, the parts of the network in colours."""
    shares, stages = importance(facts, records), facts.stages()
    y = {"autorange": "reversed", "tickfont": {"size": 10}, "dtick": 1, "type": "category"}
    height = 120 + ROW * len(facts.layers)
    figure = _figure(height, "share of the expected loss, %", "", y=y, barmode="stack", showlegend=True)
    figure.update_layout(legend={"traceorder": "normal"})
    for index, (stage, sum_of) in enumerate(sums_by_stage(shares, stages).items()):
        names = [name for name in shares if stages[name] == stage]
        figure.add_bar(
            y=names,
            x=[round(100 * shares[name], 2) for name in names],
            orientation="h",
            marker={"color": SEVERAL[index % len(SEVERAL)]},
            hovertemplate="%{y}: %{x:.1f} %<extra></extra>",
            name=f"{stage} ({sum_of:.0%})",
        )
    return figure


def fine_tuning_figure(facts: StudyFacts, records: Sequence[TrialRecord]) -> go.Figure:
    """Validation accuracy after fine-tuning against before, trials coloured by speedup."""
    done = completed(records)
    figure = _figure(380, "before fine-tuning, %", f"after {facts.fine_tune_steps} steps, %")
    figure.add_scatter(
        x=[round(100 * result.accuracy_before, 3) for _, result in done],
        y=[round(100 * result.accuracy, 3) for _, result in done],
        customdata=[[record.number, round(result.speedup, 3)] for record, result in done],
        mode="markers",
        marker={
            "size": 9,
            "color": [round(result.speedup, 3) for _, result in done],
            "colorscale": "Cividis",
            "colorbar": {"title": "speedup", "ticksuffix": "x", "thickness": 12},
        },
        hovertemplate="trial %{customdata[0]} (%{customdata[1]}x): %{x:.2f} to %{y:.2f} %<extra></extra>",
        showlegend=False,
    )
    ends = [100 * value for _, result in done for value in (result.accuracy_before, result.accuracy)] or [0.0, 100.0]
    both = [min(ends), max(ends)]
    figure.add_scatter(x=both, y=both, mode="lines", line={"dash": "dot", "color": GREY}, hoverinfo="skip")
    figure.update_layout(showlegend=False)
    return figure


def history_figure(facts: StudyFacts, volumes: Sequence[float]) -> go.Figure:
    """How the front grew: its hypervolume after each trial."""
    figure = _figure(260, "trials", "hypervolume of the front", x={"rangemode": "tozero"})
    figure.add_scatter(
        x=list(range(1, len(volumes) + 1)),
        y=[round(volume, 5) for volume in volumes],
        line={"shape": "hv", "color": BLUE},
        hovertemplate="after %{x} trials: %{y:.4f}<extra></extra>",
    )
    return figure


def layers_figure(layers: Sequence[LayerSpec], title: str, of_dense: Sequence[float]) -> go.Figure:
    """Bars of the dense network's layers, with bars of a plan before them that the page fills in.

    Args:
        layers: from the top.
        title: of what the bars show.
        of_dense: the dense layers' bars.
    """
    y = {"autorange": "reversed", "tickfont": {"size": 10}, "dtick": 1, "type": "category"}
    figure = _figure(90 + ROW * len(layers), title, "", y=y, barmode="overlay", showlegend=False)
    names = [layer.name for layer in layers]
    figure.add_bar(y=names, x=list(of_dense), orientation="h", marker={"color": GREY, "opacity": 0.5}, name=DENSE)
    bars = {"color": [SKY] * len(names)}
    figure.add_bar(y=names, x=[0] * len(names), orientation="h", width=0.55, marker=bars, name="plan")
    figure.update_traces(hovertemplate="%{y}: %{x}<extra></extra>")
    return figure


def fronts_figure(fronts: Mapping[str, Mapping[str, Any]], counted: str) -> go.Figure:
    """The fronts of several studies over one another, with each one's dense network as a dotted line.

    Args:
        fronts: study -> what its `front.json` holds.
        counted: what the speedups are in.
    """
    speedups = [point["speedup"] for front in fronts.values() for point in front["points"]] or [1.0]
    ticks = [tick for tick in SPEEDUP_TICKS if tick <= 1.1 * max(speedups)]
    x = {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}x" for tick in ticks]}
    figure = _figure(460, f"speedup in {counted}", "validation accuracy, %", x=x)
    for index, (study, found) in enumerate(fronts.items()):
        color, points = SEVERAL[index % len(SEVERAL)], found["points"][::-1]
        dash = ("solid", "dash", "dot", "dashdot")[index // len(SEVERAL) % 4]
        figure.add_scatter(
            x=[point["speedup"] for point in points],
            y=[100 * point["accuracy"] for point in points],
            customdata=[point["trial"] for point in points],
            hovertemplate="%{fullData.name}<br>trial %{customdata}: %{y:.2f} % at %{x:.2f}x<extra></extra>",
            line={"color": color, "shape": "vh", "dash": dash},
            mode="lines+markers",
            name=study,
        )
        figure.add_hline(y=100 * found["dense"]["accuracy"], line={"color": color, "dash": "dot", "width": 1})
    figure.update_layout(showlegend=True, legend={"y": -0.2, "yanchor": "top"})
    return figure

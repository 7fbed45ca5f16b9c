"""Plotly figures of a study, for the report and for Optuna's dashboard."""

from collections.abc import Mapping, Sequence
from math import log10
from typing import Any

import plotly.graph_objects as go

from ranksearch.plan import DENSE, LayerSpec
from ranksearch.report.colors import BLUE, GREEN, GREY, ORANGE, SEVERAL, SKY, SPEEDUP_TICKS
from ranksearch.report.importance import by_stage as sums_by_stage
from ranksearch.report.importance import importance
from ranksearch.report.plan_text import by_stage, short
from ranksearch.results.metadata import StudyMetadata, layer_macs
from ranksearch.results.pareto import pareto_front
from ranksearch.results.trials import TrialRecord, by_speedup, feasible_trials

ROW = 15  # height of a layer's row, in pixels
LAYER_AXIS = {"autorange": "reversed", "tickfont": {"size": 10}, "dtick": 1, "type": "category"}


def _figure(height: int, x_title: str, y_title: str, **axes: Any) -> go.Figure:
    """Return an empty figure with a transparent background, for light and dark pages."""
    plain = {"automargin": True, "zeroline": False}
    x, y = ({**plain, "title": title, **axes.pop(axis, {})} for axis, title in (("x", x_title), ("y", y_title)))
    figure = go.Figure(layout={"template": go.layout.Template(), "height": height, "xaxis": x, "yaxis": y, **axes})
    margin, clear = {"l": 50, "r": 20, "t": 30, "b": 45}, "rgba(0,0,0,0)"
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    hover = {"font": {"family": "monospace", "size": 11}, "align": "left"}
    figure.update_layout(margin=margin, paper_bgcolor=clear, plot_bgcolor=clear, legend=legend, hoverlabel=hover)
    return figure


def _speedup_figure(height: int, counted: str, speedups: Sequence[float]) -> go.Figure:
    """Return an empty figure of validation accuracy against speedup, with ticks up to the highest speedup."""
    ticks = [tick for tick in SPEEDUP_TICKS if tick <= 1.1 * max(speedups)]
    x = {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}x" for tick in ticks]}
    return _figure(height, f"speedup in {counted}", "validation accuracy, %", x=x)


def front_figure(metadata: StudyMetadata, records: Sequence[TrialRecord], picked: int | None = None) -> go.Figure:
    """Plot validation accuracy against speedup: trials, front, dense network, budget and picked trial."""
    done = feasible_trials(records)
    shown = [trial.result.speedup for trial in done] + [1.0, metadata.speedup]
    figure = _speedup_figure(420, metadata.scale.name, shown)
    for closed_form, symbol, label in ((True, "diamond", "closed form"), (False, "circle", "sampler")):
        trials = [trial for trial in done if trial.closed_form == closed_form]
        figure.add_scatter(
            x=[round(trial.result.speedup, 4) for trial in trials],
            y=[round(100 * trial.result.accuracy, 3) for trial in trials],
            customdata=[trial.number for trial in trials],
            text=["<br>".join(by_stage(metadata, trial.result.plan)) for trial in trials],
            hovertemplate="trial %{customdata}: %{y:.2f} % at %{x:.2f}x<br>%{text}<extra></extra>",
            mode="markers",
            marker={"symbol": symbol, "size": 9, "color": GREY, "line": {"width": 1, "color": "#666666"}},
            name=f"{label} ({len(trials)})",
        )
    points = pareto_front(records)[::-1]
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
    marker, label = {"symbol": "square", "size": 12, "color": GREEN}, "dense: %{y:.2f} %<extra></extra>"
    y = [round(100 * metadata.accuracy, 3)]
    figure.add_scatter(x=[1], y=y, mode="markers", marker=marker, hovertemplate=label, name=DENSE)
    marker = {"symbol": "star", "size": 16, "color": ORANGE}
    for trial in done:
        if trial.number == picked:
            x, y = [trial.result.speedup], [100 * trial.result.accuracy]
            figure.add_scatter(x=x, y=y, mode="markers", marker=marker, hoverinfo="skip", name="picked")
    figure.add_vline(x=metadata.speedup, line={"color": GREEN, "dash": "dash", "width": 1})
    note = {"text": f"budget {metadata.speedup:g}x", "showarrow": False, "yref": "paper", "y": 0.02, "xanchor": "left"}
    figure.add_annotation(x=log10(metadata.speedup), **note)  # annotations, unlike lines, take the logarithm
    return figure


def heat_map(metadata: StudyMetadata, records: Sequence[TrialRecord]) -> go.Figure:
    """Plot the share of MACs that each layer keeps in each trial, trials by rising speedup."""
    done, kept, labels = by_speedup(records), [], []
    for layer in metadata.layers:
        choices = [trial.result.plan.layers.get(layer.name) for trial in done]
        kept.append([round(layer_macs(layer, choice) / layer.dense_macs, 3) for choice in choices])
        labels.append([short(choice) for choice in choices])
    x = {"type": "category", "tickangle": -90, "tickfont": {"size": 9}, "nticks": 60}
    figure = _figure(120 + ROW * len(metadata.layers), "trial, by rising speedup", "", x=x, y=LAYER_AXIS)
    figure.add_heatmap(
        z=kept,
        x=[f"{trial.number}" for trial in done],
        y=[layer.name for layer in metadata.layers],
        text=labels,
        customdata=[[f"{trial.result.speedup:.2f}x" for trial in done]] * len(metadata.layers),
        hovertemplate="%{y}<br>trial %{x}, %{customdata}: %{text}, %{z:.0%} of its MACs<extra></extra>",
        colorscale="Cividis",
        zmin=0,
        zmax=1,
        colorbar={"title": "kept", "tickformat": ".0%", "thickness": 12},
    )
    return figure


def importance_figure(metadata: StudyMetadata, records: Sequence[TrialRecord]) -> go.Figure:
    """Plot each layer's share of the trials' expected loss, coloured by stage of the network."""
    shares, stages = importance(metadata, records), metadata.stages()
    height = 120 + ROW * len(metadata.layers)
    figure = _figure(height, "share of the expected loss, %", "", y=LAYER_AXIS, barmode="stack", showlegend=True)
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


def fine_tuning_figure(metadata: StudyMetadata, records: Sequence[TrialRecord]) -> go.Figure:
    """Plot validation accuracy after fine-tuning against that before, trials coloured by speedup."""
    done = feasible_trials(records)
    speedups = [round(trial.result.speedup, 3) for trial in done]
    scale = {"title": "speedup", "ticksuffix": "x", "thickness": 12}
    figure = _figure(380, "before fine-tuning, %", f"after {metadata.fine_tune_steps} steps, %")
    figure.add_scatter(
        x=[round(100 * trial.result.accuracy_before, 3) for trial in done],
        y=[round(100 * trial.result.accuracy, 3) for trial in done],
        customdata=[[trial.number, speedup] for trial, speedup in zip(done, speedups, strict=True)],
        mode="markers",
        marker={"size": 9, "color": speedups, "colorscale": "Cividis", "colorbar": scale},
        hovertemplate="trial %{customdata[0]} (%{customdata[1]}x): %{x:.2f} to %{y:.2f} %<extra></extra>",
        showlegend=False,
    )
    results = [trial.result for trial in done]
    ends = [100 * value for result in results for value in (result.accuracy_before, result.accuracy)] or [0.0, 100.0]
    both = [min(ends), max(ends)]
    figure.add_scatter(x=both, y=both, mode="lines", line={"dash": "dot", "color": GREY}, hoverinfo="skip")
    figure.update_layout(showlegend=False)
    return figure


def history_figure(metadata: StudyMetadata, hypervolume_history: Sequence[float]) -> go.Figure:
    """Plot the hypervolume of the front after each trial."""
    figure = _figure(260, "trials", "hypervolume of the front", x={"rangemode": "tozero"})
    x, y = list(range(1, len(hypervolume_history) + 1)), [round(volume, 5) for volume in hypervolume_history]
    label = "after %{x} trials: %{y:.4f}<extra></extra>"
    figure.add_scatter(x=x, y=y, line={"shape": "hv", "color": BLUE}, hovertemplate=label)
    return figure


def layers_figure(layers: Sequence[LayerSpec], title: str, of_dense: Sequence[float]) -> go.Figure:
    """Plot bars of the dense network's layers, overlaid with a plan's bars that the page's script fills in."""
    figure = _figure(90 + ROW * len(layers), title, "", y=LAYER_AXIS, barmode="overlay", showlegend=False)
    names = [layer.name for layer in layers]
    figure.add_bar(y=names, x=list(of_dense), orientation="h", marker={"color": GREY, "opacity": 0.5}, name=DENSE)
    bars = {"color": [SKY] * len(names)}
    figure.add_bar(y=names, x=[0] * len(names), orientation="h", width=0.55, marker=bars, name="plan")
    figure.update_traces(hovertemplate="%{y}: %{x}<extra></extra>")
    return figure


def fronts_figure(fronts: Mapping[str, Mapping[str, Any]], counted: str) -> go.Figure:
    """Plot the fronts of several studies, by name, from their `front.json`, each with its dense accuracy."""
    speedups = [point["speedup"] for front in fronts.values() for point in front["points"]] or [1.0]
    figure = _speedup_figure(460, counted, speedups)
    for index, (study, front) in enumerate(fronts.items()):
        color, points = SEVERAL[index % len(SEVERAL)], front["points"][::-1]
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
        figure.add_hline(y=100 * front["dense"]["accuracy"], line={"color": color, "dash": "dot", "width": 1})
    figure.update_layout(showlegend=True, legend={"y": -0.2, "yanchor": "top"})
    return figure

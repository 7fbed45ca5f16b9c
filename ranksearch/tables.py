"""Tables of plans and profiles, for a terminal and for a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from ranksearch.plan import LayerProfile, RankPlan

# Header and rows of a table; the first two columns are text, the others numbers.
Rows = tuple[Sequence[str], list[Sequence[str]]]
TEXT_COLUMNS = 2
WIDEST = 200


def plan_rows(plan: RankPlan) -> Rows:
    """Return a row for each layer of a plan, and one for the network if its MACs are known."""
    details = plan.details
    if details is None:
        return ("layer", "scheme", "latent size"), [(n, c.scheme, str(c.latent_size)) for n, c in plan]
    header = ("layer", "scheme", "latent size", "M MACs", "factorized", "expected error")
    rows: list[Sequence[str]] = []
    for name, choice in plan:
        layer = details.layers[name]
        macs = _millions(layer.dense_macs), _millions(layer.macs)
        rows.append((name, choice.scheme, str(choice.latent_size), *macs, f"{layer.error:.2%}"))
    speedup = f"{details.dense_macs / max(1, details.macs):.2f}x fewer"
    rows.append(("whole network", speedup, "", _millions(details.dense_macs), _millions(details.macs), ""))
    return header, rows


def profile_rows(profile: LayerProfile) -> Rows:
    """Return a row for each layer of a profile, those that stay dense last."""
    rows: list[Sequence[str]] = []
    for spec in profile.layers:
        share = spec.dense_macs / profile.macs if profile.macs else 0.0
        size = f"{spec.in_size} -> {spec.out_size}"
        kernel = "x".join(map(str, spec.kernel_size)) if spec.kind != "linear" else ""
        rows.append((spec.name, " ".join(spec.schemes), size, kernel, _millions(spec.dense_macs), f"{share:.1%}"))
    for name, layer in profile.skipped.items():
        macs = _millions(layer.share * profile.macs)
        rows.append((name, f"dense: {layer.reason}", "", "", macs, f"{layer.share:.1%}"))
    rows.append(("whole network", "", "", "", _millions(profile.macs), ""))
    return ("layer", "schemes", "size", "kernel", "M MACs", "share"), rows


def _millions(macs: float) -> str:
    return f"{macs / 1e6:.2f}"


def as_text(rows: Rows) -> str:
    """Return a table as text, without colours."""
    from rich.console import Console

    console = Console(width=WIDEST, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(as_rich(rows))
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


def as_rich(rows: Rows) -> Table:
    """Return a table for a terminal."""
    from rich.table import Table

    header, body = rows
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, title in enumerate(header):
        table.add_column(title, justify="left" if index < TEXT_COLUMNS else "right", overflow="fold")
    for row in body:
        table.add_row(*row)
    return table


def as_html(rows: Rows) -> str:
    """Return a table for a notebook."""
    header, body = rows
    return "\n".join(_html_lines(header, body))


def _html_lines(header: Sequence[str], body: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "<table>"
    yield f"<thead><tr>{''.join(f'<th>{html.escape(title)}</th>' for title in header)}</tr></thead>"
    yield "<tbody>"
    for row in body:
        yield f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>"
    yield "</tbody>"
    yield "</table>"

"""A page that needs nothing but itself: figures, the library that draws them, and what a click shows."""

from __future__ import annotations

import gzip
from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from ranksearch.files import write_text


@cache
def _library() -> str:
    """Plotly's own code, compressed; browsers decompress it by themselves."""
    return b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def write_page(
    path: Path, template: str, title: str, figures: Mapping[str, go.Figure], study: Mapping[str, Any], **shown: Any
) -> None:
    """Write a page.

    Args:
        path: of the file.
        template: one of `templates/`.
        title: of the page.
        figures: id -> figure, each of which the template has a place for.
        study: what the page's script reads beside them, plain JSON values.
        shown: what the template shows.
    """
    loader = PackageLoader("ranksearch.review", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    drawn = {name: figure.to_plotly_json() for name, figure in figures.items()}
    content, library = {**study, "figures": drawn}, _library() if figures else ""
    page = environment.get_template(template).render(title=title, content=content, library=library, **shown)
    write_text(path, page.rstrip() + "\n")

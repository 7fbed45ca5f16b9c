"""Self-contained HTML pages: figures, the library that draws them, and the data that a click shows."""

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
    """Return Plotly's JavaScript, gzip-compressed and base64-encoded; browsers decompress it themselves."""
    return b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def write_page(
    path: Path, template: str, title: str, figures: Mapping[str, go.Figure], study: Mapping[str, Any], **shown: Any
) -> None:
    """Render a template to a self-contained HTML file.

    Args:
        path: path of the file.
        template: name of a template in `templates/`.
        title: title of the page.
        figures: id -> figure; the template has a place for each.
        study: further data for the page's script, plain JSON values.
        shown: further variables of the template.
    """
    loader = PackageLoader("ranksearch.report", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    drawn = {name: figure.to_plotly_json() for name, figure in figures.items()}
    content, library = {**study, "figures": drawn}, _library() if figures else ""
    page = environment.get_template(template).render(title=title, content=content, library=library, **shown)
    write_text(path, page.rstrip() + "\n")

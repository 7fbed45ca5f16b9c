"""A small picture of one plan, drawn in milliseconds: one goes to the dashboard with every trial."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ranksearch.facts import StudyFacts
from ranksearch.palette import BLACK, SCHEME_COLORS
from ranksearch.plan import DENSE
from ranksearch.review.plans import short
from ranksearch.trial import TrialResult

WIDTH, ROW, MARGIN, NAMES = 720, 16, 8, 250


def draw_plan(facts: StudyFacts, result: TrialResult, path: Path) -> None:
    """Draw for every layer its latent size, in its scheme's colour, before the dense layer's width.

    Args:
        facts: of the study.
        result: whose plan it is.
        path: of the PNG file.
    """
    layers = facts.layers
    image = Image.new("RGB", (WIDTH, 2 * ROW + MARGIN + ROW * len(layers) + MARGIN), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(11)
    said = f"{result.speedup:.2f}x in {facts.scale.name}, {result.accuracy:.2%} validation accuracy"
    pen.text((MARGIN, MARGIN), said, BLACK, font=ImageFont.load_default(13))
    across = MARGIN
    for scheme, color in SCHEME_COLORS.items():
        pen.rectangle((across, MARGIN + ROW + 4, across + 9, MARGIN + ROW + 13), color)
        pen.text((across + 14, MARGIN + ROW + 2), scheme, BLACK, font=font)
        across += 90
    plan = result.plan.layers
    sizes = [plan[layer.name].latent_size if layer.name in plan else layer.out_size for layer in layers]
    unit = (WIDTH - NAMES - 90) / max(*sizes, *(layer.out_size for layer in layers))
    for row, (layer, size) in enumerate(zip(layers, sizes, strict=True)):
        top, choice = 2 * ROW + 2 * MARGIN + ROW * row, plan.get(layer.name)
        scheme = DENSE if choice is None else choice.scheme
        pen.text((MARGIN, top), layer.name[-40:], BLACK, font=font)
        pen.rectangle((NAMES, top + 2, NAMES + unit * layer.out_size, top + ROW - 4), "#E8E8E8")
        pen.rectangle((NAMES, top + 4, NAMES + max(unit * size, 1), top + ROW - 6), SCHEME_COLORS[scheme])
        pen.text(
            (NAMES + unit * max(layer.out_size, size) + 6, top),
            f"{short(choice)} of {layer.out_size}",
            BLACK,
            font=font,
        )
    image.save(path)

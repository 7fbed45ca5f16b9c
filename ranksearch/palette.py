"""The colours of all pictures: Okabe and Ito's, which people with any colour vision can tell apart."""

from __future__ import annotations

BLUE, ORANGE, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#B8B8B8", "#222222"
SKY, PURPLE, YELLOW = "#56B4E9", "#CC79A7", "#E69F00"
SEVERAL = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW)

DENSE = "dense"
# Scheme -> its colour; that of dense layers is seen on light and on dark ground.
SCHEME_COLORS = {"full": BLUE, "vertical": GREEN, "horizontal": SKY, "pointwise": PURPLE, DENSE: "#888888"}

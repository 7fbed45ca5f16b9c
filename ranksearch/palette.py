"""What all pictures have in common: colours that people with any colour vision can tell apart, and ticks."""

from __future__ import annotations

from ranksearch.plan import DENSE

# Okabe and Ito's.
BLUE, ORANGE, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#B8B8B8", "#222222"
SKY, PURPLE, YELLOW = "#56B4E9", "#CC79A7", "#E69F00"
SEVERAL = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW)

# Scheme -> its colour; that of dense layers is seen on light and on dark ground.
SCHEME_COLORS = {"full": BLUE, "vertical": GREEN, "horizontal": SKY, "pointwise": PURPLE, DENSE: "#888888"}

# Where a logarithmic axis of speedups is marked.
SPEEDUP_TICKS = (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)

"""Colours that remain distinguishable with any colour vision, and axis ticks, shared by all figures."""

from ranksearch.plan import DENSE

# Palette of Okabe and Ito.
BLUE, ORANGE, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#B8B8B8", "#222222"
SKY, PURPLE, YELLOW = "#56B4E9", "#CC79A7", "#E69F00"
SEVERAL = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW)

# Scheme -> colour; the grey of dense layers is visible on light and dark backgrounds.
SCHEME_COLORS = {"full": BLUE, "vertical": GREEN, "horizontal": SKY, "pointwise": PURPLE, DENSE: "#888888"}

# Ticks of logarithmic speedup axes.
SPEEDUP_TICKS = (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)

"""Data sets as three disjoint splits, and batches of them."""

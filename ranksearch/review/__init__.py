"""A study to look at: the report, the comparison of several, and what Optuna's dashboard shows of it."""

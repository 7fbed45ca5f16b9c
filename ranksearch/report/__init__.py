"""Reports: the report of a study, comparisons of several studies, and Optuna's dashboard."""

"""A study: made or continued, its trials, the trial that is finalized, the profile of a network."""

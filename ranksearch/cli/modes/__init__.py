"""One module for each value of ``mode``; its `prepare` makes every check, or raises UserError, and returns the work."""

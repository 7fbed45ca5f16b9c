"""What a plan may choose for each layer, and the constraint that it must meet."""

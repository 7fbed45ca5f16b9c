"""How a budget is split over layers, from errors that are expected before any trial."""

"""Samplers that propose only plans within the budget."""

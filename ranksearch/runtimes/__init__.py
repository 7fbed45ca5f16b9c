"""What executes the deployed network, and how it is timed."""

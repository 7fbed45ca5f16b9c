"""Training and fine-tuning of networks: recipes, one loop, the baseline."""

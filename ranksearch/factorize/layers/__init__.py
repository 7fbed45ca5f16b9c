"""The layers that take the place of dense ones: each a factor into the latent size, and one out of it."""

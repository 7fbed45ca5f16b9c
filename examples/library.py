"""A model made twice as fast in MACs, without a configuration or a study: python examples/library.py."""

import torch
from torchvision.models import resnet18

import ranksearch

model = resnet18(num_classes=10).eval()  # yours, with its trained weights
batches = [torch.randn(32, 3, 64, 64) for _ in range(4)]  # a few hundred of its training images; no labels
plan = ranksearch.find_plan(model, batches, speedup=2)
network = ranksearch.apply(plan, model, batches)  # a new model; fine-tune it as any other
print(f"{len(plan.layers)} layers of {type(network).__name__} factorized: {plan}")

"""A trained network made twice as fast in MACs, without a configuration or a study: python examples/library.py."""

import torch

import ranksearch
from ranksearch.models import cifar_resnet

model = cifar_resnet(depth=20, num_classes=10).eval()  # yours, with its trained weights
batches = [torch.randn(64, 3, 32, 32) for _ in range(4)]  # a few hundred training images, or their DataLoader
result = ranksearch.compress(model, batches, speedup=2)  # result.plan: scheme and latent size of each layer
network = result.network  # a new model: fine-tune it, save it, use it as any other
print(network)

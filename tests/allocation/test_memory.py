"""Memory that compression takes beside the model."""

from __future__ import annotations

import subprocess
import sys

import pytest
from runs import environment

SCRIPT = """
import resource, torch, ranksearch
from torchvision.models import resnet50
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
torch.manual_seed(0)
model, images = resnet50().eval(), torch.randn(96, 3, 224, 224).split(32)
with torch.no_grad():
    model(images[0])
before = peak()
ranksearch.compress(model, images, 2, progress=False)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compressing_a_resnet_50_at_224_takes_less_than_3_gib() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 3

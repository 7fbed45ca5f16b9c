"""What a run was made with: enough to make it again, or to say why another one differs."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ranksearch.datasets import Splits, length
from ranksearch.device import describe_device
from ranksearch.errors import DamagedError
from ranksearch.files import read_json

RUN_FORMAT = "ranksearch.run/1"
RUN_FILE = "run.json"
PACKAGES = ("ranksearch", "torch", "torchvision", "optuna", "hydra-core", "omegaconf", "numpy", "scikit-learn")
# Examples of each split that a data set is told apart by; the test split is told by its size alone.
EXAMPLES = 16


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Sixteen hex digits that stand for settings, plain JSON values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def run_record(
    settings: Mapping[str, Any], compared: Mapping[str, Any], splits: Splits, device: torch.device, seed: int
) -> dict[str, Any]:
    """Everything beside the trials that their figures depend on, as plain JSON values.

    Args:
        settings: of the run, interpolations left as they were written.
        compared: of these, what makes trials comparable.
        splits: the data; no test image is read.
        device: where it ran.
        seed: of weights, batches and the sampler.
    """
    return {
        "format": RUN_FORMAT,
        "versions": {"python": platform.python_version(), **_versions()},
        "git_revision": _git_revision(),
        "device": describe_device(device),
        "seed": seed,
        "settings": settings,
        "settings_hash": settings_hash(compared),
        "data": {
            "fingerprint": _fingerprint(splits, seed),
            "input_shape": list(splits.input_shape),
            "num_classes": splits.num_classes,
            **{name: length(getattr(splits, name)) for name in ("train", "validation", "test")},
        },
    }


def read_run(folder: Path) -> dict[str, Any] | None:
    """The record that the last run left in a study's folder; None where there is none that can be read."""
    try:
        found = read_json(folder / RUN_FILE)
    except (FileNotFoundError, DamagedError):
        return None
    return found if isinstance(found, dict) and found.get("format") == RUN_FORMAT else None


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a folder that is not installed
            continue
    return found | {"torch": torch.__version__}  # with its build


def _git_revision() -> str | None:
    """Of the checkout that ranksearch runs from, with ``+`` where files differ from it; None outside one."""
    home = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(home), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != home.parent:
            return None  # installed inside someone else's checkout
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _fingerprint(splits: Splits, seed: int) -> str:
    """A hash of a few examples of the training and the validation split, spread over each."""
    digest = hashlib.sha256()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of random augmentation
        for examples in (splits.train, splits.validation):
            total = length(examples)
            for index in range(min(EXAMPLES, total)):
                image, label = examples[index * total // min(EXAMPLES, total)]
                digest.update(image.cpu().contiguous().view(torch.uint8).numpy().tobytes())
                digest.update(str(int(label)).encode())
    return digest.hexdigest()[:16]

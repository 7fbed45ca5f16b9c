"""Provenance of a run: the versions, settings, device and data needed to reproduce it or to explain differences."""

import hashlib
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ranksearch.data.splits import Splits, length
from ranksearch.device import describe_device
from ranksearch.results.study_files import RUN_FORMAT, settings_hash

PACKAGES = ("ranksearch", "torch", "torchvision", "optuna", "hydra-core", "omegaconf", "numpy", "scikit-learn")
# Hashed examples of the training and validation splits each; of the test split, only the size is recorded.
EXAMPLES = 16


def run_record(
    settings: Mapping[str, Any], compared: Mapping[str, Any], splits: Splits, device: torch.device, seed: int
) -> dict[str, Any]:
    """Return everything besides the trials that their results depend on, as plain JSON values.

    Args:
        settings: settings of the run, with unresolved interpolations.
        compared: the subset of the settings that makes trials comparable.
        splits: the data; no test image is read.
        device: device of the run.
        seed: seed of weights, batches and the sampler.
    """
    sizes = {name: length(getattr(splits, name)) for name in ("train", "validation", "test")}
    data = {"input_shape": list(splits.input_shape), "num_classes": splits.num_classes, **sizes}
    return {
        "format": RUN_FORMAT,
        "versions": {"python": platform.python_version(), **_versions()},
        "git_revision": _git_revision(),
        "device": describe_device(device),
        "seed": seed,
        "settings": settings,
        "settings_hash": settings_hash(compared),
        "data": {"fingerprint": _fingerprint(splits, seed), **data},
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # run from a source folder that is not installed
            versions[name] = version(name)
    return versions | {"torch": torch.__version__}  # includes its build


def _git_revision() -> str | None:
    """Return the commit of ranksearch's checkout, with ``+`` if files differ from it; None outside one."""
    home = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        command = ["git", "-C", str(home), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != home.parent:
            return None  # installed inside another project's checkout
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _fingerprint(splits: Splits, seed: int) -> str:
    """Hash a few evenly spaced examples of the training and the validation split."""
    digest = hashlib.sha256()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # makes random augmentation reproducible
        for examples in (splits.train, splits.validation):
            total = length(examples)
            for index in range(min(EXAMPLES, total)):
                image, label = examples[index * total // min(EXAMPLES, total)]
                digest.update(image.cpu().contiguous().view(torch.uint8).numpy().tobytes())
                digest.update(str(int(label)).encode())
    return digest.hexdigest()[:16]

"""Shared pieces: a small trained network on real digits, and the context that a search of it starts from."""

from __future__ import annotations

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
if "PYTEST_XDIST_WORKER" in os.environ:  # one process for each core, so one thread for each process
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings
from servers import SERVERS, Server
from torch import nn

from ranksearch.cost.macs import MacsCost
from ranksearch.data.builtin import digits
from ranksearch.data.loaders import endless_batches
from ranksearch.data.splits import Splits
from ranksearch.models.cifar import cifar_resnet
from ranksearch.search_space.constraint import Constraint
from ranksearch.search_space.rules import SpaceSettings
from ranksearch.storage import sqlite
from ranksearch.study.context import SearchContext, SearchInputs, build_context, build_search_space
from ranksearch.study.settings import CalibrationSettings
from ranksearch.training.loop import train
from ranksearch.training.recipe import Recipe

if TYPE_CHECKING:
    from runs import Ran
    from studies import Searched

settings.register_profile("default", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("default")

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def splits() -> Splits:
    return digits(image_size=8, validation_share=0.2, test_share=0.2, split_seed=0)


@pytest.fixture(scope="session")
def trained(splits: Splits) -> nn.Module:
    """A ResNet-8, well above chance; tests must not change it."""
    torch.manual_seed(0)
    model = cifar_resnet(8, 10)
    train(model, endless_batches(splits.train, 64, CPU, seed=0), Recipe(steps=100))
    return model


@pytest.fixture(scope="session")
def base_context(splits: Splits, trained: nn.Module) -> SearchContext:
    space = build_search_space(trained, splits, SpaceSettings(), MacsCost(), CPU)
    budget = Constraint(1.5).budget(space)
    inputs = SearchInputs(trained, splits, space, budget, Recipe(2, learning_rate=0.01), 0, CPU)
    return build_context(inputs, CalibrationSettings(256, 64))


@pytest.fixture
def context(base_context: SearchContext) -> SearchContext:
    return dataclasses.replace(base_context)


@pytest.fixture(scope="session")
def searched(base_context: SearchContext, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """A study that was searched; tests must not change it, but for its pages."""
    from studies import search_small  # which imports what few tests need

    outputs = tmp_path_factory.mktemp("outputs")
    return search_small(base_context, outputs, sqlite(str(outputs / "ranksearch.db")))


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The folder of a run in a process of its own, and what it said; tests must not change it."""
    from runs import spawn  # which imports what few tests need

    folder = tmp_path_factory.mktemp("run")
    return folder, spawn(folder)


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """Gives the server of a kind, one for all tests, which a test may stop when it resumes it."""
    started: dict[str, Server] = {}

    def start(kind: str) -> Server:
        if sys.platform != "linux":
            pytest.skip("servers are held still and ended by way of /proc")
        if SERVERS[kind].programs() is None:
            pytest.skip(SERVERS[kind].missing)
        if kind not in started:
            folder = tmp_path_factory.mktemp(kind)
            for outer in (folder, *folder.parents):  # which the server's own user goes through
                if outer.owner() != "root" or outer.stat().st_mode & 0o005 != 0o005:
                    outer.chmod(outer.stat().st_mode | 0o055)
                if outer == Path(outer.anchor) or outer.name == "tmp":
                    break
            started[kind] = SERVERS[kind].start(folder / "server")
        return started[kind]

    yield start
    for server in started.values():
        with suppress(OSError, subprocess.CalledProcessError):  # a test that failed may have left it down
            server.stop()


@pytest.fixture(params=list(SERVERS))
def server(request: pytest.FixtureRequest, start_server: Callable[[str], Server]) -> Server:
    """A database server, of every kind in turn."""
    return start_server(request.param)

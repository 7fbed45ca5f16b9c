"""Batches of a split: one pass in order, or an endless stream in seeded random order."""

import re
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, Subset

from ranksearch.data.splits import Augment, Batch, Examples, held_tensors, length
from ranksearch.errors import UserError

# Last line of an exception in a worker process, which the data loader re-raises with the whole traceback.
RAISED = re.compile(r"(?:[\w.]+\.)?(?:DataError|UserError): (?P<message>.+)\Z", re.DOTALL)


def batches(
    examples: Examples, size: int, device: torch.device, workers: int = 0, limit: int | None = None
) -> Iterator[Batch]:
    """Iterate once over a split, in order.

    Args:
        examples: the split.
        size: batch size.
        device: device that the batches are moved to.
        workers: number of processes that prepare batches.
        limit: maximum number of examples, spread evenly over the split; None for all.

    Yields:
        Images `[B, C, H, W]` and labels `[B]`.
    """
    count = length(examples)
    if limit is not None and limit < count:
        examples = Subset(examples, [index * count // limit for index in range(limit)])
    yield from _loaded(_loader(examples, size, device, workers), device)


def draw(examples: Examples, count: int, device: torch.device, seed: int, workers: int = 0) -> Tensor:
    """Return inputs spread evenly over a split, shuffled by the seed.

    Args:
        examples: the split.
        count: number of inputs, limited by the size of the split.
        device: device that the inputs are moved to.
        seed: seed of the order.
        workers: number of processes that prepare batches.

    Returns:
        Inputs `[count, C, H, W]` in channels-last memory format, or `[count, ...]` for inputs of other shapes.
    """
    sampled = torch.cat([inputs for inputs, _ in batches(examples, 64, device, workers, limit=count)])
    order = torch.randperm(len(sampled), generator=torch.Generator().manual_seed(seed)).to(device)
    shuffled = sampled[order]
    return shuffled.contiguous(memory_format=torch.channels_last) if sampled.ndim == 4 else shuffled


def endless_batches(
    examples: Examples, size: int, device: torch.device, seed: int, workers: int = 0, augment: Augment | None = None
) -> Iterator[Batch]:
    """Iterate endlessly over a split, shuffled by the seed.

    The same seed yields the same batches, random crops included, for any number of workers. An incomplete last batch is
    dropped unless it is the only one.

    Args:
        examples: the split.
        size: batch size.
        device: device that the batches are moved to.
        seed: seed of the order and of random augmentation.
        workers: number of processes that prepare batches.
        augment: random augmentation of a batch of images; None for none.

    Yields:
        Inputs `[size, C, H, W]` and labels `[size]`.
    """
    generator, draws = (torch.Generator().manual_seed(seed) for _ in range(2))
    loader = _loader(examples, size, device, workers, generator)
    while True:
        for images, labels in _loaded(loader, device):
            yield (images if augment is None else augment(images, draws)), labels


def _loaded(loader: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Move batches to a device; errors of worker processes are reported in one line."""
    try:
        for images, labels in loader:
            images = images.to(device, non_blocking=True)
            if images.ndim == 4:
                images = images.contiguous(memory_format=torch.channels_last)
            yield images, labels.to(device, non_blocking=True)
    except UserError as error:
        raised = RAISED.search(str(error).strip())
        raise UserError(" ".join(raised["message"].split()) if raised else str(error)) from error


def _loader(
    examples: Examples, size: int, device: torch.device, workers: int, generator: torch.Generator | None = None
) -> Iterable[Batch]:
    """Return a loader of a split in order or, with a generator, in random order without an incomplete last batch."""
    order: Iterable[int] = range(length(examples))
    options: dict[str, Any] = {"batch_size": size, "generator": generator}
    if generator is not None:
        order = RandomSampler(cast(Sized, examples), generator=generator)
        options["drop_last"] = length(examples) >= size  # the only batch is kept
    held = held_tensors(examples)
    if held is None:
        options |= {"num_workers": workers, "pin_memory": device.type == "cuda"}
        return DataLoader(_Seeded(examples), sampler=_Seeds(order, generator), **options)
    # Examples held as tensors are indexed a batch at a time, with the same result.
    images, labels, rows = held

    def take(chosen: list[int]) -> Batch:
        index = torch.tensor(chosen, device=images.device)
        return images[index], labels[index]

    return DataLoader(rows, sampler=order, collate_fn=take, **options)  # type: ignore[arg-type]  # a list is a data set


class _Seeds(Sampler[tuple[int, int]]):
    """Sampler of (index, seed) pairs; the seeds derive from a generator's initial seed, or equal the indices."""

    def __init__(self, order: Iterable[int], generator: torch.Generator | None) -> None:
        self.order = order
        self.first = None if generator is None else generator.initial_seed()
        self.draws = torch.Generator().manual_seed(self.first or 0)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for index in self.order:
            yield index, index if self.first is None else int(torch.randint(2**31, (), generator=self.draws))

    def __len__(self) -> int:
        return len(cast(Sequence[int], self.order))


class _Seeded(Dataset[tuple[Any, Any]]):
    """Examples whose random transforms, such as crops, are seeded by a value passed with the index."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __getitem__(self, item: tuple[int, int]) -> tuple[Any, Any]:
        index, seed = item
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # seeds the CPU generator only
            return self.examples[index]

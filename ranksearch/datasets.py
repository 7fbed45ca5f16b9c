"""A data set as three disjoint splits, and batches of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, Subset, TensorDataset

from ranksearch.errors import UserError

Examples = Dataset[tuple[Any, Any]]
Batch = tuple[Tensor, Tensor]
# Changes a batch of images `[B, C, H, W]` at random, by draws from the generator, which is on the CPU.
Augment = Callable[[Tensor, torch.Generator], Tensor]

# A split up to this size is held on the device whose memory it takes.
HELD_BYTES = 2**30


@dataclass(frozen=True)
class Splits:
    """A data set, split once and for all.

    Attributes:
        train: to train, fine-tune and calibrate on.
        validation: to choose on.
        test: to report on, and for nothing else.
        num_classes: labels are 0 to ``num_classes - 1``.
        workers: processes that prepare batches; 0 prepares them in this one.
        augment: what becomes of the images of a batch before the network is trained on them; None leaves them.
    """

    train: Examples
    validation: Examples
    test: Examples
    num_classes: int
    workers: int = 0
    augment: Augment | None = None

    def __post_init__(self) -> None:
        for what, least in (("num_classes", 1), ("workers", 0)):
            value = getattr(self, what)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(
                    f"{what} {value!r} of the data set is out of range: give a whole number from {least} up"
                )
        if self.augment is not None and not callable(self.augment):
            raise UserError(f"augment {self.augment!r} of the data set cannot be called: give a function, or None")
        for name in ("train", "validation", "test"):
            examples = getattr(self, name)
            if length(examples) == 0:
                raise UserError(f"the {name} split is empty: give it examples")
            image = examples[0][0]
            if not isinstance(image, Tensor) or not image.is_floating_point():
                found = image.dtype if isinstance(image, Tensor) else type(image).__name__
                raise UserError(f"the images of the {name} split are {found}: give tensors of floats, [C, H, W]")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image, `[C, H, W]`."""
        return tuple(self.train[0][0].shape)


def length(examples: Examples) -> int:
    """Number of examples of a split."""
    return len(cast(Sized, examples))


def batches(
    examples: Examples, size: int, device: torch.device, workers: int = 0, limit: int | None = None
) -> Iterator[Batch]:
    """Go once through a split, in order.

    Args:
        examples: the split.
        size: examples of a batch.
        device: where the batches go.
        workers: processes that prepare batches.
        limit: examples at the most, spread evenly over the split; None for all.

    Yields:
        Images `[B, C, H, W]` and labels `[B]`.
    """
    count = length(examples)
    if limit is not None and limit < count:
        examples = Subset(examples, [index * count // limit for index in range(limit)])
    yield from _loaded(_loader(examples, range(length(examples)), size, device, workers), device)


def draw(examples: Examples, count: int, device: torch.device, seed: int, workers: int = 0) -> Tensor:
    """Inputs spread evenly over a split, in an order drawn by the seed.

    Args:
        examples: the split.
        count: how many; all, where there are fewer.
        device: where they go.
        seed: of the order.
        workers: processes that prepare them.

    Returns:
        `[count, C, H, W]`, channels last in memory, or `[count, ...]` for inputs of other axes.
    """
    found = torch.cat([inputs for inputs, _ in batches(examples, 64, device, workers, limit=count)])
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).to(device)
    shuffled = found[order]
    return shuffled.contiguous(memory_format=torch.channels_last) if found.ndim == 4 else shuffled


def endless_batches(
    examples: Examples,
    size: int,
    device: torch.device,
    seed: int,
    workers: int = 0,
    augment: Augment | None = None,
) -> Iterator[Batch]:
    """Go through a split again and again, shuffled by the seed.

    The same seed gives the same batches, random crops and all, with however many workers. A last batch that is not
    full is left out, unless it is the only one.

    Args:
        examples: the split.
        size: of a batch.
        device: where they go.
        seed: of the order and of what is random in the images.
        workers: processes that prepare them.
        augment: changes the images of a batch at random.

    Yields:
        Inputs `[size, C, H, W]` and labels `[size]`.
    """
    generator, draws = (torch.Generator().manual_seed(seed) for _ in range(2))
    order = RandomSampler(cast(Sized, examples), generator=generator)
    loader = _loader(examples, order, size, device, workers, generator, drop_last=length(examples) >= size)
    while True:
        for images, labels in _loaded(loader, device):
            yield (images if augment is None else augment(images, draws)), labels


# The last line of what a worker process raised, which its data loader hands on with the whole traceback.
RAISED = re.compile(r"(?:[\w.]+\.)?(?:DataError|UserError): (?P<message>.+)\Z", re.DOTALL)


def _loaded(loader: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    batches = iter(loader)
    while True:
        try:
            images, labels = next(batches)
        except StopIteration:
            return
        except UserError as error:
            found = RAISED.search(str(error).strip())
            raise UserError(" ".join(found["message"].split()) if found else str(error)) from error
        images = images.to(device, non_blocking=True)
        if images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        yield images, labels.to(device, non_blocking=True)


def _loader(
    examples: Examples,
    order: Iterable[int],
    size: int,
    device: torch.device,
    workers: int,
    generator: torch.Generator | None = None,
    drop_last: bool = False,
) -> Iterable[Batch]:
    """A data loader; of tensors that are held as a whole, it gives the same batches by indexing, in one step each."""
    how: dict[str, Any] = {"batch_size": size, "generator": generator, "drop_last": drop_last}
    held = held_tensors(examples)
    if held is None:
        pinned = device.type == "cuda"
        seeded = _Seeded(examples), _Seeds(order, generator)
        return DataLoader(seeded[0], sampler=seeded[1], num_workers=workers, pin_memory=pinned, **how)
    images, labels, rows = held

    def take(chosen: list[int]) -> Batch:
        index = torch.tensor(chosen, device=images.device)
        return images[index], labels[index]

    return DataLoader(rows, sampler=order, collate_fn=take, **how)  # type: ignore[arg-type]  # a list is a data set


class _Seeds(Sampler[tuple[int, int]]):
    """An order of indices, each with a seed: of a generator's first number, or the index itself."""

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
    """Examples that draw what they draw, such as crops, by seeds that come with their indices, in any process."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __getitem__(self, item: tuple[int, int]) -> tuple[Any, Any]:
        index, seed = item
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the CPU's alone
            return self.examples[index]


def held_tensors(examples: Examples) -> tuple[Tensor, Tensor, list[int]] | None:
    """All images, all labels, and which of them a split has; None unless it is made of two tensors."""
    if isinstance(examples, Subset):
        inner = held_tensors(examples.dataset)
        return inner and (*inner[:2], [inner[2][index] for index in examples.indices])
    if type(examples) is TensorDataset and len(examples.tensors) == 2:
        return (*examples.tensors, list(range(len(examples))))
    return None


def held_on(splits: Splits, device: torch.device) -> Splits:
    """The same splits, those of plain tensors moved to a device as a whole, where they are small.

    Args:
        splits: are not changed.
        device: where batches are used.
    """

    def moved(examples: Examples) -> Examples:
        held = held_tensors(examples)
        if held is None or device.type == "cpu":
            return examples
        images, labels, rows = held
        if images[0].nbytes * len(rows) > HELD_BYTES:
            return examples
        return cast(Examples, TensorDataset(images[rows].to(device), labels[rows].to(device)))

    return replace(splits, train=moved(splits.train), validation=moved(splits.validation), test=moved(splits.test))

"""Statistics of layers from a few batches: moments of inputs and outputs, and of the loss's gradients."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.batches import inputs_of, prediction_of
from ranksearch.errors import PlanError
from ranksearch.factorize.patches import LARGEST_TO_UNFOLD, PatchMoments, Taps, at_least_float32
from ranksearch.factorize.source_model import hooked, untouched, unwrap
from ranksearch.factorize.statistics import Layer, LayerStatistics, Moments, groups_of
from ranksearch.plan import SCHEMES, check_scheme


def as_rows(values: Tensor, layer: nn.Module) -> Tensor:
    """Lay a layer's values out as one row per position: `[B, C, H, W]` or `[..., C]` to `[N, C]`."""
    if isinstance(layer, nn.Conv2d):
        values = values.movedim(-3, -1)
    return values.reshape(-1, values.shape[-1])


def _moments(rows: Tensor, groups: int) -> Moments:
    """The moments of `[N, groups * size]`, computed in at least float32 where the rows are."""
    grouped = at_least_float32(rows).reshape(len(rows), groups, -1).transpose(0, 1)
    mean = grouped.mean(1)
    centred = grouped - mean[:, None]
    return Moments(len(rows), mean.cpu().double(), (centred.mT @ centred).cpu().double())


def _moments_of_patches(patches: Tensor) -> Moments:
    """The moments of `[n, groups, fan_in, positions]`, which is overwritten."""
    patches = at_least_float32(patches)
    mean = patches.mean((0, 3))
    patches -= mean[:, :, None]
    count = len(patches) * patches.shape[3]
    return Moments(count, mean.cpu().double(), (patches @ patches.mT).sum(0).cpu().double())


NOTHING = Moments(0, torch.zeros(()), torch.zeros(()))


def _has_fewer_inputs(layer: Layer) -> bool:
    """Whether a layer whose rows of inputs are at hand, unpadded, has fewer numbers in them than in its outputs."""
    if isinstance(layer, nn.Linear):
        return layer.in_features < layer.out_features
    plain = layer.kernel_size == (1, 1) and layer.padding in ((0, 0), "valid", "same") and layer.groups == 1
    return plain and layer.in_channels < layer.out_channels


class _Observer:
    """Streams one layer's rows into two halves of the examples."""

    def __init__(self, layer: Layer, split: bool, inputs: bool = False) -> None:
        self.groups = groups_of(layer)
        self.taps = None
        if isinstance(layer, nn.Conv2d) and (inputs or (split and max(layer.kernel_size) > 1)):
            self.taps = Taps.of(layer)
        by_inputs = inputs or self.taps is not None or _has_fewer_inputs(layer)
        self.side: Literal["input", "output"] = "input" if by_inputs else "output"
        self.halves: list[Moments | PatchMoments] = [NOTHING, NOTHING]
        if self.taps is not None and layer.weight[0].numel() > LARGEST_TO_UNFOLD:
            self.halves = [PatchMoments(self.taps), PatchMoments(self.taps)]
        self.calls = 0

    def __call__(self, layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        values = output
        if self.side == "input":
            values = args[0] if args else kwargs["input"]
            if isinstance(layer, nn.Conv2d) and self.taps is None:
                values = values[..., :: layer.stride[0], :: layer.stride[1]]
        values = values.detach()
        if isinstance(layer, nn.Conv2d) and values.ndim == 3:
            values = values[None]  # one map that the model gave without a batch
        with torch.autocast(values.device.type, enabled=False):  # sums of squares need all digits
            self._see(layer, values)

    def _see(self, layer: Layer, values: Tensor) -> None:
        # Whole examples, for the positions of one resemble each other; single ones take turns.
        middle = (len(values) + self.calls % 2) // 2
        self.calls += 1
        for index, part in enumerate((values[:middle], values[middle:])):
            if part.numel():
                half = self.halves[index]
                if isinstance(half, PatchMoments):
                    half.see(part)
                    continue
                if self.taps is None:
                    self.halves[index] = half + _moments(as_rows(part, layer), self.groups)
                    continue
                for patches in self.taps.unfolded(part):
                    self.halves[index] = half = half + _moments_of_patches(patches)

    def result(self) -> LayerStatistics:
        first, second = self.halves
        return LayerStatistics(self.side, (first, second))


def _layer(model: nn.Module, name: str) -> Layer:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise PlanError(f"the model lacks the layer '{name}': name one that it has") from None
    if not isinstance(module, nn.Conv2d | nn.Linear):
        raise PlanError(f"layer '{name}' is a {type(module).__name__}, without statistics: name a Conv2d or Linear")
    return module


@torch.no_grad()
def collect_statistics(
    model: nn.Module, batches: Iterable[Tensor], layers: Iterable[str], schemes: Collection[str] = SCHEMES
) -> dict[str, LayerStatistics]:
    """Stream the named layers' values into their moments, in one pass; the model is left as it was.

    Args:
        model: in any mode; it runs in eval mode.
        batches: inputs, `[B, ...]`, on the model's device.
        layers: dotted names of convolutions and linear layers.
        schemes: that the layers will be decomposed for; the full one alone takes less time and memory.

    Returns:
        The statistics of every layer that ran. Memory per layer, whatever the number of images: two float64 matrices,
        `[out, out]` or smaller; for a kernel that may be split, `[fan_in, fan_in]` where that is at most 256, and
        else the products that `PatchMoments` names, mostly in float32. On the way, the patches of a few maps of few
        numbers to a patch, 32 MiB or one map's.
    """
    model = unwrap(model)
    split = {check_scheme(scheme) for scheme in schemes} != {"full"}
    observers = {name: _Observer(_layer(model, name), split) for name in layers}
    handles = [
        model.get_submodule(name).register_forward_hook(
            observer, with_kwargs=True, prepend=True
        )  # before hooks that change the output
        for name, observer in observers.items()
    ]
    with hooked(handles), untouched(model):
        for batch in inputs_of(batches):
            model(batch)
    return {name: observer.result() for name, observer in observers.items() if observer.calls}


@torch.no_grad()
def collect_outputs(model: nn.Module, batches: Iterable[Tensor], layers: Iterable[str]) -> dict[str, Moments]:
    """Stream the moments of the named layers' outputs, in one pass; the model is left as it was.

    Args:
        model: in any mode; it runs in eval mode.
        batches: inputs, `[B, ...]`, on the model's device.
        layers: dotted names of convolutions and linear layers.

    Returns:
        Layer name -> moments of `[groups, out / groups]` numbers, of every layer that ran.
    """
    model, found = unwrap(model), dict[str, Moments]()

    def watch(name: str) -> Callable[..., None]:
        def observe(layer: Layer, _: object, output: Tensor) -> None:
            found[name] = found.get(name, NOTHING) + _moments(as_rows(output, layer), groups_of(layer))

        return observe

    handles = [_layer(model, name).register_forward_hook(watch(name), prepend=True) for name in layers]
    with hooked(handles), untouched(model):
        for batch in inputs_of(batches):
            model(batch)
    return found


def observe_inputs(layer: Layer, inputs: Tensor) -> LayerStatistics:
    """The statistics of one batch of a layer's inputs: of all numbers that an output is made from."""
    observer = _Observer(layer, split=True, inputs=True)
    observer(layer, (inputs,), {}, inputs)
    return observer.result()


def collect_sensitivities(
    model: nn.Module, batches: Iterable[Tensor], layers: Iterable[str], seed: int = 0
) -> dict[str, Tensor]:
    """Stream the second moment of the loss's gradient at the named layers' outputs.

    The loss is cross-entropy, and each label is drawn from the model's own prediction, which makes the expected
    rise of the loss after a small output error quadratic in it (the Fisher information; Martens, 2020).

    Args:
        model: maps `[B, ...]` to logits `[B, classes]`; it runs in eval mode and is left as it was.
        batches: inputs, on the model's device.
        layers: dotted names of convolutions and linear layers.
        seed: of the labels.

    Returns:
        Layer name -> `[groups, out / groups, out / groups]`, float64, for `decompose`.
    """
    model, sums = unwrap(model), dict[str, Tensor]()
    rows = dict.fromkeys(layers, 0)

    def watch(name: str) -> Callable[..., None]:
        def observe(layer: Layer, _: object, output: Tensor) -> None:
            def take(gradient: Tensor) -> None:
                flat = as_rows(gradient.detach(), layer)
                grouped = flat.reshape(len(flat), groups_of(layer), -1).transpose(0, 1).float()
                rows[name] += len(flat)
                sums[name] = sums.get(name, torch.zeros(())) + (grouped.mT @ grouped).cpu().double()

            if output.requires_grad:
                output.register_hook(take)  # type: ignore[no-untyped-call]  # as torch declares it

        return observe

    handles = [_layer(model, name).register_forward_hook(watch(name)) for name in rows]
    generator = torch.Generator().manual_seed(seed)
    with hooked(handles), untouched(model), torch.enable_grad():
        for parameter in model.parameters():
            parameter.grad = None
            parameter.requires_grad_(True)
        for batch in inputs_of(batches):
            logits = prediction_of(model(batch))
            labels = torch.multinomial(logits.detach().float().softmax(1).cpu(), 1, generator=generator)[:, 0]
            F.cross_entropy(logits, labels.to(logits.device), reduction="sum").backward()  # type: ignore[no-untyped-call]  # as torch declares it
    return {name: total / rows[name] for name, total in sums.items()}

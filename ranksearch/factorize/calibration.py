"""Layer statistics from a few batches: moments of inputs and outputs."""

from collections.abc import Collection, Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ranksearch.batches import Call, Inputs, read_batches
from ranksearch.errors import PlanError
from ranksearch.factorize.exposure import exposed
from ranksearch.factorize.patch_moments import LARGEST_TO_UNFOLD, PatchMoments, Taps, at_least_float32, in_float64
from ranksearch.factorize.source_model import hooked, untouched
from ranksearch.factorize.statistics import Layer, LayerStatistics, Moments, groups_of
from ranksearch.factorize.thinning import Thinning, as_rows
from ranksearch.plan import SCHEMES, check_scheme


def _moments(rows: Tensor, groups: int) -> Moments:
    """Return the moments of `[N, groups * size]`, computed in at least float32 on the rows' device."""
    grouped = at_least_float32(rows).reshape(len(rows), groups, -1).transpose(0, 1)
    mean = grouped.mean(1)
    centred = grouped - mean[:, None]
    return Moments(len(rows), in_float64(mean), in_float64(centred.mT @ centred))


def _moments_of_patches(patches: Tensor) -> Moments:
    """Return the moments of `[n, groups, fan_in, positions]`, which may be overwritten."""
    patches = at_least_float32(patches)
    mean = patches.mean((0, 3))
    patches -= mean[:, :, None]
    count = len(patches) * patches.shape[3]
    return Moments(count, in_float64(mean), in_float64((patches @ patches.mT).sum(0)))


NOTHING = Moments(0, torch.zeros(()), torch.zeros(()))


def _has_fewer_inputs(layer: Layer) -> bool:
    """Return whether a layer's input rows need neither unfolding nor padding and are narrower than its output rows."""
    if isinstance(layer, nn.Linear):
        return layer.in_features < layer.out_features
    plain = layer.kernel_size == (1, 1) and layer.padding in ((0, 0), "valid", "same") and layer.groups == 1
    return plain and layer.in_channels < layer.out_channels


class _Observer:
    """Forward hook that accumulates the moments of one layer's rows for two halves of the examples."""

    def __init__(self, layer: Layer, split: bool, inputs: bool = False, thinning: Thinning | None = None) -> None:
        self.groups = groups_of(layer)
        self.taps = None
        if isinstance(layer, nn.Conv2d) and (inputs or (split and max(layer.kernel_size) > 1)):
            self.taps = Taps.from_layer(layer)
        by_inputs = inputs or self.taps is not None or _has_fewer_inputs(layer)
        self.side: Literal["input", "output"] = "input" if by_inputs else "output"
        self.by_lag = self.taps is not None and layer.weight[0].numel() > LARGEST_TO_UNFOLD
        self.share = 1.0  # of all examples, in the batch
        self.thin = thinning is None
        self._use(thinning or Thinning(1, self.taps))
        self.calls = self.examples = 0

    def __call__(self, layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        values = output
        if self.side == "input":
            values = args[0] if args else kwargs["input"]
        if isinstance(layer, nn.Conv2d) and values.ndim == 3:
            values, output = values[None], output[None]  # an unbatched map
        if self.calls == 0 and self.thin:
            entries = layer.weight[0].numel() if self.side == "input" else len(layer.weight) // self.groups
            self._use(Thinning.from_output(layer, self.taps, output, 1 / self.share, entries))
        if self.side == "input" and isinstance(layer, nn.Conv2d) and self.taps is None:
            values = values[..., :: layer.stride[0], :: layer.stride[1]]
        with torch.autocast(values.device.type, enabled=False):  # sums of squares need full precision
            self._see(layer, values.detach())

    def _use(self, thinning: Thinning) -> None:
        """Begin with the rows that are read."""
        self.thinning = thinning
        self.halves: list[Moments | PatchMoments] = [NOTHING, NOTHING]
        if self.by_lag:
            assert thinning.taps is not None
            self.halves = [PatchMoments(thinning.taps), PatchMoments(thinning.taps)]

    def _see(self, layer: Layer, values: Tensor) -> None:
        # Split by example, since positions of an image are correlated; whatever the batches, every other one.
        halves, before = [values[(self.examples + index) % 2 :: 2] for index in range(2)], self.examples // 2
        self.calls, self.examples = self.calls + 1, self.examples + len(values)
        for index, half in enumerate(halves):
            if not half.numel():
                continue
            if self.taps is None:
                self._add(index, self.thinning.inputs(layer, as_rows(half, layer), self.calls % self.thinning.step))
                continue
            for first, part in self.thinning.parts(half, before):
                self._add(index, self.thinning.inputs(layer, part, first))

    def _add(self, index: int, values: Tensor) -> None:
        moments, taps = self.halves[index], self.thinning.taps
        if isinstance(moments, PatchMoments):
            moments.see(values)
        elif taps is None:
            self.halves[index] = moments + _moments(values, self.groups)
        else:
            for patches in taps.unfolded(values):
                self.halves[index] = moments = moments + _moments_of_patches(patches)

    def result(self) -> LayerStatistics:
        return LayerStatistics(self.side, (self.halves[0], self.halves[1]))


def layer_of(model: nn.Module, name: str) -> Layer:
    """Return a layer by its name.

    Raises:
        PlanError: the model lacks it, or it is neither a convolution nor a linear layer.
    """
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise PlanError(f"the model lacks the layer '{name}': name one that it has") from None
    if not isinstance(module, nn.Conv2d | nn.Linear):
        raise PlanError(f"layer '{name}' is a {type(module).__name__}, without statistics: name a Conv2d or Linear")
    return module


@torch.no_grad()
def collect_statistics(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Iterable[str],
    schemes: Collection[str] = SCHEMES,
    *,
    examples: int | None = None,
    call: Call | None = None,
) -> dict[str, LayerStatistics]:
    """Accumulate the moments of the named layers' values in one pass; the model is left unchanged.

    Args:
        model: the network, in any mode; it runs in eval mode.
        batches: batches of examples; see `read_batch`.
        layers: dotted names of convolutions and linear layers.
        schemes: schemes that the layers will be decomposed by; the full one alone takes less time and memory.
        examples: number of examples of all batches, which are then read one by one; None counts them first.
        call: runs the model on a batch; see `read_batch`.

    Returns:
        The statistics of every layer that ran, from all examples; where there are more than 16,384 rows and more than
        16 for each entry of a row, from every k-th row of positions. Memory per layer, for any number of images: two
        float64 matrices, `[out, out]` or smaller; for a kernel that may be split, `[fan_in, fan_in]` if fan_in is at
        most 256, else the products listed in `PatchMoments`, mostly in float32. Patches of up to 256 entries are
        unfolded a few maps at a time, in 32 MiB or the size of one map's patches.
    """
    layers = list(layers)
    model = exposed(model, layers)
    split = {check_scheme(scheme) for scheme in schemes} != {"full"}
    inputs: Iterable[Inputs] = read_batches(model, batches, call)
    if examples is None:
        inputs = list(inputs)
        examples = sum(map(len, inputs))
    observers = {name: _Observer(layer_of(model, name), split) for name in layers}
    handles = [  # prepended, to run before hooks that change the output
        model.get_submodule(name).register_forward_hook(observer, with_kwargs=True, prepend=True)
        for name, observer in observers.items()
    ]
    with hooked(handles), untouched(model):
        for batch in inputs:
            for observer in observers.values():
                observer.share = max(1, len(batch)) / max(1, examples)
            batch.run(model)
    return {name: observer.result() for name, observer in observers.items() if observer.calls}


@torch.no_grad()
def collect_outputs(model: nn.Module, batches: Iterable[Any], layers: Iterable[str]) -> dict[str, Moments]:
    """Accumulate the moments of the named layers' outputs in one pass; the model is left unchanged.

    Args:
        model: the network, in any mode; it runs in eval mode.
        batches: batches of examples; see `read_batch`.
        layers: dotted names of convolutions and linear layers.

    Returns:
        Layer name -> moments of its outputs, `[groups, out / groups]`, for every layer that ran.
    """
    layers = list(layers)
    model, moments = exposed(model, layers), dict[str, Moments]()

    def observe(name: str, layer: Layer, _: object, output: Tensor) -> None:
        moments[name] = moments.get(name, NOTHING) + _moments(as_rows(output, layer), groups_of(layer))

    handles = [layer_of(model, name).register_forward_hook(partial(observe, name), prepend=True) for name in layers]
    with hooked(handles), untouched(model):
        for batch in read_batches(model, batches):
            batch.run(model)
    return moments


def observe_inputs(layer: Layer, parts: Iterable[Tensor], thinning: Thinning) -> LayerStatistics:
    """Return the statistics of a layer's inputs, over whole input rows or patches, as one half that is not held out.

    Args:
        layer: the layer.
        parts: inputs of some examples each, with only the rows that are read; see `Thinning.inputs`.
        thinning: which rows are read.
    """
    observer = _Observer(layer, split=True, inputs=True, thinning=thinning)
    for part in parts:
        observer._add(0, part)
    return observer.result()

"""Study metadata (layer shapes, baseline, budget), stored with the study for reports that build no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ranksearch.errors import DamagedError, UserError
from ranksearch.plan import LayerChoice, LayerSpec
from ranksearch.results.attributes import METADATA, read_study_attribute, write_study_attribute
from ranksearch.results.units import Scale, scale_of
from ranksearch.validation import from_record

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

FORMAT = "ranksearch.facts/1"
MIN_STAGES = 3  # minimum number of stages that the network's layers are grouped into


@dataclass(frozen=True)
class StudyMetadata:
    """The dense network and the requirements of its plans.

    Attributes:
        command: last command that worked on the study.
        model: name of the model.
        dataset: name of the data set.
        input_shape: shape of one image, `[C, H, W]`.
        layers: layers under search, in the network's order.
        accuracy: validation accuracy of the dense network, 0 to 1.
        cost: cost of the dense network, in ``unit``.
        macs: multiply-accumulates of the dense network, for one image.
        params: number of parameters of the dense network.
        unit: unit of costs.
        speedup: required speedup.
        budget: highest cost that the required speedup allows.
        fine_tune_steps: fine-tuning steps of a trial.
        seed: seed of weights, batches and the sampler.
        trials: number of trials that the study is to have.
    """

    command: str
    model: str
    dataset: str
    input_shape: tuple[int, ...]
    layers: tuple[LayerSpec, ...]
    accuracy: float
    cost: int
    macs: int
    params: int
    unit: str
    speedup: float
    budget: int
    fine_tune_steps: int
    seed: int
    trials: int

    def to_json(self) -> dict[str, Any]:
        """Return the metadata as plain JSON values."""
        return {"format": FORMAT, **asdict(self)}

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> StudyMetadata:
        """Read the values that `to_json` returned.

        Raises:
            DamagedError: a value is missing or invalid.
        """
        values = {key: value for key, value in stored.items() if key != "format"}
        layers, shape = values.get("layers"), values.get("input_shape")
        if not isinstance(layers, list | tuple) or not layers or not isinstance(shape, list | tuple):
            raise DamagedError("StudyMetadata has no layers or no input_shape")
        values |= {"layers": tuple(_layer(layer) for layer in layers), "input_shape": tuple(shape)}
        metadata = from_record(StudyMetadata, values)
        if min(metadata.cost, metadata.macs, metadata.params) < 1:
            raise DamagedError("StudyMetadata has a network without cost")
        return metadata

    @property
    def scale(self) -> Scale:
        """Scale in which costs are displayed."""
        return scale_of(self.unit)

    @property
    def counts_macs(self) -> bool:
        """Whether the search counts multiply-accumulates."""
        return self.unit == "MACs"

    def format_cost(self, cost: float) -> str:
        """Format a cost with its unit."""
        return self.scale.format(cost) if self.unit == "ns" else f"{self.scale.format(cost)} {self.unit}"

    def stages(self) -> dict[str, str]:
        """Return each layer's stage: the shortest prefix of its name that yields at least `MIN_STAGES` stages."""
        names = [layer.name for layer in self.layers]
        for depth in range(1, max(name.count(".") for name in names) + 2):
            prefixes = {name: ".".join(name.split(".")[:depth]) for name in names}
            if len(set(prefixes.values())) >= MIN_STAGES:
                return prefixes
        return {name: name for name in names}


def _layer(stored: Any) -> LayerSpec:
    """Read a layer's shape from plain JSON values."""
    kernel = stored.get("kernel_size") if isinstance(stored, Mapping) else None
    if not isinstance(kernel, list | tuple) or len(kernel) != 2:
        raise DamagedError("LayerSpec has no kernel_size")
    return from_record(LayerSpec, {**stored, "kernel_size": tuple(kernel)})


def layer_macs(layer: LayerSpec, choice: LayerChoice | None) -> int:
    """Return a layer's multiply-accumulates under a choice; None means dense."""
    return layer.dense_macs if choice is None else layer.macs_at(choice.latent_size, choice.scheme)


def write_metadata(storage: BaseStorage, study: str, metadata: StudyMetadata) -> None:
    """Write the metadata of a study, unless the study holds the same already."""
    if read_study_attribute(storage, study, METADATA) != json.loads(json.dumps(metadata.to_json())):
        write_study_attribute(storage, study, METADATA, metadata.to_json())


def find_metadata(storage: BaseStorage, study: str) -> StudyMetadata | None:
    """Read the metadata of a study; None if it is missing or damaged."""
    stored = read_study_attribute(storage, study, METADATA)
    if not isinstance(stored, Mapping) or stored.get("format") != FORMAT:
        return None
    try:
        return StudyMetadata.from_json(stored)
    except DamagedError:
        return None


def read_metadata(storage: BaseStorage, study: str) -> StudyMetadata:
    """Read the metadata of a study.

    Args:
        storage: storage that holds the study.
        study: name of the study.

    Raises:
        UserError: the metadata is missing or damaged.
    """
    if (metadata := find_metadata(storage, study)) is None:
        raise UserError(
            f"study '{study}' does not record its network yet: run its search again, which records it once "
            "the network is calibrated"
        )
    return metadata

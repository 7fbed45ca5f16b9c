"""What a study's trials are read by: kept with the study, so that nothing needs to be built to review it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from optuna import Study

from ranksearch.cost import Scale, scale_of
from ranksearch.errors import DamagedError, UserError
from ranksearch.plan import LayerChoice, LayerSpec
from ranksearch.problem import Problem
from ranksearch.values import from_record

FACTS = "ranksearch:facts"
FACTS_FORMAT = "ranksearch.facts/1"
FEWEST_STAGES = 3


@dataclass(frozen=True)
class StudyFacts:
    """The dense network and what is asked of its plans.

    Attributes:
        command: that last worked on the study.
        model: its name.
        dataset: its name.
        input_shape: of one image, `[C, H, W]`.
        layers: under search, in the network's order.
        accuracy: of the dense network on the validation split, 0 to 1.
        cost: of the dense network, in ``unit``.
        macs: of the dense network, for one image.
        params: of the dense network.
        unit: that costs are counted in.
        speedup: that is asked for.
        budget: the highest cost that this allows.
        fine_tune_steps: of a trial.
        seed: of weights, batches and the sampler.
        trials: that the study is to have.
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

    @staticmethod
    def of(problem: Problem, command: str, model: str, dataset: str, speedup: float, trials: int) -> StudyFacts:
        """Take them from a problem.

        Args:
            problem: that is searched.
            command: that starts the search again.
            model: name of it.
            dataset: name of it.
            speedup: that is asked for.
            trials: that are asked for, in total.
        """
        return StudyFacts(
            command=command,
            model=model,
            dataset=dataset,
            input_shape=tuple(problem.splits.input_shape),
            layers=tuple(layer.spec for layer in problem.space.layers),
            accuracy=problem.baseline.accuracy,
            cost=problem.space.cost.dense,
            macs=problem.macs.dense,
            params=problem.params,
            unit=problem.space.cost.model.unit,
            speedup=speedup,
            budget=problem.budget,
            fine_tune_steps=problem.fine_tuning.steps,
            seed=problem.seed,
            trials=trials,
        )

    def to_json(self) -> dict[str, Any]:
        """The facts as plain JSON values."""
        return {"format": FACTS_FORMAT, **asdict(self)}

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> StudyFacts:
        """Read what `to_json` wrote.

        Raises:
            DamagedError: it is something else.
        """
        values = {key: value for key, value in stored.items() if key != "format"}
        layers, shape = values.get("layers"), values.get("input_shape")
        if not isinstance(layers, list | tuple) or not layers or not isinstance(shape, list | tuple):
            raise DamagedError("StudyFacts has no layers or no input_shape")
        values |= {"layers": tuple(_layer(layer) for layer in layers), "input_shape": tuple(shape)}
        facts = from_record(StudyFacts, values)
        if min(facts.cost, facts.macs, facts.params) < 1:
            raise DamagedError("StudyFacts has a network that costs nothing")
        return facts

    @property
    def scale(self) -> Scale:
        """How people read its costs."""
        return scale_of(self.unit)

    @property
    def counts_macs(self) -> bool:
        """Whether its cost is that of multiply-accumulates itself."""
        return self.unit == "MACs"

    def cost_said(self, cost: float) -> str:
        """A cost as text, with what it counts."""
        return self.scale.said(cost) if self.unit == "ns" else f"{self.scale.said(cost)} {self.unit}"

    def stages(self) -> dict[str, str]:
        """Layer -> the part of the network that it stands in: the shortest prefix of names that tells three apart."""
        names = [layer.name for layer in self.layers]
        for depth in range(1, max(name.count(".") for name in names) + 2):
            prefixes = {name: ".".join(name.split(".")[:depth]) for name in names}
            if len(set(prefixes.values())) >= FEWEST_STAGES:
                return prefixes
        return {name: name for name in names}


def _layer(stored: Any) -> LayerSpec:
    """A layer's shape, from plain JSON values."""
    kernel = stored.get("kernel_size") if isinstance(stored, Mapping) else None
    if not isinstance(kernel, list | tuple) or len(kernel) != 2:
        raise DamagedError("LayerSpec has no kernel_size")
    return from_record(LayerSpec, {**stored, "kernel_size": tuple(kernel)})


def macs_under(layer: LayerSpec, choice: LayerChoice | None) -> int:
    """A layer's multiply-accumulates under a plan; None stands for dense."""
    return layer.dense_macs if choice is None else layer.macs_at(choice.latent_size, choice.scheme)


def keep_facts(study: Study, facts: StudyFacts) -> None:
    """Write the facts into their study."""
    # Beside Optuna's own attributes, for the dashboard shows a person's in full.
    if _stored(study) != json.loads(json.dumps(facts.to_json())):
        study._storage.set_study_system_attr(study._study_id, FACTS, facts.to_json())


def kept_facts(study: Study) -> StudyFacts | None:
    """The facts that a study keeps; None where it keeps none that can be read."""
    stored = _stored(study)
    if not isinstance(stored, Mapping) or stored.get("format") != FACTS_FORMAT:
        return None
    try:
        return StudyFacts.from_json(stored)
    except DamagedError:
        return None


def read_facts(study: Study) -> StudyFacts:
    """Read the facts of a study.

    Raises:
        UserError: it keeps none that can be read.
    """
    facts = kept_facts(study)
    if facts is None:
        raise UserError(
            f"study '{study.study_name}' does not say what network it searches: run its search once more, which writes "
            "that down as soon as the network is calibrated"
        )
    return facts


def _stored(study: Study) -> Any:
    return study._storage.get_study_system_attrs(study._study_id).get(FACTS)

"""One network for all plans: every layer's factors by every scheme, of which a plan takes the first latent channels.

Fine-tuned once with plans drawn at random, it scores any plan without a step of the plan's own (as in slimmable
networks; Yu et al., 2019). `search_scores.py` measures whether that says how plans end.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ranksearch.data.loaders import endless_batches
from ranksearch.factorize import factorized_like, recalibrate_batchnorm
from ranksearch.plan import RankPlan
from ranksearch.study.context import SearchContext
from ranksearch.training.loop import train
from ranksearch.training.recipe import Recipe


class ElasticNetwork(nn.Module):
    """All plans' parameters; those of layers without groups.

    Args:
        problem: gives the dense network and the factors at the largest latent sizes, which all smaller ones share.
    """

    def __init__(self, problem: SearchContext) -> None:
        super().__init__()
        self._problem, self._plan = (problem,), RankPlan({})  # a tuple, so that the dense network is no submodule
        tensors = {name: value.detach().clone() for name, value in problem.model.named_parameters()}
        for layer in problem.space.layers:
            name = layer.spec.name
            dense = problem.model.get_submodule(name)
            assert isinstance(dense, nn.Conv2d | nn.Linear)
            for scheme, largest in layer.highs.items():
                factors = problem.decompositions[name][scheme].factors(dense, largest)
                tensors |= {f"{name} {scheme} {part}": value for part, value in vars(factors).items()}
        self.shared = nn.ParameterDict({name.replace(".", "/"): nn.Parameter(value) for name, value in tensors.items()})

    def follow(self, plans: Iterator[RankPlan]) -> None:
        """Take another plan from these at every training step."""
        self._plans = plans

    def parameters_of(self, plan: RankPlan, shape: nn.Module) -> dict[str, Tensor]:
        """Views of the shared parameters, by the names that the plan's network has for them."""
        shared = {name.replace("/", "."): value for name, value in self.shared.items()}
        found = {name: shared[name] for name, _ in shape.named_parameters() if name in shared}
        for name, choice in plan:
            own, size = f"{name} {choice.scheme}", choice.latent_size
            found[f"{name}.module0.weight"] = shared[f"{own} down"][:size]
            found[f"{name}.module1.weight"] = shared[f"{own} up"][:, :size]
            found[f"{name}.module1.bias"] = shared[f"{own} bias"]
        return found

    def forward(self, images: Tensor) -> Tensor:
        """The logits of the next plan's network."""
        plan = next(self._plans)
        shape = factorized_like(self._problem[0].model, plan).train(self.training)
        logits: Tensor = functional_call(shape, self.parameters_of(plan, shape), (images,))
        return logits

    @torch.no_grad()
    def network(self, plan: RankPlan) -> nn.Module:
        """A plan's own network, a copy, BatchNorm recalibrated, in eval mode."""
        (problem,) = self._problem
        network = factorized_like(problem.model, plan)
        found = self.parameters_of(plan, network)
        for name, parameter in network.named_parameters():
            parameter.copy_(found[name])
        recalibrate_batchnorm(network, problem.calibration)
        return network.eval()


def fine_tuned(problem: SearchContext, plans: Iterator[RankPlan], recipe: Recipe) -> ElasticNetwork:
    """The elastic network after a recipe's steps, each with the next plan."""
    elastic = ElasticNetwork(problem)
    elastic.follow(plans)
    torch.manual_seed(problem.seed)
    data = endless_batches(problem.splits.train, recipe.batch_size, problem.device, problem.seed)
    train(elastic, data, recipe, teacher=problem.model)
    return elastic

"""The ordered rules of a configuration, and the space that they leave of a model's layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from math import ceil, lcm

from ranksearch.cost import NetworkCost
from ranksearch.errors import SettingError, UserError
from ranksearch.factorize import LayerProfile
from ranksearch.plan import SCHEMES, LayerSpec, check_scheme, resolve_latent_size
from ranksearch.space import LayerSpace, SearchSpace


@dataclass(frozen=True)
class Rule:
    """The schemes and latent sizes that matching layers may have.

    Attributes:
        match: a glob on dotted layer names, such as ``layer4.*.conv2``.
        keep: ``"dense"`` takes the layers out of the search; everything else is then ignored.
        low: the smallest latent size, an int or a fraction of min(in, out).
        high: the largest; None stands for the break-even rank, which it never exceeds.
        step: from one to the next.
        dense: whether a trial may also leave the layer dense.
        schemes: how a kernel may be split; a layer that has none to split is always factorized by the full scheme.
    """

    match: str = "*"
    keep: str | None = None
    low: int | float = 0.03125
    high: int | float | None = None
    step: int | float = 0.03125
    dense: bool = True
    schemes: list[str] = field(default_factory=lambda: list(SCHEMES), hash=False)

    def __post_init__(self) -> None:
        if not self.schemes:
            raise UserError(f"space rule '{self.match}' has no schemes: name some of {', '.join(SCHEMES)}")
        owner = f" of space rule '{self.match}'"
        for scheme in self.schemes:
            check_scheme(scheme, owner)
        if self.keep not in (None, "dense"):
            raise UserError(f"keep={self.keep}{owner} is unknown: use dense, or leave it out")
        for what in ("low", "high", "step"):
            value = getattr(self, what)
            if value is None:
                continue
            resolve_latent_size(value, 1, 1, said=f"{what}={value}{owner}")


@dataclass(frozen=True)
class SpaceSettings:
    """The rules of a search space.

    Attributes:
        rules: the first that matches a layer decides.
        stem: ``"dense"`` or ``"search"``: the first convolution, where no rule matches it.
        classifier: the same for the last linear layer.
        default: for every layer that is left.
        multiple_of: latent sizes of wide layers, 8 times this and more, are multiples of it, for hardware computes
            whole blocks of channels; 1 leaves all sizes free.
    """

    rules: list[Rule] = field(default_factory=list, hash=False)
    stem: str = "dense"
    classifier: str = "dense"
    default: Rule = field(default_factory=Rule)
    multiple_of: int = 8

    def __post_init__(self) -> None:
        if self.multiple_of < 1:
            raise SettingError("multiple_of", self.multiple_of, "is out of range: use 1 or more")
        for what in ("stem", "classifier"):
            if getattr(self, what) not in ("dense", "search"):
                raise SettingError(what, getattr(self, what), "is unknown: use dense or search")


# Layers of so many blocks of channels have sizes of whole blocks.
BLOCKS_OF_WIDE_LAYERS = 8


def _choices(spec: LayerSpec, rule: Rule, multiple_of: int, cost: NetworkCost) -> LayerSpace | None:
    """What a rule leaves of a layer; None where nothing of it saves what the cost counts."""

    def rank(size: float) -> int:
        # One rule serves many layers, so ints too mean whole groups here.
        return spec.whole_groups(resolve_latent_size(size, spec.in_size, spec.out_size))

    if max(spec.kernel_size) == 1:
        offered: tuple[str, ...] = ("full",)
    else:
        offered = tuple(scheme for scheme in spec.schemes if scheme in rule.schemes)
    if not offered:
        raise UserError(
            f"space rule '{rule.match}' lets '{spec.name}' have none of its schemes ({', '.join(spec.schemes)}): "
            "name one of them, or give the layer a rule with keep: dense"
        )
    low, step = rank(rule.low), rank(rule.step)
    limits = {scheme: spec.break_even_rank(scheme) for scheme in offered}
    if low > max(limits.values()):
        spec.require_saving(low, max(limits, key=limits.__getitem__))
    limits = {scheme: cost.break_even_rank(spec, scheme) for scheme in offered}
    if low > max(limits.values()):
        return None
    highs = {scheme: limit if rule.high is None else min(limit, rank(rule.high)) for scheme, limit in limits.items()}
    if low > (high := max(highs.values())):
        raise UserError(
            f"space rule '{rule.match}' gives '{spec.name}' low={low} above high={high}: lower low, or raise high"
        )
    if min(spec.in_size, spec.out_size) >= BLOCKS_OF_WIDE_LAYERS * multiple_of:
        block = lcm(multiple_of, spec.groups)
        whole = ceil(low / block) * block
        if whole <= high:  # or sizes stay as they are
            low, step = whole, ceil(step / block) * block
    reached = {scheme: low + (high - low) // step * step for scheme, high in highs.items() if high >= low}
    return LayerSpace(spec, low, reached, step, rule.dense)


def build_space(settings: SpaceSettings, profile: LayerProfile, cost: NetworkCost) -> SearchSpace:
    """Apply the rules to a model's layers.

    Args:
        settings: the rules.
        profile: the model's layers; a rule may also name those that cannot be factorized, to keep them dense.
        cost: of the network.

    Raises:
        UserError: a rule matches no layer or asks for sizes that a layer cannot have, or no layer is left.
    """
    for rule in settings.rules:
        _check_rule(rule, profile)
    kept = {profile.stem} if settings.stem == "dense" else set()
    if settings.classifier == "dense":
        kept.add(profile.classifier)
    searched, left = [], dict(profile.skipped)
    for spec in profile.layers:
        matching = next((rule for rule in settings.rules if fnmatchcase(spec.name, rule.match)), None)
        if matching is None and spec.name in kept:
            which = "stem" if spec.name == profile.stem else "classifier"
            left[spec.name] = f"space.{which}=dense"
            continue
        rule = matching or settings.default
        choices = None if rule.keep is not None else _choices(spec, rule, settings.multiple_of, cost)
        if choices is not None:
            searched.append(choices)
        else:
            nothing = f"no latent size saves {cost.scale.name}"
            left[spec.name] = nothing if rule.keep is None else f"kept dense by the space rule '{rule.match}'"
    if not searched:
        reasons = "; ".join(dict.fromkeys(left.values()))
        raise UserError(
            f"the space keeps every layer dense ({reasons}), so there is nothing to search: let a rule free some layers"
        )
    return SearchSpace(tuple(searched), cost, left)


def _check_rule(rule: Rule, profile: LayerProfile) -> None:
    names = [*(spec.name for spec in profile.layers), *profile.skipped]
    matched = [name for name in names if fnmatchcase(name, rule.match)]
    if not matched:
        close = get_close_matches(rule.match, names, n=3, cutoff=0.0)
        advice = f"use a glob that does, such as {', '.join(map(repr, close))}" if close else "take it out"
        raise UserError(f"space rule '{rule.match}' matches no layer: {advice}")
    if rule.keep is None and all(name in profile.skipped for name in matched):
        raise UserError(
            f"space rule '{rule.match}' matches only layers that cannot be factorized "
            f"('{matched[0]}': {profile.skipped[matched[0]]}): take it out, or give it keep: dense"
        )

"""Ordered search-space rules of a configuration, and the search space that they define for a model."""

from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from math import ceil, lcm

from ranksearch.cost.base import NetworkCost
from ranksearch.errors import SettingError, UserError
from ranksearch.plan import SCHEMES, LayerProfile, LayerSpec, SkippedLayer, check_scheme, resolve_latent_size
from ranksearch.search_space.space import LayerSpace, SearchSpace


@dataclass
class Rule:
    """The schemes and latent sizes that matching layers may have.

    Attributes:
        match: a glob on dotted layer names, such as ``layer4.*.conv2``.
        keep: ``"dense"`` excludes the layers from the search; the other settings are then ignored.
        low: smallest latent size, an int or a fraction of min(in, out).
        high: largest latent size, an int or a fraction, limited to the break-even rank; None for that rank.
        step: distance between latent sizes, an int or a fraction of min(in, out).
        dense: whether a trial may leave the layer dense.
        schemes: allowed schemes to split a kernel; 1x1 kernels and linear layers always use the full scheme.
    """

    match: str = "*"
    keep: str | None = None
    low: int | float = 0.03125
    high: int | float | None = None
    step: int | float = 0.03125
    dense: bool = True
    schemes: list[str] = field(default_factory=lambda: list(SCHEMES))

    def __post_init__(self) -> None:
        if not self.schemes:
            raise UserError(f"space rule '{self.match}' has no schemes: use one or more of {', '.join(SCHEMES)}")
        owner = f" of space rule '{self.match}'"
        for scheme in self.schemes:
            check_scheme(scheme, owner)
        if self.keep not in (None, "dense"):
            raise UserError(f"keep={self.keep}{owner} is unknown: use dense, or leave it out")
        for key in ("low", "high", "step"):
            value = getattr(self, key)
            if value is not None:
                resolve_latent_size(value, 1, 1, label=f"{key}={value}{owner}")


@dataclass
class SpaceSettings:
    """The rules of a search space.

    Attributes:
        rules: ordered rules; the first that matches a layer applies.
        stem: ``"dense"`` or ``"search"``, for the first convolution if no rule matches it.
        classifier: ``"dense"`` or ``"search"``, for the last linear layer if no rule matches it.
        default: rule for all other layers.
        multiple_of: divisor of the latent sizes of layers at least 8 times as wide; 1 disables the rounding.
    """

    rules: list[Rule] = field(default_factory=list)
    stem: str = "dense"
    classifier: str = "dense"
    default: Rule = field(default_factory=Rule)
    multiple_of: int = 8

    def __post_init__(self) -> None:
        if self.multiple_of < 1:
            raise SettingError("multiple_of", self.multiple_of, "is out of range: use 1 or more")
        for key in ("stem", "classifier"):
            if getattr(self, key) not in ("dense", "search"):
                raise SettingError(key, getattr(self, key), "is unknown: use dense or search")


# Minimum width, in blocks of channels, of layers whose sizes are whole blocks, since hardware computes whole blocks.
BLOCKS_OF_WIDE_LAYERS = 8


def _choices(spec: LayerSpec, rule: Rule, multiple_of: int, cost: NetworkCost) -> LayerSpace | None:
    """Return the choices that a rule allows for a layer; None if no latent size reduces the cost."""

    def rank(size: float) -> int:
        # A rule applies to many layers, so ints are rounded to whole groups as well.
        return spec.whole_groups(resolve_latent_size(size, spec.in_size, spec.out_size))

    splits = max(spec.kernel_size) > 1  # other layers always use the full scheme
    offered = [scheme for scheme in spec.schemes if scheme in rule.schemes] if splits else ["full"]
    label = f"space rule '{rule.match}'"
    if not offered:
        lacking = f"{label} allows '{spec.name}' none of its schemes ({', '.join(spec.schemes)})"
        raise UserError(f"{lacking}: name one of them, or give the layer a rule with keep: dense")
    low, step = rank(rule.low), rank(rule.step)
    limits = {scheme: spec.break_even_rank(scheme) for scheme in offered}
    if low > max(limits.values()):
        spec.require_saving(low, max(limits, key=limits.__getitem__))
    limits = {scheme: cost.break_even_rank(spec, scheme) for scheme in offered}
    if low > max(limits.values()):
        return None
    highs = {scheme: limit if rule.high is None else min(limit, rank(rule.high)) for scheme, limit in limits.items()}
    if low > (high := max(highs.values())):
        raise UserError(f"{label} gives '{spec.name}' low={low} above high={high}: lower low, or raise high")
    if min(spec.in_size, spec.out_size) >= BLOCKS_OF_WIDE_LAYERS * multiple_of:
        block = lcm(multiple_of, spec.groups)
        whole = ceil(low / block) * block
        if whole <= high:  # otherwise sizes are not rounded
            low, step = whole, ceil(step / block) * block
    reached = {scheme: low + (high - low) // step * step for scheme, high in highs.items() if high >= low}
    return LayerSpace(spec, low, reached, step, rule.dense)


def build_space(settings: SpaceSettings, profile: LayerProfile, cost: NetworkCost) -> SearchSpace:
    """Build the search space by applying the rules to a model's layers.

    Args:
        settings: rules and defaults of the search space.
        profile: the model's layers; a rule may also match layers that cannot be factorized, to keep them dense.
        cost: cost of the network and its plans.

    Raises:
        UserError: a rule matches no layer or sets latent sizes that a layer cannot have, or no layer is left to search.
    """
    for rule in settings.rules:
        _check_rule(rule, profile)
    kept = {profile.stem} if settings.stem == "dense" else set()
    if settings.classifier == "dense":
        kept.add(profile.classifier)
    searched, left = [], dict(profile.skipped)

    def leave(spec: LayerSpec, reason: str) -> None:
        left[spec.name] = SkippedLayer(reason, spec.dense_macs / profile.macs if profile.macs else 0.0)

    for spec in profile.layers:
        matching = next((rule for rule in settings.rules if fnmatchcase(spec.name, rule.match)), None)
        rule = matching or settings.default
        if matching is None and spec.name in kept:
            leave(spec, f"space.{'stem' if spec.name == profile.stem else 'classifier'}=dense")
        elif rule.keep is not None:
            leave(spec, f"kept dense by the space rule '{rule.match}'")
        elif (choices := _choices(spec, rule, settings.multiple_of, cost)) is not None:
            searched.append(choices)
        else:
            leave(spec, f"no latent size saves {cost.scale.name}")
    if not searched:
        reasons = "; ".join(dict.fromkeys(layer.reason for layer in left.values()))
        dense = f"the space keeps every layer dense ({reasons})"
        raise UserError(f"{dense}, so there is nothing to search: let a rule include some layers")
    return SearchSpace(tuple(searched), cost, left)


def _check_rule(rule: Rule, profile: LayerProfile) -> None:
    names = [*(spec.name for spec in profile.layers), *profile.skipped]
    matched = [name for name in names if fnmatchcase(name, rule.match)]
    if not matched:
        close = get_close_matches(rule.match, names, n=3, cutoff=0.0)
        advice = f"use a glob that does, such as {', '.join(map(repr, close))}, in its rules" if close else "remove it"
        raise UserError(f"space rule '{rule.match}' matches no layer: {advice}")
    if rule.keep is None and all(name in profile.skipped for name in matched):
        only = f"matches only layers that cannot be factorized ('{matched[0]}': {profile.skipped[matched[0]].reason})"
        raise UserError(f"space rule '{rule.match}' {only}: remove it, or give it keep: dense")

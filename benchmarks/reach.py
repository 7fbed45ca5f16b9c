"""Which share of the MACs can be factorized, and why the rest stays dense: python benchmarks/reach.py [NAME ...].

Networks of timm, at their own image size, on the meta device: nothing is computed or downloaded.
"""

from __future__ import annotations

import argparse

import timm
import torch
from torch import nn

import ranksearch

NAMES = [
    "resnet50",
    "resnext50_32x4d",
    "regnety_008",
    "densenet121",
    "vgg16_bn",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "efficientnet_b0",
    "tf_efficientnetv2_b0",
    "tf_efficientnet_lite0",
    "ghostnet_050",
    "mnasnet_100",
    "nfnet_l0",
    "dm_nfnet_f0",
    "resnetv2_50",
    "convnext_tiny",
    "convnextv2_nano",
    "repvgg_a2",
    "hrnet_w18",
    "darknet53",
    "cspresnet50",
    "inception_v3",
    "vit_tiny_patch16_224",
    "deit_small_patch16_224",
    "beit_base_patch16_224",
    "swin_tiny_patch4_window7_224",
    "mixer_s16_224",
    "mobilevit_xxs",
    "pvt_v2_b0",
    "coat_tiny",
]


def reach(name: str) -> tuple[str, int, float, list[tuple[str, float]]]:
    """Return a network's name, its MACs, the share in reach, and the reasons of the rest with their shares."""
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name).eval()
    size = model.default_cfg["input_size"]  # type: ignore[index, union-attr]  # a dict, of timm
    profile = ranksearch.profile_layers(model, torch.empty(1, *size, device="meta"))  # type: ignore[misc]  # a tuple
    reasons: dict[str, float] = {}
    for layer in profile.skipped.values():
        reasons[layer.reason] = reasons.get(layer.reason, 0.0) + layer.share
    shares = sum(spec.dense_macs for spec in profile.layers) / profile.macs
    products = 1 - shares - sum(reasons.values())
    reasons["products of activations"] = products
    rest = sorted(((reason, share) for reason, share in reasons.items() if share >= 0.005), key=lambda each: -each[1])
    return name, profile.macs, shares, rest


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, help="networks of timm")
    print("| network | M MACs | in reach | what stays dense |\n|---|---|---|---|")
    for name in parser.parse_args().names:
        _, macs, share, rest = reach(name)
        print(
            f"| `{name}` | {macs / 1e6:,.0f} | {share:.3f} | {'; '.join(f'{part:.1%}: {why}' for why, part in rest)} |"
        )


if __name__ == "__main__":
    main()

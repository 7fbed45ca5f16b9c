"""Models of transformers are compressed as they are, saved, and loaded again; a raw load fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ranksearch
from ranksearch import PlanError, UserError
from ranksearch.cost.macs import count_macs

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]

IMAGES = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IDS = torch.randint(0, 100, (48, 12), generator=torch.Generator().manual_seed(0))


def vit() -> Any:
    import transformers

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(**sizes, image_size=32, patch_size=4, num_labels=5)
    )


def resnet() -> Any:
    import transformers

    sizes = {"embedding_size": 16, "hidden_sizes": [16, 32, 48], "depths": [1, 1, 1], "layer_type": "basic"}
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes, num_labels=5))


def segformer() -> Any:
    import transformers

    sizes = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 32}
    return transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**sizes, num_labels=5))


def bert() -> Any:
    import transformers

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BertConfig(**sizes, vocab_size=100, max_position_embeddings=16, num_labels=4)
    return transformers.BertForSequenceClassification(config)


CASES: dict[str, tuple[Any, Any]] = {
    "vit": (vit, IMAGES),
    "vit from a processor": (vit, {"pixel_values": IMAGES, "labels": torch.zeros(32, dtype=torch.long)}),
    "resnet": (resnet, IMAGES),
    "segformer": (segformer, IMAGES),
    "bert": (bert, IDS),
    "bert with a mask": (bert, {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_raw_model_is_compressed_saved_and_loaded(case: str, tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    build, batch = CASES[case]
    model = build().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = ranksearch.compress(model, [batch], 1.5, progress=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert count_macs(model, batch) >= 1.5 * count_macs(result.network, batch)
    ranksearch.save_pretrained(result.network, tmp_path)
    loaded = ranksearch.load_pretrained(tmp_path)
    given = next(iter(batch.values())) if isinstance(batch, dict) else batch
    with torch.no_grad():
        assert torch.equal(loaded(given).logits, result.network(given).logits)
    for raw in (type(model), transformers.AutoModel):
        with pytest.raises(OSError, match="no file named"):
            raw.from_pretrained(tmp_path)


def test_what_was_not_saved_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"has no ranksearch_plan.json: name a folder"):
        ranksearch.load_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"Linear has no configuration of transformers"):
        ranksearch.save_pretrained(torch.nn.Linear(2, 2), tmp_path)

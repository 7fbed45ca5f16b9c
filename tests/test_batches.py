"""What people have as batches and as answers is taken, or named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ranksearch
from ranksearch import DataError, LayerChoice, RankPlan, UserError
from ranksearch.batches import collect_inputs, read_batches
from ranksearch.predictions import divergence, extract_predictions, predict

IMAGES = torch.randn(48, 3, 12, 12, generator=torch.Generator().manual_seed(0))
LABELS = torch.zeros(48, dtype=torch.long)
WAYS: dict[str, Callable[[], Any]] = {
    "a list": lambda: list(IMAGES.split(16)),
    "a tuple": lambda: IMAGES.split(16),
    "a generator": lambda: (batch for batch in IMAGES.split(16)),
    "a loader of images": lambda: DataLoader(list(IMAGES), batch_size=16),
    "a loader of pairs": lambda: DataLoader(TensorDataset(IMAGES, LABELS), batch_size=16),
    "a list of pairs": lambda: [(images, LABELS[:16]) for images in IMAGES.split(16)],
    "a list of triples": lambda: [[images, LABELS[:16], "paths"] for images in IMAGES.split(16)],
}


class Net(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.body, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 10)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.fc(self.body(self.stem(x).relu()).mean((2, 3))))


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_giving_images_gives_the_same(way: str) -> None:
    model, plan = Net().eval(), RankPlan({"body": LayerChoice(4)})
    expected = ranksearch.find_plan(model, list(IMAGES.split(16)), 1.3)
    assert ranksearch.find_plan(model, WAYS[way](), 1.3) == expected
    with torch.no_grad():
        first, other = (ranksearch.apply_plan(plan, model, given)(IMAGES) for given in (IMAGES.split(16), WAYS[way]()))
    assert torch.equal(first, other)
    statistics = [
        ranksearch.collect_statistics(model, given, ["body"])["body"] for given in (IMAGES.split(16), WAYS[way]())
    ]
    assert torch.equal(statistics[0].all.covariance, statistics[1].all.covariance)


def test_one_tensor_is_one_batch() -> None:
    assert [len(batch) for batch in read_batches(Net(), IMAGES)] == [48]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([IMAGES, ["a", "b"]], r"batch 1 is a list of str, str: give a tensor \[B, ...\]"),
        ([IMAGES.numpy()], r"batch 0 is a ndarray: give"),
        ([None], r"batch 0 is None: give"),
        ([()], r"batch 0 is a tuple of nothing"),
        (5, r"batches of type int are not iterable: give a list or a DataLoader"),
        ([], r"0 examples are too few to plan on: give 8 or more"),
        ([IMAGES[:0]], r"0 examples are too few"),
        ([IMAGES, IMAGES[..., :8]], r"examples of shapes \[3, 12, 12\] and \[3, 12, 8\]: resize or pad them"),
    ],
)
def test_what_is_no_batch_is_named(given: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        collect_inputs(Net(), given, 8, "plan on")
    with pytest.raises(UserError):
        ranksearch.find_plan(Net().eval(), given, 1.3)


@dataclass
class Answer:
    mask: Tensor
    logits: Tensor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: (logits, None),
        lambda logits: [[logits]],
        lambda logits: {"logits": logits},
        lambda logits: {"aux": logits * 0, "out": logits},
        lambda logits: {"index": logits.argmax(1), "scores": logits},
        lambda logits: Answer(logits > 0, logits),
    ],
)
def test_the_predictions_are_found_in_any_answer(wrap: Callable[[Tensor], Any]) -> None:
    plain, wrapped = Net().eval(), Net(wrap).eval()
    with torch.no_grad():
        assert torch.equal(extract_predictions(wrapped(IMAGES)), plain(IMAGES))
    assert ranksearch.find_plan(wrapped, [IMAGES], 1.3) == ranksearch.find_plan(plain, [IMAGES], 1.3)


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda logits: None, "the model returns None: return a tensor of floats"),
        (lambda logits: logits.argmax(1), r"the model returns a tensor \[\d+\] of int64"),
        (lambda logits: {"boxes": []}, "the model returns a dict with boxes"),
        (lambda logits: "a dog", "the model returns a str"),
    ],
)
def test_an_answer_without_predictions_is_named(wrap: Callable[[Tensor], Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ranksearch.find_plan(Net(wrap).eval(), [IMAGES], 1.3)


def test_a_batch_that_the_forward_does_not_take_is_named_with_the_remedy() -> None:
    with pytest.raises(
        UserError, match=r"cannot run on a dict with pixel_values on cpu \(.*\): fix either, or give call="
    ):
        ranksearch.find_plan(Net().eval(), [{"pixel_values": IMAGES}], 1.3)


def test_maps_and_single_numbers_are_compared_by_squared_error() -> None:
    torch.manual_seed(0)
    for shape in ((20, 1, 6, 6), (20, 1), (20,)):
        dense = torch.randn(shape).double()
        assert divergence(dense, dense) == 0
        assert divergence(dense.mean(0).expand(shape), dense) == pytest.approx(1)
        assert divergence(dense * float("nan"), dense) == float("inf")
    assert divergence(torch.full((3, 1), 2.0), torch.ones(3, 1)) == 3


def test_predictions_are_put_together_in_order() -> None:
    model = nn.Linear(4, 3)
    rows = torch.randn(10, 4)
    assert torch.allclose(predict(model, rows.split(3)), model(rows).double())

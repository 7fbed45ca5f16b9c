"""What people have as batches and as answers is taken, or named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import ranksearch
from ranksearch import DataError, LayerChoice, RankPlan, UserError
from ranksearch.batches import Inputs, collect_inputs, first_examples, join, read_batches
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


class Pairs(Net):
    """Two inputs, the second required."""

    def forward(self, x: Tensor, shift: Tensor) -> Any:
        return super().forward(x + shift)


class Named(Net):
    """Arguments by the names of a data set's entries."""

    def forward(self, image: Tensor, labels: Tensor | None = None) -> Any:
        assert labels is None
        return super().forward(image)


class Whole(Net):
    """A batch as it comes."""

    def forward(self, batch: dict[str, Any]) -> Any:
        return super().forward(batch["image"])


class Detector(Net):
    """Images of any size in, a dict for each out."""

    def forward(self, images: list[Tensor]) -> Any:
        logits = [super(Detector, self).forward(image[None])[0] for image in images]
        return [{"boxes": each[None, :4], "scores": each[4:5]} for each in logits]


class Entries(Dataset[dict[str, Any]]):
    """Dicts, as data sets of one's own yield."""

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": IMAGES[index], "labels": index % 10, "path": f"{index}.png"}


ZEROS = torch.zeros_like(IMAGES)
STRUCTURES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], dict[str, Any]]] = {
    "several inputs": (Pairs, lambda: [(IMAGES, ZEROS)], {}),
    "several inputs and labels": (
        Pairs,
        lambda: list(zip(IMAGES.split(24), ZEROS.split(24), LABELS.split(24), strict=True)),
        {},
    ),
    "several inputs by name": (Pairs, lambda: {"x": IMAGES, "shift": ZEROS, "labels": LABELS}, {}),
    "a loader of dicts": (Named, lambda: DataLoader(Entries(), batch_size=16), {}),
    "a forward of dicts": (Whole, lambda: DataLoader(Entries(), batch_size=16), {}),
    "a function": (Net, lambda: DataLoader(Entries(), 16), {"call": lambda model, batch: model(batch["image"])}),
    "a collated list of images": (Net, lambda: [[IMAGES, LABELS]], {}),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_structure_of_a_batch_gives_the_same_plan_and_network(name: str) -> None:
    build, batches, options = STRUCTURES[name]
    expected = ranksearch.compress(Net().eval(), IMAGES, 1.3, progress=False)
    result = ranksearch.compress(build().eval(), batches(), 1.3, progress=False, **options)
    assert result.plan.layers.keys() == expected.plan.layers.keys()
    plan = expected.plan
    network = ranksearch.apply_plan(plan, build().eval(), batches(), progress=False, **options)
    for ours, theirs in zip(network.parameters(), expected.network.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_lists_of_images_of_any_size_are_taken_and_their_plans_not_compared(caplog: pytest.LogCaptureFixture) -> None:
    images = [torch.rand(3, 12 + index % 3, 14) for index in range(24)]
    model = Detector().eval()
    with caplog.at_level("INFO"):
        plan = ranksearch.find_plan(model, [images[:8], images[8:16], images[16:]], 1.3, progress=False)
    assert plan.layers
    assert "plans are not compared" in caplog.text
    network = ranksearch.apply_plan(plan, model, [(images, [{"boxes": 1}] * 24)], progress=False)
    with torch.no_grad():
        assert [list(each) for each in network(images[:2])] == [["boxes", "scores"]] * 2

    def scores(raw: Any) -> Tensor:
        return torch.cat([each["scores"] for each in raw])

    assert ranksearch.find_plan(model, [images], 1.3, predictions=scores, progress=False).layers


def test_token_ids_are_taken() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.up = nn.Embedding(50, 16), nn.Linear(16, 32)
            self.down, self.fc = nn.Linear(32, 16), nn.Linear(16, 4)

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            logits: Tensor = self.fc(self.down(self.up(self.embed(input_ids)).relu()).mean(1))
            return logits

    ids = torch.randint(0, 50, (40, 6))
    for batch in (ids, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "label": LABELS[:40]}):
        assert ranksearch.compress(Tokens().eval(), [batch], 1.2, progress=False).plan.layers


def test_an_endless_iterator_is_read_once_and_only_as_far_as_needed() -> None:
    drawn = 0

    def endless() -> Iterator[Tensor]:
        nonlocal drawn
        while True:
            drawn += 1
            yield torch.randn(64, 3, 12, 12)

    assert ranksearch.find_plan(Net().eval(), endless(), 1.3, effort="fast", progress=False).layers
    assert drawn == 1
    assert ranksearch.find_plan(Net().eval(), endless(), 1.3, progress=False).layers
    assert drawn == 1 + 1024 // 64


def test_heads_are_compared_together() -> None:
    model = Net(lambda logits: [logits[:, :3, None], logits[:, 3:]]).eval()
    with torch.no_grad():
        heads = extract_predictions(model(IMAGES))
        assert heads.shape == (48, 1, 10)
        assert torch.equal(heads[:, 0], Net().eval()(IMAGES))
        named = extract_predictions({"first": torch.ones(4, 2), "second": torch.ones(4), "count": torch.ones(4).long()})
        assert named.shape == (4, 1, 3)


def test_outputs_that_change_are_named() -> None:
    class Changing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, : 2 + len(x)]

    with pytest.raises(UserError, match=r"returns predictions of shapes \[10\] and \[6\]: give predictions="):
        predict(Changing(), [IMAGES[:8], IMAGES[:4]])
    with pytest.raises(UserError, match=r"returns a tensor \[2\] of float32 for 4 examples: return"):
        predict(nn.Identity(), [Inputs(IMAGES[:4], predictions=lambda raw: raw[0, 0, 0, :2])])


def test_examples_are_cut_and_joined_whatever_holds_them() -> None:
    images = [torch.ones(3, 2, index + 1) for index in range(6)]
    value = ({"a": torch.arange(6), "scale": torch.tensor(2.0)}, images, "x")
    inputs = Inputs(value)
    assert len(inputs) == 6
    again = join(inputs.split(4))
    assert torch.equal(again.value[0]["a"], torch.arange(6))
    assert again.value[0]["scale"] == 2
    assert [image.shape[2] for image in again.value[1]] == [1, 2, 3, 4, 5, 6]
    assert again.value[2] == "x"
    assert [len(part) for part in first_examples(inputs.split(4), 5)] == [4, 1]

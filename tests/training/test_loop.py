"""The loop learns, repeats, follows its teacher, and says when it breaks."""

from __future__ import annotations

import copy
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ranksearch.data.loaders import batches, endless_batches
from ranksearch.data.splits import Splits
from ranksearch.errors import DivergedError, SettingError
from ranksearch.models.cifar import cifar_resnet
from ranksearch.training import loop
from ranksearch.training.checkpoint import Checkpoint
from ranksearch.training.loop import evaluate, resolve_autocast, train
from ranksearch.training.recipe import Recipe

CPU = torch.device("cpu")


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return cifar_resnet(8, 10)


def trained_copy(splits: Splits, recipe: Recipe, teacher: nn.Module | None = None) -> nn.Module:
    model = fresh()
    train(model, endless_batches(splits.train, recipe.batch_size, CPU, seed=1), recipe, teacher=teacher)
    return model


def test_training_learns_real_digits(splits: Splits, trained: nn.Module) -> None:
    assert evaluate(trained, batches(splits.validation, 256, CPU)).accuracy > 0.85


def test_the_same_seed_gives_the_same_weights(splits: Splits) -> None:
    first, second = (trained_copy(splits, Recipe(steps=5)).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_teacher_pulls_the_predictions_towards_its_own(splits: Splits, trained: nn.Module) -> None:
    before = copy.deepcopy(trained.state_dict())
    images = torch.stack([splits.validation[index][0] for index in range(64)])

    def distance(model: nn.Module) -> float:
        with torch.no_grad():
            return float(F.kl_div(model(images).log_softmax(1), trained(images).softmax(1), reduction="batchmean"))

    recipe = Recipe(steps=40, distillation=1.0, learning_rate=0.05)
    assert distance(trained_copy(splits, recipe, trained)) < 0.2 * distance(fresh().eval())
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())


def test_no_steps_change_nothing(splits: Splits) -> None:
    untouched = fresh().state_dict()
    assert all(
        torch.equal(untouched[name], tensor) for name, tensor in trained_copy(splits, Recipe(0)).state_dict().items()
    )


def test_a_loss_that_is_not_finite_ends_the_training(splits: Splits) -> None:
    model = fresh()
    with torch.no_grad():
        model.fc.weight.fill_(float("nan"))
    with pytest.raises(DivergedError, match="nan at step 1 of 5"):
        train(model, endless_batches(splits.train, 64, CPU, seed=0), Recipe(steps=5))
    with pytest.raises(DivergedError, match="nan"):
        evaluate(model, batches(splits.validation, 256, CPU))


@pytest.mark.parametrize(
    ("key", "value"),
    [("steps", -1), ("batch_size", 1), ("learning_rate", 0.0), ("distillation", 1.5), ("temperature", 0)],
)
def test_settings_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(SettingError, match=f"{key}={value}"):
        Recipe(**({"steps": 1} | {key: value}))


def test_evaluation_does_not_depend_on_the_batch_size(splits: Splits, trained: nn.Module) -> None:
    whole, parts = (evaluate(trained, batches(splits.validation, size, CPU)) for size in (360, 7))
    assert whole.accuracy == parts.accuracy
    assert whole.loss == pytest.approx(parts.loss, rel=1e-4)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(steps=80, optimizer="adamw", learning_rate=0.005),
        Recipe(steps=80, schedule="one_cycle", learning_rate=0.1, warmup=0.3),
        Recipe(steps=80, schedule="constant", averaging=0.9),
    ],
    ids=["adamw", "one_cycle", "averaging"],
)
def test_every_way_of_training_learns(recipe: Recipe, splits: Splits) -> None:
    assert evaluate(trained_copy(splits, recipe), batches(splits.validation, 256, CPU)).accuracy > 0.7


def test_averaged_weights_are_the_moving_average(splits: Splits) -> None:
    decay, seen = 0.6, []
    model = fresh()

    def watch(step: int, _: float) -> None:
        seen.append(model.fc.weight.detach().clone())

    recipe = Recipe(steps=5, averaging=decay)
    train(model, endless_batches(splits.train, recipe.batch_size, CPU, seed=1), recipe, on_step=watch)
    expected = seen[0]
    for weight in seen[1:]:
        expected = decay * expected + (1 - decay) * weight
    assert torch.allclose(model.fc.weight, expected, atol=1e-6)


def test_norms_and_biases_do_not_decay(splits: Splits) -> None:
    """With a gradient of zero, only what decays may move."""
    model = fresh()
    before = {name: value.clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.register_hook(torch.zeros_like)
    recipe = Recipe(steps=2, weight_decay=0.1)
    train(model, endless_batches(splits.train, recipe.batch_size, CPU, seed=1), recipe)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) == (value.ndim < 2), name


class Small(nn.Module):
    """Has memory for so many images and no BatchNorm, so that pieces add up to the whole."""

    def __init__(self, room: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.room, self.fc = room, nn.Linear(3 * 8 * 8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.room:
            raise torch.OutOfMemoryError("no room")
        out: torch.Tensor = self.fc(x.flatten(1))
        return out


def test_a_batch_too_large_for_the_memory_goes_through_in_pieces(
    splits: Splits, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, weights = Recipe(steps=4), []
    for room in (64, 20):
        model = Small(room)
        train(model, endless_batches(splits.train, 64, CPU, seed=1), recipe)
        weights.append(model.fc.weight.detach())
    assert torch.allclose(*weights, atol=1e-5)
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"out of memory: batches of 64 are now processed in {pieces} pieces" for pieces in (2, 4)]
    with pytest.raises(torch.OutOfMemoryError):
        train(Small(1), endless_batches(splits.train, 64, CPU, seed=1), recipe)


def test_an_evaluation_too_large_for_the_memory_goes_through_in_pieces(
    splits: Splits, caplog: pytest.LogCaptureFixture
) -> None:
    found, whole = (evaluate(Small(room), batches(splits.validation, 64, CPU)) for room in (20, 64))
    assert (found.accuracy, found.loss) == (whole.accuracy, pytest.approx(whole.loss))
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"out of memory: batches of 64 are now processed in {pieces} pieces" for pieces in (2, 4)]
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(Small(0), batches(splits.validation, 64, CPU))


class StoppedError(Exception):
    pass


def stopped_after(stop: int, path: Path, splits: Splits, recipe: Recipe) -> nn.Module:
    """Train until a step, as one who is interrupted there, then once more to the end."""

    def interrupt(step: int, _: float) -> None:
        if step == stop:
            raise StoppedError

    for on_step in (interrupt, None):
        model = fresh()
        data = endless_batches(splits.train, recipe.batch_size, CPU, seed=1)
        with suppress(StoppedError):
            train(model, data, recipe, on_step=on_step, checkpoint=Checkpoint(path, "this", every=3))
    return model


RECIPES = [
    Recipe(steps=8),
    Recipe(steps=8, optimizer="adamw", learning_rate=0.002, averaging=0.5),
    Recipe(steps=9, schedule="one_cycle", label_smoothing=0.1),
    Recipe(steps=8, schedule="constant", momentum=0.0),
]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("stop", [2, 3, 7, 8])
def test_an_interrupted_training_ends_as_if_it_had_not_been(
    stop: int, recipe: Recipe, splits: Splits, tmp_path: Path
) -> None:
    whole, again = trained_copy(splits, recipe), stopped_after(stop, tmp_path / "there" / "it", splits, recipe)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    state = Checkpoint(tmp_path / "there" / "it", "this").read()
    assert state is not None
    assert state["step"] == recipe.steps
    assert Checkpoint(tmp_path / "there" / "it", "another").read() is None


def test_a_damaged_checkpoint_is_noticed_and_not_used(
    splits: Splits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, recipe = tmp_path / "it", Recipe(steps=4)
    stopped_after(3, path, splits, recipe)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    whole, again = trained_copy(splits, recipe), fresh()
    data = endless_batches(splits.train, recipe.batch_size, CPU, seed=1)
    train(again, data, recipe, checkpoint=Checkpoint(path, "this"))
    assert "is damaged" in caplog.text
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_compiled_network_is_trained_as_the_same_network(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's own tracer; without a compiler of C++, which takes a minute."""
    compiled = []

    def trace(model: nn.Module, real: Any = torch.compile) -> Any:
        compiled.append(model)
        return real(model, backend="eager")

    monkeypatch.setattr(torch, "compile", trace)
    ours, theirs = (trained_copy(splits, Recipe(steps=4, compile=compile)).state_dict() for compile in (True, False))
    assert len(compiled) == 1
    assert list(ours) == list(theirs)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)


def test_autocast_trains_weights_that_stay_float32(splits: Splits) -> None:
    cast, plain = (trained_copy(splits, Recipe(steps=30, autocast=autocast)) for autocast in ("bfloat16", "off"))
    assert {value.dtype for value in cast.parameters()} == {torch.float32}
    assert any(not torch.equal(value, plain.state_dict()[name]) for name, value in cast.state_dict().items())
    ours, theirs, untrained = (
        evaluate(model, batches(splits.train, 256, CPU)).loss for model in (cast, plain, fresh())
    )
    assert abs(ours - theirs) < 0.1 * (untrained - theirs)


def test_what_autocast_to_use_is_asked_of_gpus_only(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = fresh(), next(endless_batches(splits.train, 8, CPU, seed=0))
    undrawn = iter([batch])
    assert resolve_autocast(Recipe(steps=1), model, undrawn, CPU).autocast == "off"
    for autocast in ("off", "bfloat16"):
        assert resolve_autocast(Recipe(steps=1, autocast=autocast), model, undrawn, CPU).autocast == autocast
    assert next(undrawn) is batch
    meta, ghosts = torch.device("meta"), (batch[0].to("meta"), batch[1].to("meta"))
    monkeypatch.setattr(loop, "AUTOCAST_DEVICES", ("meta",))
    for seconds, expected in (([2.0, 1.0], "bfloat16"), ([1.0, 1.0], "off"), ([1.0, 3.0], "off")):
        monkeypatch.setattr(loop, "time_calls", lambda *_, found=seconds, **__: [[s, s] for s in found])
        assert resolve_autocast(Recipe(steps=1), model, iter([ghosts]), meta).autocast == expected


@pytest.mark.gpu
def test_settling_autocast_on_a_gpu_changes_nothing_else(splits: Splits) -> None:
    device = torch.device("cuda")
    model = fresh().to(device)
    before = copy.deepcopy(model.state_dict())
    resolve_autocast(Recipe(steps=1), model, endless_batches(splits.train, 64, device, seed=0), device)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_is_kept_every_so_many_steps_and_no_fewer_than_one(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="checkpoint_every=0 is out of range: use 1 or more"):
        Checkpoint(tmp_path / "it", "this", every=0)


@pytest.mark.parametrize(("steps", "longer", "times"), [(30, 200, 4), (400, 200, 1), (0, 200, 1), (30, 30, 1)])
def test_a_rate_grows_only_where_the_training_does(steps: int, longer: int, times: int) -> None:
    recipe = Recipe(steps=steps, learning_rate=0.01)
    assert recipe.lengthened(longer, None).learning_rate == pytest.approx(0.01 * times)
    assert recipe.lengthened(longer, 0.3).learning_rate == 0.3
    assert recipe.lengthened(longer, None).steps == longer

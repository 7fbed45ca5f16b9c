"""Whatever the format, what is loaded back computes what was exported, for any number of images."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torchvision.models import get_model

import ranksearch
from ranksearch.errors import UserError
from ranksearch.factorize import factorized_like
from ranksearch.formats.export import export
from ranksearch.formats.python_source import write_plain
from ranksearch.plan import LayerChoice, RankPlan

PLAN = RankPlan(
    {
        "layer1.0.conv1": LayerChoice(4, "vertical"),
        "layer2.0.conv2": LayerChoice(5, "horizontal"),
        "layer3.0.conv1": LayerChoice(8, "pointwise"),
        "layer3.0.conv2": LayerChoice(6, "full"),
        "fc": LayerChoice(3),
    }
)
SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def network(trained: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    network = factorized_like(trained, PLAN)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def logits(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network(images)


def test_a_plain_network_needs_torch_and_nothing_else(
    network: nn.Module, images: Tensor, logits: Tensor, tmp_path: Path
) -> None:
    path = export(network, SHAPE, tmp_path / "there", "plain")
    torch.save({"images": images, "logits": logits}, tmp_path / "case.pt")
    code = (
        f"import sys, torch; sys.path.insert(0, {str(path.parent)!r}); import network; model = network.load();"
        f"case = torch.load({str(tmp_path / 'case.pt')!r}, weights_only=True);"
        "assert torch.equal(model(case['images']), case['logits']);"
        "assert {type(m).__module__.split('.')[0] for m in model.modules()} == {'torch', 'network'};"
        "print(*sorted(n for n in sys.modules if n.split('.')[0] in ('ranksearch', 'torchvision', 'safetensors')))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_an_exported_program_takes_any_batch(
    network: nn.Module, images: Tensor, logits: Tensor, tmp_path: Path
) -> None:
    program = torch.export.load(export(network, SHAPE, tmp_path, "torch_export")).module()
    for count in (1, 5):
        assert torch.allclose(program(images[:count]), logits[:count], atol=1e-5)


def test_onnx_takes_any_batch(network: nn.Module, images: Tensor, logits: Tensor, tmp_path: Path) -> None:
    import onnxruntime

    path = export(network, SHAPE, tmp_path / "there", "onnx").replace(tmp_path / "alone.onnx")
    assert list((tmp_path / "there").iterdir()) == []
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 5):
        [found] = session.run(["logits"], {"images": images[:count].numpy()})
        assert torch.allclose(torch.from_numpy(found), logits[:count], atol=1e-4)


def test_a_state_dict_fits_the_plans_network(
    network: nn.Module, trained: nn.Module, images: Tensor, logits: Tensor, tmp_path: Path
) -> None:
    other = factorized_like(trained, PLAN).eval()
    other.load_state_dict(torch.load(export(network, SHAPE, tmp_path, "state_dict"), weights_only=True))
    with torch.no_grad():
        assert torch.equal(other(images), logits)


def rebuilt(source: str, state: dict[str, Tensor]) -> nn.Module:
    scope: dict[str, Any] = {"__name__": "there", "__file__": "there"}
    exec(source, scope)
    plain: nn.Module = scope["Network"]()
    plain.load_state_dict(state)
    return plain.eval()


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "regnet_y_400mf", "efficientnet_b0"]
)
def test_networks_of_torchvision_are_written_plainly(name: str) -> None:
    torch.manual_seed(0)
    network = get_model(name, weights=None, num_classes=7).eval()
    before = copy.deepcopy(network.state_dict())
    source, state = write_plain(network)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(rebuilt(source, state)(x), network(x))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(x)


class Masked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.masked_fill(x > 1, float("-inf")).exp()


@pytest.mark.parametrize("end", [InPlace(), Masked(), nn.LayerNorm((4, 4)), nn.Unflatten(1, (2, 2))], ids=repr)
def test_unusual_ends_are_written_plainly(end: nn.Module) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), end).eval()
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        assert torch.equal(rebuilt(*write_plain(network))(x), network(x))


class Odd(nn.Conv2d):
    """A layer whose class is not torch's, though it computes what torch's does."""


def test_settings_and_layers_of_ones_own_survive() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), Odd(4, 4, 1), nn.LeakyReLU(0.3))
    x = torch.randn(2, 3, 6, 5)
    with torch.no_grad():
        assert torch.equal(rebuilt(*write_plain(network.eval()))(x), network(x))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if x.sum() > 0 else x


@fx.wrap
def kept_whole(x: Tensor) -> Tensor:
    return x.relu()


class Foreign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return kept_whole(x)


@fx.wrap
def applied(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


class Passing(nn.Module):
    """A module that is an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return applied(self.inner, x)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


REFUSED = [
    (nn.LSTM(3, 4), "cannot be rebuilt by nn.LSTM"),
    (Passing(), "is a Linear, not a tensor"),
    (nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), "ParametrizedLinear, not of torch.nn"),
    (nn.Hardtanh(0.0, float("inf")), "max_val=inf of '0.*' cannot be written as source code"),
    (Branching(), "cannot be traced"),
    (Foreign(), "calls test_export.kept_whole, which is not part of torch"),
]


@pytest.mark.parametrize(("network", "said"), REFUSED)
def test_what_cannot_be_written_plainly_is_named(network: nn.Module, said: str) -> None:
    with pytest.raises(UserError, match=f"{said}.*: use format=torch_export"):
        write_plain(nn.Sequential(network).eval())


def test_other_outputs_are_refused_and_leave_what_was_there(tmp_path: Path) -> None:
    export(nn.Linear(3, 4).eval(), (3,), tmp_path, "state_dict")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=r"format=state_dict gives outputs that differ by .*: use another format"):
        export(Noisy().eval(), (3,), tmp_path, "state_dict")
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_what_torch_cannot_follow_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"torch.export cannot follow the network \(.+\): use format=state_dict"):
        export(nn.Sequential(Branching()).eval(), (3,), tmp_path, "torch_export")


def test_a_package_that_a_format_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"format=onnx needs onnxruntime: pip install 'ranksearch\[onnx\]'"):
        export(nn.Linear(3, 4).eval(), (3,), tmp_path, "onnx")


class TwoInputs(nn.Module):
    """Image features and metadata in, several outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(8, 16), nn.Linear(4, 16), nn.Linear(16, 5)

    def forward(self, image: Tensor, meta: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        hidden = (self.first(image) + self.second(meta)).relu() * scale
        return {"scores": self.head(hidden), "hidden": hidden}


PAIR = torch.randn(4, 8), torch.randn(4, 4)


@pytest.mark.parametrize("format", ["onnx", "torch_export", "plain", "state_dict"])
@pytest.mark.parametrize("example", [PAIR, {"image": PAIR[0], "meta": PAIR[1], "labels": torch.zeros(4)}])
def test_inputs_and_outputs_of_any_structure_are_exported(example: Any, format: str, tmp_path: Path) -> None:
    assert ranksearch.export(TwoInputs().eval(), example, tmp_path / "there", format).exists()


def test_an_onnx_file_has_the_names_of_arguments_and_outputs(tmp_path: Path) -> None:
    import onnxruntime

    network = TwoInputs()
    path = ranksearch.export(network, PAIR, tmp_path / "net.onnx")
    assert path == tmp_path / "net.onnx"
    assert network.training  # as it was
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    image, meta = torch.randn(7, 8), torch.randn(7, 4)
    scores, _ = session.run(["scores", "hidden"], {"image": image.numpy(), "meta": meta.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(scores), network.eval()(image, meta)["scores"], atol=1e-5)


def test_what_runs_a_network_is_exported_with_it(tmp_path: Path) -> None:
    import onnxruntime

    def scores(network: nn.Module, batch: Any) -> Tensor:
        found: Tensor = network(batch["pixels"], batch["meta"])["scores"]
        return found

    example = {"pixels": PAIR[0], "meta": PAIR[1]}
    path = ranksearch.export(TwoInputs().eval(), example, tmp_path / "net.onnx", call=scores)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {value.name for value in session.get_inputs()} == {"batch.pixels", "batch.meta"}
    assert len(session.get_outputs()) == 1


def test_a_path_that_does_not_fit_the_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"format=plain writes two files, and '.*net.py' is one: name a folder"):
        ranksearch.export(nn.Linear(3, 4).eval(), (3,), tmp_path / "net.py", "plain")
    with pytest.raises(UserError, match=r"format=tflite is unknown: use plain, torch_export, onnx, state_dict"):
        ranksearch.export(nn.Linear(3, 4).eval(), (3,), tmp_path, "tflite")

"""What a person can mend ends with 2 and one line, and nothing is written."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from runs import STUDY, call, scores

from ranksearch.cli.compose import compose, read_words, register_schemas, without_hydra
from ranksearch.cli.config import make_config
from ranksearch.errors import UserError

# Of settings alone: what reads them refuses them.
SETTINGS = {
    "study.n_trials=0": r"study.n_trials=0 is out of range: use 1 or more",
    "constraint.speedup=0.5": r"constraint.speedup=0.5 is below 1",
    "space.rules=[{match: layer1.*, low: 0}]": r"low=0 of space rule 'layer1.\*' is out of range: give an int",
    "space.rules=[{match: layer1.*, high: 1.5}]": r"high=1.5 of space rule 'layer1.\*' is out of range",
    "space.rules=[{match: layer1.*, schemes: [diagonal]}]": r"'diagonal' of space rule 'layer1.\*' is unknown",
    "space.rules=[{match: layer1.*, schemes: []}]": r"'layer1.\*' has no schemes: use one or more of full, vertical",
    "space.stem=maybe": r"space.stem=maybe is unknown: use dense or search",
    "fine_tune.learning_rate=0": r"fine_tune.learning_rate=0(.0)? is out of range: use a finite number above 0",
    "study.closed_form_trials=-1": r"study.closed_form_trials=-1 is out of range: use 0 or more",
    "study.name=..": r"study.name=.. cannot name a folder: use a name without slashes",
    "calibration.images=1": r"calibration.images=1 is too few: use 2 or more",
    "baseline.train=sometimes": r"baseline.train=sometimes is unknown: use auto, always or never",
    "finalize.seeds=0": r"finalize.seeds=0 is out of range: use 1 or more",
    "finalize.checkpoint_every=0": r"finalize.checkpoint_every=0 is out of range: use 1 or more",
    "finalize.learning_rate=0": r"finalize.learning_rate=0.0 is out of range: use a finite number above 0",
    "space.rules=[{match: layer1.*, keep: sparse}]": r"keep=sparse of space rule 'layer1.\*' is unknown: use dense",
    "mode=dance": r"mode=dance is unknown: use search, finalize, profile, export",
    "mode=export export.format=tensorflow": r"export.format=tensorflow is unknown: use plain, torch_export",
    "study.name=[a,b]": r"study.name=a, b are several names: give one, or compare them with mode=report",
    "dashboard.port=99999": r"dashboard.port=99999 is out of range: use 0 to 65535",
    "pick.trial=1 pick.speedup=2": r"pick.trial=1 cannot be combined with speedup: give one of them",
    "study.objective=speed": r"study.objective=speed is unknown: use front, accuracy",
    "pruner.rungs=[1.5]": r"pruner.rungs=\[1.5\] are out of range: use shares from 0 to below 1",
    "fine_tune.autocast=half": r"fine_tune.autocast=half is unknown: use auto, off, bfloat16",
    "space.multiple_of=0": r"space.multiple_of=0 is out of range: use 1 or more",
    "calibration.sequential_images=1": r"calibration.sequential_images=1 is too few: use 2 or more, or 0",
    "seed=-1": r"seed=-1 is out of range: use 0 to",
    "+sampler.seed=abc": r"sampler.seed=abc has the wrong type: give a whole number",
    "fine_tune.temperature=inf": r"fine_tune.temperature=inf is out of range: use a finite number above 0",
    "calibration.batch_size=1000000000000000000000": r"calibration.batch_size=10+ is out of range: use less than",
    "dashboard.hosts=[a/b]": r"dashboard.hosts=a/b is not a host: give only names and ports",
    f"study.name={'x' * 5000}": r"study.name=x+ \.\.\. x+ is too long for a folder's: use at most",
    "seed=99999999999999999999": r"seed=99999999999999999999 is out of range",
    "fine_tune.label_smoothing=2": r"fine_tune.label_smoothing=2.0 is out of range: use 0 to 1",
    "study.name=../elsewhere": r"study.name=../elsewhere cannot name a folder",
    "profile.batch_size=0": r"profile.batch_size=0 is out of range: use 1 or more",
    "finalize.time_batches=[0]": r"finalize.time_batches=\[0\] are out of range: use 1 or more",
}

# Of what settings name: a run of the command line refuses them.
BAD = {
    "model=resnet5": r"model=resnet5 does not exist: use one of .*resnet18, resnet20",
    "modle=resnet50": r"'modle' is not a key of the configuration: use mode, model",
    "fine_tune.stepz=3": r"'fine_tune.stepz' is not a key of the configuration: use steps",
    "model.wieghts=x": r"'model.wieghts' is not a key of model: arguments of its builder are model.builder.wieghts",
    "task=profile": r"'task' has moved: use mode=search, finalize, profile, export, report or dashboard",
    "objective=accuracy": r"'objective' has moved: use study.objective",
    "format=onnx": r"'format' has moved: use export.format",
    "pruning.rungs=[]": r"'pruning' has moved: use the keys of pruner: pruner.rungs, pruner.lead, pruner.rivals",
    "latency.dtype=bfloat16": r"'latency' has moved: use runtime for precision and memory format, cost or profile",
    "model.weights=DEFAULT": r"'model.weights' is not a key of model: .* are model.builder.weights",
    "experiment=quickstart": r"experiment=quickstart does not exist: use one of",
    "+model.depth=8": r"model.depth=8 is not a key of the configuration: remove it",
    "+extra=3": r"extra=3 is not a key of the configuration: remove it",
    "study.n_trials=many": r"study.n_trials=many cannot be used \(Value 'many' .* Integer\): give a value of that type",
    "study.n_trials": r"study.n_trials",
    "constraint.speedup=100": r"constraint.speedup=100 exceeds [\d.]+, the highest that the space reaches",
    "space.rules=[{match: layer9.*, keep: dense}]": r"space rule 'layer9.\*' matches no layer: use a glob .* 'layer",
    "space.rules=[{match: layer1.*, low: 40}]": r"40 for 'layer1.0.conv1' exceeds .* rank 23 of scheme 'vertical'",
    "space.rules=[{match: layer1.*, lwo: 4}]": r"'lwo' is not a key of the configuration: use low",
    "model=torchvision": r"model.(name|architecture) is not set: add model.(name|architecture)=",
    "model=torchvision model.name=resnet51": r"torchvision has no model 'resnet51': use .*resnet50",
    "dataset=fake dataset.images=9": r"dataset.images=9 are too few for 4 of each class: use 40 or more",
    "dataset=imagenet": r"dataset.root is not set: add dataset.root=",
    "dataset=imagenet dataset.root=/nowhere": r"dataset.root=/nowhere lacks the folder 'train': put the images",
    "dataset.validation_share=0.0001": r"dataset.validation_share=0.0001 cannot be split off \(.*\): use another share",
    "dataset.test_share=0.0001": r"dataset.test_share=0.0001 cannot be split off \(.*\): use another share",
    "dataset.image_size=4": r"dataset.image_size=4 is below the 8 pixels of the originals: use 8 or more",
    "dataset=cifar10 dataset.classes=11": r"dataset.classes=11 is unknown: use 10 or 100",
    "dataset=image_folder dataset.root=/nowhere dataset.crop=2": r"dataset.crop=2 is out of range: use a share",
    "+sampler._partial_=true": r"sampler._partial_=True is not supported: remove it",
    "model=resnet18 model.input_size=32 ~dataset.image_size": r"model.input_size=32 needs a data set with",
    "storage.path=${nothing.here}": r"storage.path cannot be resolved \(.*\): fix the interpolation",
    "a=b=c[": r"a=b=c\[ cannot be parsed, .*: quote it inside the shell's quotes, 'a=\"b=c\[\"'",
    "study.name=[": r"the command cannot be parsed \(.*\): see python -m ranksearch --help",
    "dataset._target_=nowhere.build": r"dataset._target_=nowhere.build cannot be imported",
    "sampler._target_=nowhere.Sampler": r"sampler._target_=nowhere.Sampler cannot be imported",
    "model.builder.depth=21": r"model.builder.depth=21 is not 6n \+ 2 with an n of 1 or more: use 8, 14, 20",
    "device=quantum": r"device=quantum cannot be used",
    "model.builder._target_=collections.Counter ~model.builder.depth": r"collections.Counter returns .* a Module: name",
    "dataset._target_=collections.Counter": r"collections.Counter returns a Counter, not a Splits: name",
    "pruner=median": r"pruner=MedianPruner cannot serve two objectives: use pruner=lead, or study",
    "pruner=median study.objective=accuracy fine_tune=none": r"pruner=MedianPruner has no effect without",
    "mode=finalize": r"there is no study 'resnet20-digits-1.5x-s0' to finalize a trial of in outputs\S*db: name its",
    "mode=report": r"there is no study 'resnet20-digits-1.5x-s0' to report on in outputs\S*db: name its",
    "mode=dashboard": r"there is no study 'resnet20-digits-1.5x-s0' to look at in outputs\S*db: name its",
    "mode=report study.name=2024": r"there is no study '2024' to report on",
    "mode=export": r"plan.json does not exist: name the folder that a search wrote",
    "+sampler.layer_spread=0": r"sampler.layer_spread=0 is out of range: use a finite number above 0",
    "fine_tune.steps=many": r"fine_tune.steps=many cannot be used \(Value 'many' .* Integer\): give",
    "fine_tune=none fine_tune.stepz=3": r"'fine_tune.stepz' is not a key of the configuration: use steps",
    "fine_tune._target_=collections.Counter": r"fine_tune._target_",
    "+fine_tune._target_=collections.Counter": r"fine_tune",
    "+model.rules=[{match: x, kep: dense}]": r"'kep' is not a key of the configuration: use keep",
    "model.rules=5": r"model.rules=5 cannot be used \(.*\): give a value of that type",
    "proxy=fihser": r"proxy=fihser does not exist: use one of fisher, mixed, probes, relative",
    "proxy=fisher proxy.power=2": r"proxy.power=2 is out of range: use 0 to 1",
    "sampler=tpe sampler.n_startup_trials=nan": r"sampler.n_startup_trials=nan is not a number: give one",
    "model=null": r"model=null is not a file of this group: use one of",
    "=5": r"'=5' has no key: write key=value",
    "cost=latency cost.cache=/dev/null": r"cost.cache=/dev/null is a file: name a folder",
    "model.checkpoint=a=b.pt": r"quote it inside the shell's quotes, 'model.checkpoint=\"a=b.pt\"'",
    "dataset=fake dataset.image_size=1000000": r"dataset.image\S*=\d+ needs \d+ GiB for images, of .*: lower it",
    "dataset.image_size=big": r"dataset.image_size=big has the wrong type: give a whole number",
    "sampler=random sampler._target_=optuna.samplers.CmaEsSampler": r"sampler=CmaEsSampler cannot serve this search",
    "storage._target_=builtins.dict": r"storage._target_=builtins.dict returns a dict, not a BaseStorage: name",
    "cost=latency runtime.precision=float8": r"runtime.precision=float8 is unknown: use float32, bfloat16, float16",
    "cost._target_=builtins.dict": r"cost._target_=builtins.dict returns a dict, not a CostModel: name",
    "outputs=/proc/nowhere": r"/proc/nowhere\S* cannot be written",
    "~model.builder._target_": r"model.builder has no _target_: give it the dotted name",
    "space.rules=[{match: conv1, low: 40}]": r"latent size 40 for 'conv1' exceeds its break-even rank",
    "model=resnet50 model.builder.weights=IMAGENET1K_V9": r"IMAGENET1K_V9 is unknown for resnet50: use IMAGENET1K_V1",
}

# Of these, those that the default tests run end to end; the others are slow.
END_TO_END = (
    "model=resnet5",
    "modle=resnet50",
    "task=profile",
    "pruning.rungs=[]",
    "model.weights=DEFAULT",
    "experiment=quickstart",
    "+model.depth=8",
    "+extra=3",
    "study.n_trials=many",
    "constraint.speedup=100",
    "space.rules=[{match: layer9.*, keep: dense}]",
    "model=torchvision",
    "dataset=imagenet dataset.root=/nowhere",
    "dataset.validation_share=0.0001",
    "storage.path=${nothing.here}",
    "a=b=c[",
    "study.name=[",
    "dataset._target_=nowhere.build",
    "pruner=median",
    "mode=finalize",
    "sampler=tpe sampler.n_startup_trials=nan",
    "model=null",
    "outputs=/proc/nowhere",
)

# The value and the limit, then one remedy; lower case, one line, no full stop.
FORM = r"ranksearch: (?![A-Z][a-z]+ )[^\n]+: [^\n]+(?<!\w\.)"


def words_of(wrong: str) -> list[str]:
    return [wrong] if "[" in wrong else wrong.split()


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    register_schemas()
    return compose(read_words([]))


@pytest.mark.parametrize("wrong", SETTINGS)
def test_a_setting_out_of_its_range_is_named_with_its_limit_and_a_remedy(wrong: str, composed: DictConfig) -> None:
    cfg = copy.deepcopy(composed)
    for word in words_of(wrong):
        key, _, value = word.partition("=")
        given = OmegaConf.create(f"{{value: {value}}}").value
        OmegaConf.update(cfg, key.lstrip("+"), given, force_add=True)
    with pytest.raises(UserError) as caught:
        make_config(without_hydra(cfg))
    said = f"ranksearch: {caught.value}"
    assert re.fullmatch(rf"ranksearch: [^\n]*{SETTINGS[wrong]}[^\n]*", said)
    assert re.fullmatch(FORM, said)


@pytest.mark.parametrize(
    "wrong", [wrong if wrong in END_TO_END else pytest.param(wrong, marks=pytest.mark.slow) for wrong in BAD]
)
def test_bad_input_ends_with_2_one_line_and_nothing_written(wrong: str, tmp_path: Path) -> None:
    done = call(tmp_path, *words_of(wrong), small=[])
    assert done.returncode == 2
    assert "Traceback" not in done.stdout
    said = done.stderr.strip()
    assert re.fullmatch(rf"ranksearch: [^\n]*{BAD[wrong]}[^\n]*", said)
    assert re.fullmatch(FORM, said)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("in the way")
    done = call(tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"ranksearch: \S*outputs\S* cannot be written \(.*\): choose another folder.*\n", done.stderr)


def test_a_database_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "outputs" / "ranksearch.db").mkdir(parents=True)
    done = call(tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(
        r"ranksearch: the study database \S*ranksearch.db cannot be opened .*: move it away.*\n", done.stderr
    )
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["ranksearch.db"]


def test_a_diverging_fine_tuning_fails_the_trials_and_says_so(tmp_path: Path) -> None:
    done = call(tmp_path, "fine_tune.learning_rate=1e30", "fine_tune.max_gradient_norm=1e30")
    assert done.returncode == 2
    assert [row[1] for row in scores(tmp_path)] == ["FAIL"] * 3
    assert re.fullmatch(r"ranksearch: none of 3 trials completed \(the last: the loss .*\n", done.stderr)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"_target_": "mine.build"}, r"has a network of mine.build with other settings: set model as in its search"),
        (
            {"_target_": "ranksearch.models.cifar_resnet", "depth": {"_target_": "os.abort"}},
            r"'os.abort', which is not part of ranksearch: pass trust=True",
        ),
    ],
)
def test_an_export_calls_nothing_that_neither_we_nor_the_configuration_name(
    model: dict[str, object], said: str, tmp_path: Path
) -> None:
    best = tmp_path / "outputs" / STUDY / "best"
    best.mkdir(parents=True)
    entries = {"format": "ranksearch.plan/1", "model": model, "layers": {}, "input_shape": [3, 8, 8]}
    (best / "plan.json").write_text(json.dumps(entries))
    done = call(tmp_path, "mode=export")
    assert done.returncode == 2
    assert re.search(said, done.stderr)

"""``mode=export``: the network that a search ended with, in another format."""

from pathlib import Path

from ranksearch.cli.config import RunConfig
from ranksearch.cli.run_context import Launch, Work
from ranksearch.errors import UserError
from ranksearch.formats.export import export
from ranksearch.formats.serialization import load
from ranksearch.results.study_files import input_shape_of, is_trusted, read_plan_file


def prepare(config: RunConfig, launch: Launch) -> Work:
    """Load the network of a study; the work writes it in the format."""
    best = Path(config.outputs) / config.study.name / "best"
    entries = read_plan_file(best)
    # A builder that this very configuration names is as trusted as the configuration.
    own = {key: value for key, value in config.model.builder.items() if key != "weights"}
    built = {key: value for key, value in entries["model"].items() if key not in ("num_classes", "weights")}
    target = str(entries["model"].get("_target_"))
    if own != built and not is_trusted(target):
        raise UserError(f"{best} has a network of {target} with other settings: set model as in its search")
    shape = input_shape_of(entries, best)
    network = load(best, trust=own == built)

    def work() -> None:
        export(network, shape, best / "export", config.export.format)

    return work

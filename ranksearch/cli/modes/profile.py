"""``mode=profile``: what every layer costs, and what the closed form makes of it, without a study."""

import logging

from ranksearch.cli.config import RunConfig
from ranksearch.cli.run_context import Launch, Work
from ranksearch.cli.setup import set_up
from ranksearch.cli.stages import context_without_training
from ranksearch.cost.latency import Latency
from ranksearch.report.tables import format_table
from ranksearch.study.profile import (
    READING,
    describe_choices,
    display_front,
    display_layers,
    profile_network,
    profile_shapes,
    write_profile,
)

log = logging.getLogger(__name__)

UNTRAINED = (
    "no errors and no predicted front: there are no trained weights yet; mode=search trains them, model.weights names "
    "some, and baseline.train=never keeps those of the builder"
)


def prepare(config: RunConfig, launch: Launch) -> Work:
    """Set the run up; the work shows the layers at once, then times them, and calibrates if there are weights."""
    run, settings = set_up(config, launch), config.profile
    latency = Latency(run.runtime, settings.batch_size, settings.repeats, settings.cache)

    def work() -> None:
        log.info("%s", format_table(display_layers(profile_shapes(run.inputs))))
        log.info("columns named after schemes: the break-even rank in MACs")
        for line in describe_choices(run.inputs.space):
            log.info("space: %s", line)
        with launch.progress() as progress:
            context = context_without_training(run, progress)
            progress.stage("timing layers")
            profile = profile_network(run.inputs, latency, context)
            write_profile(run.folder, profile)
        log.info("%s", format_table(display_layers(profile)))
        log.info("%s", READING)
        if context is None:
            log.info("%s", UNTRAINED)
            log.info("written to %s: profile.csv", run.folder)
            return
        log.info("the front that the closed form predicts, without fine-tuning:")
        log.info("%s", format_table(display_front(profile)))
        log.info("written to %s: profile.csv, predicted_front.csv", run.folder)

    return work

"""``mode=profile``: what every layer costs, and what the closed form makes of it, without a study."""

import logging

from ranksearch.cli.config import RunConfig
from ranksearch.cli.run_context import Launch, Work
from ranksearch.cli.setup import set_up
from ranksearch.cli.stages import calibrated_context
from ranksearch.cost.latency import Latency
from ranksearch.report.tables import format_table
from ranksearch.study.profile import (
    READING,
    describe_choices,
    display_front,
    display_layers,
    profile_network,
    write_profile,
)

log = logging.getLogger(__name__)


def prepare(config: RunConfig, launch: Launch) -> Work:
    """Set the run up; the work trains or reads the baseline, calibrates, and profiles the network."""
    run, settings = set_up(config, launch), config.profile
    latency = Latency(run.runtime, settings.batch_size, settings.repeats, settings.cache)

    def work() -> None:
        with launch.progress() as progress:
            context = calibrated_context(run, progress)
            profile = profile_network(context, latency)
            write_profile(run.folder, profile)
        log.info("%s", format_table(display_layers(profile)))
        log.info("%s", READING)
        for line in describe_choices(context.space):
            log.info("space: %s", line)
        log.info("the front that the closed form predicts, without fine-tuning:")
        log.info("%s", format_table(display_front(profile)))
        log.info("written to %s: profile.csv, predicted_front.csv", run.folder)

    return work

"""What Optuna's dashboard shows of a study: named objectives, a note, figures, and a picture of every plan."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from optuna import Study, Trial
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.exceptions import ExperimentalWarning, StorageInternalError

from ranksearch.errors import first_line
from ranksearch.facts import StudyFacts
from ranksearch.locks import first
from ranksearch.records import TrialRecord, read_trials
from ranksearch.review.figures import fine_tuning_figure, front_figure, heat_map, importance_figure
from ranksearch.review.note import write_note
from ranksearch.review.plan_picture import draw_plan
from ranksearch.trial import TrialResult

log = logging.getLogger(__name__)

# What a person writes above it stays.
HEADING = "## ranksearch\n\n*Notes of your own are kept above this heading; all below it is refreshed.*\n\n"
# Of the time that a process works on a study, the share that may go into the note and the figures.
SHARE = 0.01
# Id -> title, and what draws it.
FIGURES = {
    "front": ("Front", front_figure),
    "latent-sizes": ("Share of its MACs that each layer keeps", heat_map),
    "importance": ("Share of the expected loss by layer", importance_figure),
    "fine-tuning": ("Accuracy after fine-tuning against before", fine_tuning_figure),
}


def artifact_store(outputs: Path) -> FileSystemArtifactStore:
    """Where the dashboard finds the pictures of all studies' trials."""
    folder = outputs / "artifacts"
    folder.mkdir(parents=True, exist_ok=True)
    return FileSystemArtifactStore(folder)


class DashboardPage:
    """A study's page in the dashboard, kept up to date at a bounded cost.

    A refresh costs time and, in a journal, room. So there is one only once the time since the last is a hundred times
    what that took, and only once there is a tenth more to show.
    """

    def __init__(self, study: Study, facts: StudyFacts, folder: Path, outputs: Path) -> None:
        self._study = study
        self._facts = facts
        self._report = folder / "report.html"
        self._store = artifact_store(outputs)
        self._again = 0.0
        self._trials = -1  # so that there is a page before the first of them

    def trial(self, trial: Trial, result: TrialResult) -> None:
        """Give a trial that is about to complete a picture of its plan, and figures to sort by."""
        seconds = {f"seconds_{stage}": round(taken, 3) for stage, taken in result.seconds.items()}
        attributes = {
            "speedup": round(result.speedup, 4),
            "params": result.params,
            "accuracy_drop": round(self._facts.accuracy - result.accuracy, 5),
            "seconds": round(sum(result.seconds.values()), 3),
            **seconds,
        }
        for name, value in attributes.items():
            trial.set_user_attr(name, value)
        try:
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                picture = Path(folder) / f"latent_sizes_{trial.number}.png"
                draw_plan(self._facts, result, picture)
                upload_artifact(artifact_store=self._store, file_path=str(picture), study_or_trial=trial)
        except OSError as error:  # a trial is worth more than its picture
            log.warning("the picture of trial %d could not be written: %s", trial.number, error)

    def refresh_if_due(self, records: Sequence[TrialRecord]) -> None:
        """Refresh the page, unless that was done lately.

        Args:
            records: all trials of the study.
        """
        if time.perf_counter() >= self._again:
            self._refresh(records, more=max(1, self._trials // 10))

    def refresh(self) -> None:
        """Refresh the page if there is anything new."""
        self._refresh(read_trials(self._study), more=0)

    def _refresh(self, records: Sequence[TrialRecord], more: int) -> None:
        start = time.perf_counter()
        done = sum(record.finished for record in records)
        if done < self._trials + more:
            return
        with first(self._report.with_name("page.lock")) as ours:
            if not ours:  # pieces of two pages would mix
                return
            try:
                self._write(records)
            except StorageInternalError as error:  # a look of the study, not the study
                log.warning("the dashboard's page of the study could not be written: %s", first_line(error))
                return
        end = time.perf_counter()
        self._trials, self._again = done, end + (end - start) / SHARE

    def _write(self, records: Sequence[TrialRecord]) -> None:
        from optuna_dashboard import get_note, save_note, save_plotly_graph_object  # which takes a second to import

        study, body = self._study, write_note(self._facts, records, self._report)
        above, heading, known = get_note(study).rpartition(HEADING)
        if heading and known == body:
            return
        save_note(study, f"{above if heading else known}{HEADING}{body}")
        for name, (title, draw) in FIGURES.items():
            figure = draw(self._facts, records).update_layout(title=title, margin={"t": 90})
            save_plotly_graph_object(study, figure, graph_object_id=name)

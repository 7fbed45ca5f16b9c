"""A study's page in Optuna's dashboard: a note, figures, and a picture of every plan."""

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
from ranksearch.locks import try_exclusive
from ranksearch.report.figures import fine_tuning_figure, front_figure, heat_map, importance_figure
from ranksearch.report.plan_text import after, by_scheme
from ranksearch.report.static_figures import PlanPictures
from ranksearch.report.tables import cost_names, format_costs
from ranksearch.results.metadata import StudyMetadata
from ranksearch.results.pareto import evenly_spaced, pareto_front
from ranksearch.results.trials import FeasibleTrial, TrialRecord, TrialResult, read_trials

log = logging.getLogger(__name__)

ROWS = 12  # of the table, evenly spaced over the front to keep the note short
SHARE = 0.01  # share of a process's working time that may go into the note and the figures
PICTURE_DPI = 90
# Text that the user writes above the heading is preserved.
HEADING = "## ranksearch\n\n*Notes of your own are kept above this heading; all below it is refreshed.*\n\n"
# Id -> title and drawing function.
FIGURES = {
    "front": ("Front", front_figure),
    "latent-sizes": ("Share of its MACs that each layer keeps", heat_map),
    "importance": ("Share of the expected loss by layer", importance_figure),
    "fine-tuning": ("Accuracy after fine-tuning against before", fine_tuning_figure),
}


def write_note(metadata: StudyMetadata, records: Sequence[TrialRecord], report: Path) -> str:
    """Return a Markdown summary of a study: goal, command, baseline, closed-form results, front and report."""
    done, tuned = sum(record.finished for record in records), after(metadata.fine_tune_steps)
    results = [record.result for record in records if record.closed_form and record.result is not None]
    closed_form = ", ".join(f"{result.accuracy:.2%} at {result.speedup:.2f}x" for result in results) or "nothing yet"
    paragraphs = (
        f"**Goal:** {metadata.model} on {metadata.dataset}, at least {metadata.speedup:g}x faster in "
        f"{metadata.scale.name}, at the highest accuracy. {done} of {metadata.trials} trials are finished.",
        f"```bash\n{metadata.command}\n```",
        f"**Dense:** {metadata.accuracy:.2%} on the validation split, {metadata.format_cost(metadata.cost)}, "
        f"{metadata.params / 1e6:.3f} M params.",
        f"**The closed form** gives, before any search: {closed_form} ({tuned}).",
        f"**The front**, validation accuracy {tuned}:",
        _front_table(metadata, pareto_front(records)),
        f"**Report:** `{report}`, and beside it `trials.csv`, `front.json` and `best/`.",
        "A layer's parameters are its latent size and its scheme; the largest value means dense.",
    )
    return "\n\n".join(paragraphs)


def _front_table(metadata: StudyMetadata, points: Sequence[FeasibleTrial]) -> str:
    if not points:
        return "No trial has completed yet."
    head = ("trial", *cost_names(metadata), "before", "after", "layers by scheme")
    rows = [head, ("---",) * len(head)]
    for point in evenly_spaced(points, ROWS):
        result, number = point.result, str(point.number)
        accuracies = (f"{result.accuracy_before:.2%}", f"{result.accuracy:.2%}")
        rows.append((number, *format_costs(metadata, result), *accuracies, by_scheme(result.plan)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def artifact_store(outputs: Path) -> FileSystemArtifactStore:
    """Return the artifact store for the pictures of all studies' trials; create its folder if necessary."""
    folder = outputs / "artifacts"
    folder.mkdir(parents=True, exist_ok=True)
    return FileSystemArtifactStore(folder)


class DashboardPage:
    """A study's page in the dashboard, refreshed at a bounded cost.

    A refresh costs time and, in journal storage, disk space. It is therefore repeated only after a hundred times its
    own duration, and only once the number of finished trials has grown by a tenth.
    """

    def __init__(self, study: Study, metadata: StudyMetadata, folder: Path, outputs: Path) -> None:
        self._study, self._metadata = study, metadata
        self._report, self._store = folder / "report.html", artifact_store(outputs)
        self._pictures = PlanPictures(metadata, PICTURE_DPI)
        self._again = 0.0
        self._trials = -1  # so that the page is written before the first trial finishes

    def trial(self, trial: Trial, result: TrialResult) -> None:
        """Attach a picture of its plan and sortable user attributes to a trial that is about to complete."""
        attributes = {
            "speedup": round(result.speedup, 4),
            "params": result.params,
            "accuracy_drop": round(self._metadata.accuracy - result.accuracy, 5),
            "seconds": round(sum(result.seconds.values()), 3),
            **{f"seconds_{stage}": round(taken, 3) for stage, taken in result.seconds.items()},
        }
        for name, value in attributes.items():
            trial.set_user_attr(name, value)
        try:
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                picture = Path(folder) / f"latent_sizes_{trial.number}.png"
                self._pictures.write(picture, trial.number, result)
                upload_artifact(artifact_store=self._store, file_path=str(picture), study_or_trial=trial)
        except OSError as error:  # a missing picture must not fail the trial
            log.warning("the picture of trial %d could not be written: %s", trial.number, error)

    def refresh_if_due(self, records: Sequence[TrialRecord]) -> None:
        """Refresh the page from the records of all trials, unless it was refreshed recently."""
        if time.perf_counter() >= self._again:
            self._refresh(records, more=max(1, self._trials // 10))

    def refresh(self) -> None:
        """Read the study's trials and refresh the page if its note has changed."""
        self._refresh(read_trials(self._study), more=0)

    def _refresh(self, records: Sequence[TrialRecord], more: int) -> None:
        start = time.perf_counter()
        done = sum(record.finished for record in records)
        if done < self._trials + more:
            return
        with try_exclusive(self._report.with_name("page.lock")) as locked:
            if not locked:  # another process is writing, and two pages would mix
                return
            try:
                self._write(records)
            except StorageInternalError as error:  # the study can do without its page
                log.warning("the dashboard's page of the study could not be written: %s", first_line(error))
                return
        end = time.perf_counter()
        self._trials, self._again = done, end + (end - start) / SHARE

    def _write(self, records: Sequence[TrialRecord]) -> None:
        from optuna_dashboard import get_note, save_note, save_plotly_graph_object  # takes a second to import

        study, body = self._study, write_note(self._metadata, records, self._report)
        above, heading, note = get_note(study).rpartition(HEADING)
        if heading and note == body:
            return
        save_note(study, f"{above if heading else note}{HEADING}{body}")
        for name, (title, draw) in FIGURES.items():
            figure = draw(self._metadata, records).update_layout(title=title, margin={"t": 90})
            save_plotly_graph_object(study, figure, graph_object_id=name)

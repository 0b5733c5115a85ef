"""Training runs: score and loss reached, and the time it took."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.record import Record
from bench.section import Fact, Plot, Section, Series, Table
from bench.text import NA, count, duration, number, percent, percent_range, plural, value_text

ACCURACY = "accuracy"
"""The metric of classifiers, a share of the test samples."""
VERDICTS = 3
"""Runs that the verdict names."""
HUGE = 1e300
"""What is not below this is no measurement: infinity, not a number, or a mistake."""
MOST_RUNS = 6
"""Runs in one plot."""
COLUMNS = (
    "model",
    "data",
    "ranks",
    "global batch",
    "epochs",
    "test score, last epoch",
    "best epoch",
    "test loss",
    "train loss",
    "training time",
    "samples/s in training",
    "settings",
    "status",
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run: its record, and its epochs if they can be read."""

    record: Record
    epochs: tuple[dict[str, Any], ...]

    def setting(self, *path: str) -> str:
        """A field of the configuration, nested or with dots in its name."""
        found: Any = self.record.cell
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        return value_text(self.record.cell.get(".".join(path)) if found is None else found)

    @property
    def name(self) -> str:
        """Short, for plots and the verdict."""
        ranks = self.setting("ranks")
        words = (
            f"{self.setting('model')} on {self.setting('input', 'data')}, {ranks} {'rank' if ranks == '1' else 'ranks'}"
        )
        return f"{words}, seed {self.setting('seed')}"

    @property
    def metric(self) -> str:
        """What its score is; records from before there were others hold accuracy."""
        return value_text(self.record.raw.get("metric", ACCURACY))

    def shown(self, score: float | None) -> str:
        """A score of this run with its name; accuracy in percent."""
        if score is None:
            return NA
        return percent(score) if self.metric == ACCURACY else f"{number(score)} {self.metric}"

    def scores(self) -> list[tuple[int, float]]:
        """Epoch and score on the test set, for the epochs that know it."""
        numbered = [(int(_number(epoch, "epoch") or n), _score(epoch)) for n, epoch in enumerate(self.epochs, start=1)]
        return [(epoch, score) for epoch, score in numbered if score is not None]

    @property
    def last_score(self) -> float | None:
        """Score on the test set after the last epoch."""
        return _score(self.epochs[-1]) if self.epochs else None

    def last(self, field: str) -> float | None:
        """A number of the last epoch."""
        return _number(self.epochs[-1], field) if self.epochs else None

    def total(self, field: str) -> float | None:
        """A number summed over epochs, None if any epoch does not know it."""
        values = [_number(epoch, field) for epoch in self.epochs]
        known = [value for value in values if value is not None]
        return sum(known) if known and len(known) == len(values) else None

    @property
    def rate_per_s(self) -> float | None:
        """Training samples of all epochs / seconds of all epochs, evaluation apart."""
        samples, seconds = self.total("train_samples"), self.total("train_s")
        return samples / seconds if samples is not None and seconds else None


def summarise(records: Sequence[Record]) -> Section:
    """What the fit records say."""
    runs = [Run(record=record, epochs=_epochs(record)) for record in records]
    trained = [run for run in runs if run.epochs]
    facts = (_fact(trained),) if trained else ()
    note = "Scores and losses are of the last epoch; the best epoch was picked with the test data, so it flatters. "
    note += "Training time leaves evaluation out; samples/s is all training samples over it. "
    sizes = dict.fromkeys(f"{run.setting('model')} {_parameters(run)}" for run in runs)
    note += f"Parameters: {', '.join(sizes)}."
    table = Table(title="Training runs", columns=COLUMNS, rows=tuple(_row(run) for run in runs), note=note)
    return Section(facts=facts, tables=(table,), plots=tuple(_plots(trained)), caveats=tuple(_caveats(runs)))


def _number(fields: dict[str, Any], name: str) -> float | None:
    value = fields.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < HUGE else None


def _score(epoch: dict[str, Any]) -> float | None:
    """Share of test samples that were classified rightly, or what else a model is judged by."""
    if "test_score" in epoch:
        return _number(epoch, "test_score")
    correct, samples = _number(epoch, "test_correct"), _number(epoch, "test_samples")
    return None if correct is None or not samples else correct / samples


def _epochs(record: Record) -> tuple[dict[str, Any], ...]:
    found = record.raw.get("epochs")
    return tuple(epoch for epoch in found if isinstance(epoch, dict)) if isinstance(found, list) else ()


def _status(run: Run) -> str:
    if run.record.status != "ok":
        return f"{run.record.status}: {value_text(run.record.error)}"
    return "ok" if run.epochs else "unreadable: the record says ok, but holds no epochs"


def _fact(runs: list[Run]) -> Fact:
    """Score of the one run, or the span of several with a detail for each."""
    metrics = {run.metric for run in runs}
    label = "Accuracy" if metrics == {ACCURACY} else "Score"
    if len(runs) == 1:
        return Fact(label=label, value=_reached(runs[0]), details=_circumstances(runs[0]))
    known = [score for run in runs if (score := run.last_score) is not None]
    value = f"{percent_range(min(known), max(known))} of test samples" if known else NA
    if metrics != {ACCURACY}:
        value = plural(len(runs), "run")
    details = [f"{run.name}: {_reached(run)} after {duration(run.total('train_s'))}" for run in runs[:VERDICTS]]
    more = [f"{plural(len(runs) - VERDICTS, 'more run')} in the table"] if len(runs) > VERDICTS else []
    return Fact(label=label, value=value, details=(*details, *more))


def _reached(run: Run) -> str:
    share = run.metric == ACCURACY and run.last_score is not None
    return run.shown(run.last_score) + (" of test samples" if share else "")


def _circumstances(run: Run) -> tuple[str, ...]:
    best = max(run.scores(), key=lambda pair: pair[1], default=None)
    peak = () if best is None else (f"best {run.shown(best[1])} in epoch {best[0]}",)
    return run.name, plural(len(run.epochs), "epoch"), f"{duration(run.total('train_s'))} of training", *peak


def _row(run: Run) -> tuple[str, ...]:
    best = max(run.scores(), key=lambda pair: pair[1], default=None)
    planned, done = run.setting("epochs"), str(len(run.epochs))
    settings = [f"{name.replace('_', ' ')} {run.setting(name)}" for name in ("sync_bn", "amp", "seed")]
    return (
        run.setting("model"),
        run.setting("input", "data"),
        run.setting("ranks"),
        run.setting("global_batch_size"),
        done if planned == done else f"{done} of {planned}",
        run.shown(run.last_score),
        NA if best is None else f"{run.shown(best[1])} (epoch {best[0]})",
        number(run.last("test_loss")),
        number(run.last("train_loss")),
        duration(run.total("train_s")),
        number(run.rate_per_s),
        ", ".join(settings),
        _status(run),
    )


def _parameters(run: Run) -> str:
    value = run.record.raw.get("parameters")
    return count(value) if isinstance(value, int) else NA


def _caveats(runs: list[Run]) -> list[str]:
    trained = [run for run in runs if run.epochs]
    found = []
    if any(run.setting("input", "data") == "synthetic" for run in trained):
        found.append("A score on synthetic data shows that training works, not how good the model is.")
    if single := sum(len(seeds) == 1 for seeds in _seeds(trained)):
        what = plural(single, "training configuration")
        found.append(f"{what} ran with one seed only: how much its score varies between seeds is not known.")
    if lost := sum(run.last("train_loss") is None for run in trained):
        found.append(f"{plural(lost, 'training run')} ended without a finite training loss.")
    return found


def _seeds(runs: list[Run]) -> list[set[str]]:
    groups: dict[str, set[str]] = {}
    for run in runs:
        rest = {key: value for key, value in run.record.cell.items() if key != "seed"}
        groups.setdefault(value_text(rest), set()).add(run.setting("seed"))
    return list(groups.values())


def _plots(runs: list[Run]) -> list[Plot]:
    """Score and loss against epoch, and score against time."""
    shown, left = runs[:MOST_RUNS], len(runs) - MOST_RUNS
    note = f"{plural(left, 'more run')} in the table." if left > 0 else ""
    plots = []
    for metric in dict.fromkeys(run.metric for run in shown):
        alike = [run for run in shown if run.metric == metric]
        scores = tuple(
            Series(label=run.name, points=tuple((float(epoch), score) for epoch, score in run.scores()))
            for run in alike
        )
        if not any(series.points for series in scores):
            continue
        plots.append(_plot(f"Test {metric}", scores, note, metric))
        timed = tuple(Series(label=run.name, points=_score_by_time(run)) for run in alike)
        if any(series.points for series in timed):
            plots.append(_plot(f"Test {metric} against time", timed, note, metric))
    losses = tuple(
        Series(label=f"{kind}: {run.name}" if len(shown) > 1 else kind, points=_losses(run, field))
        for run in shown
        for kind, field in (("train", "train_loss"), ("test", "test_loss"))
    )
    return [*plots, _plot("Loss", losses, note, "loss")] if any(series.points for series in losses) else plots


def _plot(title: str, series: tuple[Series, ...], note: str, metric: str) -> Plot:
    share = metric == ACCURACY
    by_time = title.endswith("time")
    return Plot(
        title=title,
        x_label="seconds of training and evaluation" if by_time else "epoch",
        y_label="share of test samples that is right" if share else metric,
        series=tuple(each for each in series if each.points),
        note=note,
        y_percent=share,
    )


def _losses(run: Run, field: str) -> tuple[tuple[float, float], ...]:
    numbered = ((float(place), _number(epoch, field)) for place, epoch in enumerate(run.epochs, start=1))
    return tuple((epoch, loss) for epoch, loss in numbered if loss is not None)


def _score_by_time(run: Run) -> tuple[tuple[float, float], ...]:
    """Seconds since training began (training and evaluation) and score; empty if any time is unknown."""
    scores, points, elapsed_s = dict(run.scores()), [], 0.0
    for place, epoch in enumerate(run.epochs, start=1):
        train_s, test_s = _number(epoch, "train_s"), _number(epoch, "test_s")
        if train_s is None or test_s is None:
            return ()
        elapsed_s += train_s + test_s
        score = scores.get(int(_number(epoch, "epoch") or place))
        if score is not None:
            points.append((elapsed_s, score))
    return tuple(points)


def numbers(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Of each record: what its run had reached in the last epoch, and how fast it trained."""
    found = []
    for run in (Run(record=record, epochs=_epochs(record)) for record in records):
        losses = {"test_loss": run.last("test_loss"), "train_loss": run.last("train_loss")}
        times = {"samples_per_s": run.rate_per_s, "train_s": run.total("train_s"), "test_s": run.total("test_s")}
        best = max((score for _, score in run.scores()), default=None)
        scores = {"metric": run.metric, "test_score": run.last_score, "best_test_score": best}
        found.append({**times, "epochs": len(run.epochs), **scores, **losses} if run.epochs else {})
    return found

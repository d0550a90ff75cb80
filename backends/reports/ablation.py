"""Ablations: plans, the outcomes of their runs, and tables of results. `ict ablate` trains and measures."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ict_backends.errors import CheckpointError, UsageError
from ict_core import ConfigError
from ict_core.settings import Tree, build_sections, merge, preset_tree

_KEYS = {"title": str, "preset": str, "reference": str, "axis": str, "variants": dict}
# The file in a run's folder that holds the run's outcome.
_RESULT = "ablation.json"


class Variant(NamedTuple):
    """A variant of a plan.

    Attributes:
        name: its name.
        changes: the settings that it changes, by section.
        init: the variant whose run of the same seed it starts from (`ict train --init`); "" for none.
    """

    name: str
    changes: Tree
    init: str = ""

    @property
    def folder(self) -> str:
        """The name in characters that a folder's name may have; others become "_"."""
        return "".join(c if c.isalnum() or c in "-+." else "_" for c in self.name)

    def value(self, key: str) -> Any:
        """The value that the variant gives to the setting `key` ("section.name"), or None if it does not change it."""
        section, _, name = key.partition(".")
        return self.changes.get(section, {}).get(name)

    def others(self, key: str) -> dict[str, Any]:
        """The changed settings by "section.name", except `key`."""
        flat = {f"{s}.{k}": v for s, values in self.changes.items() for k, v in values.items()}
        return {name: value for name, value in flat.items() if name != key}


class StudyPlan(NamedTuple):
    """The plan of an ablation: the variants to be compared.

    Attributes:
        name: the name of the plan's file, without its ending.
        title: the heading of the page and the figure.
        preset: the settings that all variants begin with.
        reference: the name of the variant that the others are compared with.
        axis: the setting, "section.name", along the figure's horizontal axis, or "" for a figure with a row per
            variant.
        variants: the variants, in the order of the table.
    """

    name: str
    title: str
    preset: str
    reference: str
    axis: str
    variants: tuple[Variant, ...]

    def base(self, asked: Tree) -> Tree:
        """The settings of the variants before their own changes: the preset's, overridden by those `asked` for."""
        return merge([preset_tree(self.preset), asked])


class Outcome(NamedTuple):
    """The outcome of one run.

    Attributes:
        metric: the metric that was measured.
        num: the number of samples it was measured on; None for as many as `ict eval` takes by default.
        value: the metric's value, or None if the run failed.
        seconds: the time that training and measuring took; for a resumed run, since it was resumed.
        error: why the run failed, or "".
        steps: sampling steps of the measured samples; None for as many as `ict eval` takes by default.
    """

    metric: str
    num: int | None
    value: float | None
    seconds: float
    error: str = ""
    steps: int | None = None


class Summary(NamedTuple):
    """The runs of a variant over all seeds, and their statistics.

    Attributes:
        outcomes: one outcome per seed.
        mean: the mean of the values of the runs that did not fail; NaN if all failed.
        spread: the standard deviation of these values as a sample; NaN if there are fewer than two.
        difference: the mean minus the reference's mean; NaN for the reference itself.
        error: the standard error of the difference; NaN for the reference itself.
    """

    variant: Variant
    outcomes: Sequence[Outcome]
    mean: float
    spread: float
    difference: float
    error: float

    @property
    def values(self) -> list[float]:
        """The metric's values of the runs that did not fail."""
        return [o.value for o in self.outcomes if o.value is not None]

    def verdict(self) -> str:
        """The difference in words, where a smaller metric is better; "" for the reference."""
        failed = sum(o.value is None for o in self.outcomes)
        if failed:
            return f"{failed} of {len(self.outcomes)} runs failed"
        if not math.isfinite(self.difference):
            return ""
        how = "worse" if self.difference > 0 else "better"
        if not self.error > 0:  # a single seed says nothing about the noise
            return f"{how} by {abs(self.difference):.3g}"
        errors = abs(self.difference) / self.error
        return f"{how if errors >= 2 else 'within the noise'} ({self.difference:+.3g}, {errors:.1f} standard errors)"


def read_plan(path: Path) -> StudyPlan:
    """Read and check the plan in a TOML file.

    Raises:
        UsageError, ConfigError: the file cannot be read or is no valid plan; the message is one line that names the
            file, the variant if it lies in one, and the fault.
    """
    try:
        tree = _read_document(path)
    except OSError as error:
        raise UsageError(f"plan {path} cannot be read: {error.strerror}") from error
    unknown = [key for key in tree if key not in _KEYS]
    if unknown:
        raise UsageError(f"plan {path}: unknown key {unknown[0]}; there are {', '.join(_KEYS)}")
    for key, kind in _KEYS.items():
        if key != "axis" and not isinstance(tree.get(key), kind):
            raise UsageError(f"plan {path}: {key} must be a {'table' if kind is dict else 'string'}")
    variants = tuple(_variant(name, settings, path) for name, settings in tree["variants"].items())
    plan = StudyPlan(path.stem, tree["title"], tree["preset"], tree["reference"], tree.get("axis", ""), variants)
    _check(plan, path)
    return plan


def _variant(name: str, settings: Any, path: Path) -> Variant:
    if not isinstance(settings, Mapping):
        raise UsageError(f"plan {path}: variant {name!r} must set SECTION = {{ KEY = VALUE }}")
    init = settings.get("init", "")
    if not isinstance(init, str):
        raise UsageError(f"plan {path}: variant {name!r}: init must be the name of a variant")
    return Variant(name, {key: value for key, value in settings.items() if key != "init"}, init)


def _read_document(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"plan {path} is not a TOML file: {error}") from None


def _check(plan: StudyPlan, path: Path) -> None:
    names = [variant.name for variant in plan.variants]
    if plan.reference not in names:
        raise UsageError(f"plan {path}: reference {plan.reference!r} is no variant; there are {', '.join(names)}")
    folders = [variant.folder for variant in plan.variants]
    same = next((f for f in folders if folders.count(f) > 1 or not f.strip("_.")), None)
    if same is not None:
        raise UsageError(f"plan {path}: the names of variants must differ in letters and digits; see {same!r}")
    base = preset_tree(plan.preset)
    for i, variant in enumerate(plan.variants):
        if variant.init and variant.init not in names[:i]:
            raise UsageError(f"plan {path}: variant {variant.name!r}: init = {variant.init!r} is no variant before it")
        if not all(isinstance(values, Mapping) for values in variant.changes.values()):
            raise UsageError(f"plan {path}: variant {variant.name!r} must set SECTION = {{ KEY = VALUE }}")
        try:
            build_sections(merge([base, variant.changes]))
        except ConfigError as error:
            raise ConfigError(f"plan {path}: variant {variant.name!r}: {error}") from None
    if plan.axis and not any(variant.value(plan.axis) is not None for variant in plan.variants):
        raise UsageError(f"plan {path}: no variant sets the axis, {plan.axis}")


def write_outcome(run: Path, outcome: Outcome) -> None:
    """Write the outcome of a run into the run's folder."""
    from ict_backends.files import write_atomically

    write_atomically(run / _RESULT, (json.dumps(outcome._asdict()) + "\n").encode())


def read_outcome(run: Path) -> Outcome | None:
    """The outcome in a run's folder; None if none is written yet. Raises CheckpointError if it cannot be read."""
    try:
        return Outcome(**json.loads((run / _RESULT).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{run / _RESULT} cannot be read ({error}); remove it to run this one again") from error


def summarize(plan: StudyPlan, outcomes: Mapping[str, Sequence[Outcome]]) -> list[Summary]:
    """Compare each variant's runs over the seeds with the reference's.

    Args:
        outcomes: for each variant's name, one outcome per seed.

    Returns:
        A summary per variant, in the order of the plan.
    """
    values = {name: [o.value for o in runs if o.value is not None] for name, runs in outcomes.items()}
    reference = _mean(values[plan.reference])
    summaries = []
    for variant in plan.variants:
        own, other = values[variant.name], values[plan.reference]
        difference, error = _mean(own) - reference, math.hypot(_error(own), _error(other))
        if variant.name == plan.reference:
            difference = error = math.nan
        summaries.append(Summary(variant, outcomes[variant.name], _mean(own), _spread(own), difference, error))
    return summaries


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def _error(values: Sequence[float]) -> float:
    return _spread(values) / math.sqrt(len(values)) if values else math.nan


def describe_changes(variant: Variant) -> str:
    """The changes of a variant as the command line takes them, "section.name=value ..."; "none" if there are none."""
    changes = [f"{name}={_literal(value)}" for name, value in variant.others("").items()]
    start = [f"--init {variant.init}"] if variant.init else []
    return " ".join([*start, *changes]) or "none"


def assignments(tree: Tree) -> list[str]:
    """The settings of a tree as options of `ict train`: "--set=section.name=value" each."""
    return [f"--set={s}.{key}={_literal(value)}" for s, values in tree.items() for key, value in values.items()]


def _literal(value: Any) -> str:
    """A value in TOML's notation, which for the types of settings is the same as JSON's."""
    return json.dumps(value, ensure_ascii=False)


def markdown(plan: StudyPlan, summaries: Sequence[Summary], about: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """The page of the results in Markdown: the table, the pictures, and how they were made.

    Args:
        about: facts about the runs: metric, seeds, backend, machine, command and jobs.
        pictures: file names, relative to the page.
    """
    metric, steps = about["metric"], about.get("steps")
    metric = f"{metric} in {steps} steps" if steps else metric
    rows = [
        f"| variant | changes | {metric}, mean | spread | each seed | beside {plan.reference} | minutes a run |",
        "|---|---|---|---|---|---|---|",
    ]
    for summary in summaries:
        each = ", ".join("failed" if o.value is None else f"{o.value:.3g}" for o in summary.outcomes)
        minutes = statistics.fmean(o.seconds for o in summary.outcomes) / 60
        cells = [
            summary.variant.name,
            f"`{describe_changes(summary.variant)}`",
            _number(summary.mean),
            _number(summary.spread),
        ]
        rows.append("| " + " | ".join([*cells, each, summary.verdict(), f"{minutes:.1f}"]) + " |")
    failures = [
        f"- {summary.variant.name}, seed {seed}: {o.error}"
        for summary in summaries
        for seed, o in zip(about["seeds"], summary.outcomes, strict=True)
        if o.error
    ]
    machine, seconds = about["machine"], sum(o.seconds for summary in summaries for o in summary.outcomes)
    made = (
        f"`{about['command']}`, {about['backend']}, {machine['cpu']}, {machine['cores']} cores; the sum of all runs "
        f"{seconds / 60:.0f} minutes, {about['jobs']} at a time."
    )
    parts = [f"# {plan.title}", "\n".join(rows), *(["\n".join(failures)] if failures else [])]
    return "\n\n".join([*parts, *(f"![{plan.title}]({name})" for name in pictures), made]) + "\n"


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else ""


def to_json(plan: StudyPlan, summaries: Sequence[Summary], about: Mapping[str, Any]) -> str:
    """All results as JSON, for other programs; `about` are further facts to store, such as metric and seeds."""
    variants = {
        summary.variant.name: {
            "changes": summary.variant.others(""),
            **({"init": summary.variant.init} if summary.variant.init else {}),
            "outcomes": [o._asdict() for o in summary.outcomes],
            **{
                key: value if math.isfinite(value := getattr(summary, key)) else None
                for key in ("mean", "spread", "difference", "error")
            },
        }
        for summary in summaries
    }
    head = {"plan": plan.name, "title": plan.title, "preset": plan.preset, "reference": plan.reference}
    return json.dumps({**head, **about, "variants": variants}, indent=2, ensure_ascii=False) + "\n"

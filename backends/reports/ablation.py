"""Ablations: plans, what their runs gave, and the tables of it. Training and measuring are the command line's part."""

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
# Of a run's folder: what came of it.
_RESULT = "ablation.json"


class Variant(NamedTuple):
    """A name, and the settings that it changes."""

    name: str
    changes: Tree

    @property
    def folder(self) -> str:
        """The name as one of a folder."""
        return "".join(c if c.isalnum() or c in "-+." else "_" for c in self.name)

    def value(self, key: str) -> Any:
        """What it sets `section.key` to, or None."""
        section, _, name = key.partition(".")
        return self.changes.get(section, {}).get(name)

    def others(self, key: str) -> dict[str, Any]:
        """All that it sets but `section.key`."""
        flat = {f"{s}.{k}": v for s, values in self.changes.items() for k, v in values.items()}
        return {name: value for name, value in flat.items() if name != key}


class StudyPlan(NamedTuple):
    """What is compared.

    Attributes:
        name: of the plan's file, without its ending.
        preset: the settings that all variants begin with.
        reference: the variant that the others are compared with.
        axis: the setting that is the figure's horizontal axis, or "" for a row a variant.
        variants: in the order of the table.
    """

    name: str
    title: str
    preset: str
    reference: str
    axis: str
    variants: tuple[Variant, ...]

    def base(self, asked: Tree) -> Tree:
        """The settings of the variants before their own changes: the preset's, and what is asked for."""
        return merge([preset_tree(self.preset), asked])


class Outcome(NamedTuple):
    """What one run gave.

    Attributes:
        metric, num: what was measured, of how many samples; None for as many as `ict eval` takes.
        value: of the metric, or None where the run failed.
        seconds: that training and measuring took; of a run that was gone on with, the rest of it.
        error: why it failed, or "".
    """

    metric: str
    num: int | None
    value: float | None
    seconds: float
    error: str = ""


class Summary(NamedTuple):
    """A variant's runs, over the seeds.

    Attributes:
        mean, spread: of the values; the spread is the standard deviation of the sample. NaN where there are too few.
        difference, error: from the reference's mean, and its standard error; NaN for the reference itself.
    """

    variant: Variant
    outcomes: Sequence[Outcome]
    mean: float
    spread: float
    difference: float
    error: float

    @property
    def values(self) -> list[float]:
        """Of the runs that did not fail."""
        return [o.value for o in self.outcomes if o.value is not None]

    def verdict(self) -> str:
        """The difference in words; a smaller metric is better."""
        failed = sum(o.value is None for o in self.outcomes)
        if failed:
            return f"{failed} of {len(self.outcomes)} runs failed"
        if not math.isfinite(self.difference):
            return ""
        how = "worse" if self.difference > 0 else "better"
        if not self.error > 0:  # of one seed, nothing is known of the noise
            return f"{how} by {abs(self.difference):.3g}"
        errors = abs(self.difference) / self.error
        return f"{how if errors >= 2 else 'within the noise'} ({self.difference:+.3g}, {errors:.1f} standard errors)"


def read_plan(path: Path) -> StudyPlan:
    """The plan of a TOML file.

    Raises:
        UsageError, ConfigError: in one line, naming the file, the variant, and what is wrong.
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
    variants = tuple(Variant(name, changes) for name, changes in tree["variants"].items())
    plan = StudyPlan(path.stem, tree["title"], tree["preset"], tree["reference"], tree.get("axis", ""), variants)
    _check(plan, path)
    return plan


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
    for variant in plan.variants:
        if not all(isinstance(values, Mapping) for values in variant.changes.values()):
            raise UsageError(f"plan {path}: variant {variant.name!r} must set SECTION = {{ KEY = VALUE }}")
        try:
            build_sections(merge([base, variant.changes]))
        except ConfigError as error:
            raise ConfigError(f"plan {path}: variant {variant.name!r}: {error}") from None
    if plan.axis and not any(variant.value(plan.axis) is not None for variant in plan.variants):
        raise UsageError(f"plan {path}: no variant sets the axis, {plan.axis}")


def write_outcome(run: Path, outcome: Outcome) -> None:
    """Note in a run's folder what came of it."""
    from ict_backends.files import write_atomically

    write_atomically(run / _RESULT, (json.dumps(outcome._asdict()) + "\n").encode())


def read_outcome(run: Path) -> Outcome | None:
    """What came of a run; None where it has not come to an end. Raises CheckpointError where the note is damaged."""
    try:
        return Outcome(**json.loads((run / _RESULT).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{run / _RESULT} cannot be read ({error}); remove it to run this one again") from error


def summarize(plan: StudyPlan, outcomes: Mapping[str, Sequence[Outcome]]) -> list[Summary]:
    """The runs of each variant over the seeds, by its name, compared with the reference's."""
    values = {name: [o.value for o in found if o.value is not None] for name, found in outcomes.items()}
    reference = _mean(values[plan.reference])
    found = []
    for variant in plan.variants:
        own, other = values[variant.name], values[plan.reference]
        difference, error = _mean(own) - reference, math.hypot(_error(own), _error(other))
        if variant.name == plan.reference:
            difference = error = math.nan
        found.append(Summary(variant, outcomes[variant.name], _mean(own), _spread(own), difference, error))
    return found


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def _error(values: Sequence[float]) -> float:
    return _spread(values) / math.sqrt(len(values)) if values else math.nan


def describe_changes(variant: Variant) -> str:
    """What a variant changes, as the command line takes it."""
    found = [f"{name}={_literal(value)}" for name, value in variant.others("").items()]
    return " ".join(found) or "none"


def assignments(tree: Tree) -> list[str]:
    """The settings of a tree as options of `ict train`."""
    return [f"--set={s}.{key}={_literal(value)}" for s, values in tree.items() for key, value in values.items()]


def _literal(value: Any) -> str:
    """As TOML has it; for these types, JSON's notation is the same."""
    return json.dumps(value, ensure_ascii=False)


def markdown(plan: StudyPlan, summaries: Sequence[Summary], about: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """The page of the results: the table, the pictures, and how it was made."""
    metric = about["metric"]
    rows = [
        f"| variant | changes | {metric}, mean | spread | each seed | beside {plan.reference} | minutes a run |",
        "|---|---|---|---|---|---|---|",
    ]
    for found in summaries:
        each = ", ".join("failed" if o.value is None else f"{o.value:.3g}" for o in found.outcomes)
        minutes = statistics.fmean(o.seconds for o in found.outcomes) / 60
        cells = [found.variant.name, f"`{describe_changes(found.variant)}`", _number(found.mean), _number(found.spread)]
        rows.append("| " + " | ".join([*cells, each, found.verdict(), f"{minutes:.1f}"]) + " |")
    failures = [
        f"- {found.variant.name}, seed {seed}: {o.error}"
        for found in summaries
        for seed, o in zip(about["seeds"], found.outcomes, strict=True)
        if o.error
    ]
    machine = about["machine"]
    made = (
        f"`{about['command']}`, {about['backend']}, {machine['cpu']}, {machine['cores']} cores; the sum of all runs "
        f"{sum(o.seconds for found in summaries for o in found.outcomes) / 60:.0f} minutes, {about['jobs']} at a time."
    )
    parts = [f"# {plan.title}", "\n".join(rows), *(["\n".join(failures)] if failures else [])]
    return "\n\n".join([*parts, *(f"![{plan.title}]({name})" for name in pictures), made]) + "\n"


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else ""


def to_json(plan: StudyPlan, summaries: Sequence[Summary], about: Mapping[str, Any]) -> str:
    """All figures, for other programs."""
    variants = {
        found.variant.name: {
            "changes": found.variant.others(""),
            "outcomes": [o._asdict() for o in found.outcomes],
            **{
                key: value if math.isfinite(value := getattr(found, key)) else None
                for key in ("mean", "spread", "difference", "error")
            },
        }
        for found in summaries
    }
    head = {"plan": plan.name, "title": plan.title, "preset": plan.preset, "reference": plan.reference}
    return json.dumps({**head, **about, "variants": variants}, indent=2, ensure_ascii=False) + "\n"

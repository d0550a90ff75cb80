"""Plans, and the tables of what their runs gave."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from ict_backends.errors import CheckpointError, UserError
from ict_backends.reports.ablation import (
    Outcome,
    StudyPlan,
    Variant,
    assignments,
    describe_changes,
    markdown,
    read_outcome,
    read_plan,
    summarize,
    to_json,
    write_outcome,
)
from ict_core import ConfigError, load_preset
from ict_core.settings import build_config, merge, parse_assignment

PLANS = Path(__file__).parents[2] / "cli" / "plans"
GOOD = """
title = "A plan"
preset = "digits"
reference = "a"
axis = "train.batch_size"
[variants.a]
[variants."b, c"]
train = { batch_size = 8 }
loss = { distance = "l2" }
"""
ABOUT = {
    "metric": "kid",
    "backend": "torch",
    "seeds": [0, 1, 2],
    "machine": {"cpu": "Abacus", "cores": 2},
    "command": "ict ablate a",
    "jobs": 2,
}


def plan_of(tmp_path: Path, text: str) -> StudyPlan:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    return read_plan(file)


def test_a_plan_is_read(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, GOOD)
    assert plan[:5] == ("mine", "A plan", "digits", "a", "train.batch_size")
    first, second = plan.variants
    assert (first.name, first.changes, first.value(plan.axis)) == ("a", {}, None)
    assert (second.folder, second.value(plan.axis)) == ("b__c", 8)
    assert second.others(plan.axis) == {"loss.distance": "l2"}
    assert describe_changes(second) == 'train.batch_size=8 loss.distance="l2"'
    assert describe_changes(first) == "none"


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_plans_that_come_along_are_whole(path: Path) -> None:
    """Each variant's options of the command line give the settings of the plan, and no two are the same."""
    plan, configs = read_plan(path), []
    for variant in plan.variants:
        words = [word.removeprefix("--set=") for word in assignments(variant.changes)]
        config = build_config(merge([plan.base({}), *map(parse_assignment, words)]))
        assert config == build_config(merge([plan.base({}), variant.changes]))
        configs.append(config)
    assert len(set(configs)) >= len(configs) - 1  # one may say again what the preset has
    assert load_preset(plan.preset) in configs


def test_the_plans_of_the_papers_claims_come_along() -> None:
    names = {path.stem for path in PLANS.glob("*.toml")}
    assert names == {
        "five-changes",
        "huber-c",
        "curriculum",
        "noise-law",
        "embedding-scale",
        "dropout",
        "precision",
        "tuning",
        "gap-rule",
    }


def test_tuning_takes_equal_operations() -> None:
    """In forward passes: 3 of a diffusion step, 4 of another one; a variant that starts from another has its, too."""
    plan, totals = read_plan(PLANS / "tuning.toml"), {"": 0}
    for variant in plan.variants:
        config = build_config(merge([plan.base({}), variant.changes]))
        totals[variant.name] = totals[variant.init] + (3 + config.curriculum.has_teacher) * config.train.total_steps
    del totals[""], totals["diffusion"]
    assert set(totals.values()) == {9200}


def test_a_variant_starts_from_one_before_it(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, GOOD + 'init = "a"\n')
    assert [v.init for v in plan.variants] == ["", "a"]
    assert "init" not in plan.variants[1].changes
    assert describe_changes(plan.variants[1]).startswith("--init a train.batch_size=8")
    for wrong, says in (('"b, c"', "init = 'b, c' is no variant before it"), ("3", "must be the name of a variant")):
        with pytest.raises(UserError, match=says):
            plan_of(tmp_path, GOOD + f"init = {wrong}\n")


def test_the_original_method_is_the_preset_of_it() -> None:
    """And each of the others of that plan is one step from the recipe towards it."""
    plan = read_plan(PLANS / "five-changes.toml")
    by_name = {variant.name: variant for variant in plan.variants}
    original = by_name.pop("original method")
    assert build_config(merge([plan.base({}), original.changes])) == load_preset("digits-cm")
    del by_name["improved"]
    assert len(by_name) == 5
    single = merge([variant.changes for variant in by_name.values()])
    assert single == {section: values for section, values in original.changes.items() if section != "network"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "A plan"', "", "title must be a string"),
        ('title = "A plan"', "title = 3", "title must be a string"),
        ('title = "A plan"', "titel = 3", "unknown key titel; there are title, preset"),
        ('"digits"', '"digitz"', "did you mean digits"),
        ('reference = "a"', 'reference = "d"', "reference 'd' is no variant; there are a, b, c"),
        ("[variants.a]", "[variants.a", "is not a TOML file"),
        ("batch_size = 8", "batch_size = 0", "variant 'b, c': train.batch_size must be >= 1"),
        ("batch_size = 8", "batchsize = 8", "variant 'b, c': unknown key train.batchsize; did you mean"),
        ('"l2"', '"l3"', "variant 'b, c': loss.distance must be"),
        ("train = { batch_size = 8 }", "train = 8", "variant 'b, c' must set SECTION"),
        ("[variants.a]", '[variants."b c "]\n[variants.a]', None),
        ("[variants.a]", '[variants."b; c"]\n[variants.a]', "must differ in letters and digits"),
        ("train.batch_size", "train.seed", "no variant sets the axis, train.seed"),
    ],
)
def test_what_is_no_plan_is_refused_in_one_line(tmp_path: Path, old: str, new: str, message: str | None) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    if message is None:
        assert len(plan_of(tmp_path, text).variants) == 3
        return
    with pytest.raises((UserError, ConfigError), match=message) as error:
        plan_of(tmp_path, text)
    assert "\n" not in str(error.value)


def test_a_plan_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.toml cannot be read: No such file"):
        read_plan(tmp_path / "none.toml")


VARIANTS = (Variant("a", {}), Variant("b", {"train": {"seed": 1}}), Variant("c", {}))
PLAN = StudyPlan("p", "Title", "digits", "a", "", VARIANTS)


def outcomes_of(a: list[float | None], b: list[float | None], c: list[float | None]) -> dict[str, list[Outcome]]:
    return {
        n: [Outcome("kid", None, v, 60.0, "" if v is not None else "it broke") for v in vs]
        for n, vs in zip("abc", (a, b, c), strict=True)
    }


def test_means_spreads_and_differences_are_those_of_the_values() -> None:
    """Against numbers worked out by hand."""
    a, b, c = summarize(PLAN, outcomes_of([1.0, 2.0, 3.0], [3.0, 5.0, 7.0], [2.0, 2.0, 2.5]))
    assert (a.mean, a.spread) == (2.0, 1.0)
    assert math.isnan(a.difference)
    assert (b.mean, b.spread, b.difference) == (5.0, 2.0, 3.0)
    assert b.error == pytest.approx(math.sqrt(1 / 3 + 4 / 3))
    assert a.verdict() == ""
    assert b.verdict() == "worse (+3, 2.3 standard errors)"
    assert c.verdict() == "within the noise (+0.167, 0.3 standard errors)"
    (_, better, _) = summarize(PLAN, outcomes_of([5.0, 5.1, 5.2], [1.0, 1.1, 1.2], [1.0, 1.0, 1.0]))
    assert better.verdict().startswith("better (-4, ")


def test_one_seed_tells_nothing_of_the_noise() -> None:
    a, b, _ = summarize(PLAN, outcomes_of([1.0], [1.5], [1.0]))
    assert math.isnan(a.spread)
    assert b.verdict() == "worse by 0.5"


def test_runs_that_failed_are_told_of_and_not_averaged() -> None:
    found = summarize(PLAN, outcomes_of([1.0, 2.0, 3.0], [None, 4.0, 5.0], [None, None, None]))
    assert (found[1].mean, found[1].values) == (4.5, [4.0, 5.0])
    assert found[1].verdict() == "1 of 3 runs failed"
    assert math.isnan(found[2].mean)
    page = markdown(PLAN, found, ABOUT, ["figure.png"])
    assert "- b, seed 0: it broke" in page
    assert "| failed, 4, 5 |" in page
    record = json.loads(to_json(PLAN, found, ABOUT))
    assert record["variants"]["c"]["mean"] is None
    assert record["variants"]["b"]["outcomes"][0] == {
        "metric": "kid",
        "num": None,
        "value": None,
        "seconds": 60.0,
        "steps": None,
        "error": "it broke",
    }


def test_the_page_has_a_row_a_variant_and_says_how_it_was_made() -> None:
    found = summarize(PLAN, outcomes_of([1.0, 2.0, 3.0], [3.0, 5.0, 7.0], [2.0, 2.0, 2.0]))
    page = markdown(PLAN, found, ABOUT, ["figure.png", "samples.png"])
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 3
    assert rows[2] == "| b | `train.seed=1` | 5 | 2 | 3, 5, 7 | worse (+3, 2.3 standard errors) | 1.0 |"
    assert len({row.count("|") for row in rows}) == 1
    assert page.startswith("# Title\n")
    assert "`ict ablate a`, torch, Abacus, 2 cores; the sum of all runs 9 minutes, 2 at a time." in page
    assert "(figure.png)" in page
    assert "(samples.png)" in page


def test_an_outcome_is_kept_with_the_run(tmp_path: Path) -> None:
    assert read_outcome(tmp_path) is None
    write_outcome(tmp_path, Outcome("sw", 200, 0.5, 3.0))
    assert read_outcome(tmp_path) == Outcome("sw", 200, 0.5, 3.0)
    # Whatever the fields are called, users' files keep these names.
    stored = json.loads((tmp_path / "ablation.json").read_text())
    assert stored == {"metric": "sw", "num": 200, "value": 0.5, "seconds": 3.0, "error": "", "steps": None}
    for damaged in ("{", "[" * 100_000):
        (tmp_path / "ablation.json").write_text(damaged)
        with pytest.raises(CheckpointError, match=r"ablation\.json cannot be read"):
            read_outcome(tmp_path)

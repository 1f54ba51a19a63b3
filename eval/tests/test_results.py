"""Several logs together: what is compared with what, which corrections hold, and what tables, pictures and pages show."""

from __future__ import annotations

import csv
import json
import random
import re
from pathlib import Path
from statistics import fmean
from xml.etree import ElementTree

import pytest
from matplotlib import image
from statsmodels.stats.multitest import multipletests

from lswap_core.errors import RecipeError
from lswap_eval import Header, Log, Record, compare, read_problems, read_runs
from lswap_eval.mgsm.problems import half_of
from lswap_eval.score import statistics as stats
from lswap_eval.score.comparison import ALL, Comparison, ScoredRun
from lswap_eval.score.flips import list_flips, render_page
from lswap_eval.score.plots import draw_accuracies, draw_sweep, save_figure
from lswap_eval.score.tables import accuracy_table, category_table, difference_table, to_csv, to_markdown

COUNT = 60
LANGUAGES = ("sw", "te")
GOLDS = {language: [100 + n for n in range(COUNT)] for language in LANGUAGES}


def write_log(
    folder: Path,
    name: str,
    accuracy: float,
    *,
    pair: str = "",
    seed: int = 0,
    count: int = COUNT,
    sample: int = 1,
    **settings: object,
) -> Path:
    """A log in which about that share of answers is right; hard problems are hard for all."""
    drawn = random.Random(f"{name} {pair} {seed}")
    model = {"identity": f"{name}{pair}", "setting": name} | ({"pair": pair} if pair else {})
    path = folder / f"{name}{pair}.jsonl"
    with Log.open(path, Header(model, {"prompt": "native_cot", "exemplars": 8, **settings}, "cd", GOLDS)) as log:
        for language in LANGUAGES:
            for n in range(count):
                right = drawn.random() + random.Random(n).random() < 2 * accuracy
                text = (
                    f"Jibu ni {100 + n}" if right else drawn.choice(["Jibu ni 7", "sijui", "<script>alert(1)</script>&\u2028 7"])
                )
                log.append(Record(language, n, s, "ef", text, "stop") for s in range(sample))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[ScoredRun]:
    folder = tmp_path_factory.mktemp("logs")
    paths = [
        write_log(folder, name, accuracy)
        for name, accuracy in (("base", 0.2), ("default", 0.5), ("no zone", 0.52), ("best", 0.9))
    ]
    return read_runs(paths, rule="lswap")


@pytest.fixture(scope="module")
def results(runs: list[ScoredRun]) -> Comparison:
    return compare(runs, "default")


def test_accuracies_and_differences_are_those_of_the_logs(runs: list[ScoredRun], results: Comparison) -> None:
    by_name = {run.setting: run for run in runs}
    for found in results.accuracies:
        right = [s.correct for s in by_name[found.setting].scores.values() if found.language in (ALL, s.key[0])]
        assert found.interval.estimate == pytest.approx(fmean(right))
        assert found.interval.low <= fmean(right) <= found.interval.high
        assert sum(found.categories.values()) == found.count == len(right)
        if found.language != ALL:
            assert found.interval == stats.wilson_interval(sum(right), COUNT)
    assert {d.setting for d in results.differences} == {"base", "no zone", "best"}
    for found in results.differences:
        keys = [key for key in by_name["default"].scores if found.language in (ALL, key[0])]
        was, now = ([by_name[name].scores[key].correct for key in keys] for name in ("default", found.setting))
        assert found.interval.estimate == pytest.approx(fmean(now) - fmean(was))
        if found.language == ALL:
            values = [(key[1], float(b) - float(a)) for key, a, b in zip(keys, was, now, strict=True)]
            assert (found.p, found.flips) == (stats.clustered_mean(values).p, None)
        else:
            assert found.flips == stats.tabulate_flips(was, now)
            assert found.p == found.p_exact == stats.mcnemar_exact(found.flips)


def test_holm_is_over_the_declared_families(results: Comparison) -> None:
    for pooled in (True, False):
        family = [d for d in results.differences if (d.language == ALL) == pooled]
        assert [d.p_holm for d in family] == pytest.approx(list(multipletests([d.p for d in family], method="holm")[1]))
    assert "two families: 3 pooled differences, 6 of single languages" in " ".join(results.notes)


def test_the_choice_is_made_on_one_half_and_reported_on_the_other(runs: list[ScoredRun], results: Comparison) -> None:
    assert results.choice is not None
    assert results.choice.setting == "best"
    best = next(run for run in runs if run.setting == "best")
    for half, found in (("dev", results.choice.dev), ("test", results.choice.test.estimate)):
        assert found == pytest.approx(fmean(s.correct for s in best.scores.values() if half_of(s.key[1]) == half))


def test_choosing_on_the_reporting_half_is_too_good_and_on_the_other_is_not(tmp_path: Path) -> None:
    """Twelve settings that are all as good: the best of them on dev is above the rest there, and among them on test."""
    excess: dict[str, list[float]] = {"dev": [], "test": []}
    for round_number in range(6):
        folder = tmp_path / str(round_number)
        folder.mkdir()
        equal = read_runs([write_log(folder, f"s{n}", 0.5, seed=round_number) for n in range(12)], rule="lswap")
        choice = compare(equal, "s0").choice
        assert choice is not None
        for half, found in (("dev", choice.dev), ("test", choice.test.estimate)):
            everyone = fmean(score.correct for run in equal for score in run.scores.values() if half_of(score.key[1]) == half)
            excess[half].append(found - everyone)
    assert fmean(excess["dev"]) > 0.05
    assert abs(fmean(excess["test"])) < 0.05 < fmean(excess["dev"]) - fmean(excess["test"])


def test_pairs_are_held_against_their_own_reference(tmp_path: Path) -> None:
    logs = [
        write_log(tmp_path, name, accuracy, pair=pair)
        for name, accuracy in (("default", 0.5), ("top", 0.7))
        for pair in ("A1+B1", "A2+B1")
    ]
    logs.append(write_log(tmp_path, "base", 0.2))
    runs = read_runs(logs, rule="lswap")
    found = compare(runs, "default")
    assert found.pairs == ("A1+B1", "A2+B1")
    by_run = {(run.setting, run.pair): fmean(s.correct for s in run.scores.values()) for run in runs}
    accuracies = {a.setting: a for a in found.accuracies if a.language == ALL}
    assert accuracies["top"].interval.estimate == pytest.approx(fmean(by_run["top", pair] for pair in found.pairs))
    assert accuracies["top"].best_pair == max(by_run["top", pair] for pair in found.pairs)
    differences = {d.setting: d.interval.estimate for d in found.differences if d.language == ALL}
    assert differences["base"] == pytest.approx(by_run["base", ""] - fmean(by_run["default", pair] for pair in found.pairs))
    assert all(d.flips is None for d in found.differences if d.setting == "top")
    assert accuracy_table(found).columns[-1] == "best pair"
    assert len(list_flips(runs, "default", GOLDS)) > 0


def test_several_samples_are_clustered(tmp_path: Path) -> None:
    once = compare(read_runs([write_log(tmp_path, name, 0.5) for name in ("default", "a")], rule="lswap"), "default")
    (tmp_path / "thrice").mkdir()
    thrice = compare(
        read_runs([write_log(tmp_path / "thrice", name, 0.5, sample=3) for name in ("default", "a")], rule="lswap"), "default"
    )
    for single, repeated in zip(once.differences, thrice.differences, strict=True):
        assert repeated.flips is None
        width = repeated.interval.high - repeated.interval.low  # the same answer three times teaches nothing
        assert width == pytest.approx(single.interval.high - single.interval.low, rel=0.1)


@pytest.mark.parametrize("accuracy", [0.0, 2.0])
def test_all_alike_is_not_certainty(tmp_path: Path, accuracy: float) -> None:
    """No answer right, or every one: pooled, there is no spread between problems to take an error from."""
    found = compare(read_runs([write_log(tmp_path, name, accuracy) for name in ("default", "a")], rule="lswap"), "default")
    pooled = next(a for a in found.accuracies if a.language == ALL).interval
    single = next(a for a in found.accuracies if a.language != ALL).interval
    assert (pooled.low, pooled.high) == (single.low, single.high)
    assert pooled.high - pooled.low > 0.01


def test_one_problem_shows_nothing(tmp_path: Path) -> None:
    found = compare(read_runs([write_log(tmp_path, name, 0.5, count=1) for name in ("default", "a")], rule="lswap"), "default")
    pooled = next(d for d in found.differences if d.language == ALL)
    assert (pooled.interval.low, pooled.interval.high, pooled.p) == (-1, 1, 1)
    assert found.choice is None
    json.dumps(found.to_json(), allow_nan=False)


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path, runs: list[ScoredRun]) -> None:
    with pytest.raises(RecipeError, match="no log is of the reference 'soup'; there are base, default"):
        compare(runs, "soup")
    short = read_runs([write_log(tmp_path, "short", 0.5, count=5)], rule="lswap")
    with pytest.raises(RecipeError, match="'short' has 10 records, 'base' 120, .*--resume"):
        compare([*runs, *short], "default")
    other = read_runs([write_log(tmp_path, "fewer", 0.5, exemplars=2)], rule="lswap")
    with pytest.raises(RecipeError, match="'fewer' has exemplars 2, 'base' 8"):
        compare([*runs, *other], "default")
    with pytest.raises(RecipeError, match="as is a log before it"):
        read_runs([tmp_path / "short.jsonl", tmp_path / "short.jsonl"], rule="lswap")


def test_one_half_alone(tmp_path: Path) -> None:
    path = write_log(tmp_path, "default", 0.5)
    (run,) = read_runs([path], rule="lswap", half="dev")
    assert len(run.scores) == COUNT
    assert {half_of(problem) for _, problem, _ in run.scores} == {"dev"}


def test_logs_of_other_data_are_refused(tmp_path: Path, authored: Path) -> None:
    with pytest.raises(RecipeError, match="made from other problems"):
        read_runs([write_log(tmp_path, "default", 0.5)], rule="lswap", data=read_problems(authored))


def test_tables_agree_with_one_another(results: Comparison) -> None:
    rows = list(csv.DictReader(to_csv(results).splitlines()))
    assert len(rows) == len(results.accuracies) + len(results.differences)
    for row, found in zip(rows, [*results.accuracies, *results.differences], strict=True):
        assert (row["setting"], row["language"], float(row["estimate"])) == (
            found.setting,
            found.language,
            found.interval.estimate,
        )
    table = accuracy_table(results)
    assert table.columns == ("setting", "sw", "te", "average")
    for cells, setting in zip(table.rows, results.settings, strict=True):
        shown = [float(re.match(r"[\d.]+", cell)[0]) for cell in cells[1:]]  # type: ignore[index]
        exact = [100 * a.interval.estimate for a in results.accuracies if a.setting == setting]
        assert shown == pytest.approx(exact, abs=0.051)
    assert [row[0] for row in difference_table(results).rows] == ["base", "no zone", "best"]
    text = to_markdown(results)
    for part in (table, difference_table(results), category_table(results.accuracies)):
        assert part.to_markdown() in text
    assert "60 problems, of which" in text
    assert "Best on the dev half: best" in text
    assert json.loads(json.dumps(results.to_json(), allow_nan=False))["reference"] == "default"


def test_pictures_are_drawn(results: Comparison, tmp_path: Path) -> None:
    save_figure(draw_accuracies(results), tmp_path / "a.svg")
    save_figure(draw_accuracies(results), tmp_path / "b.svg")
    drawn = (tmp_path / "a.svg").read_text()
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert "dc:date" not in drawn
    figure = draw_accuracies(results)
    assert [axes.get_title() for axes in figure.axes] == ["sw", "te", "average"]
    marks = figure.axes[2].containers[0].lines[0].get_xdata()
    assert list(marks) == pytest.approx([100 * a.interval.estimate for a in results.accuracies if a.language == ALL])
    points = {(b, t, z): (b + t + z) / 30 for b in range(5) for t in range(4) for z in (0, 1) if b + t > 0}
    save_figure(draw_sweep(points), tmp_path / "sweep.png")
    assert image.imread(tmp_path / "sweep.png").std() > 0.01
    assert {text.get_text() for text in draw_sweep(points).axes[0].texts} == {
        f"{100 * v:.1f}" for (_, _, z), v in points.items() if z == 0
    }
    with pytest.raises(ValueError, match="without points"):
        draw_sweep({})


def test_the_page_holds_every_flip_and_no_markup_of_a_model(runs: list[ScoredRun], results: Comparison) -> None:
    page = render_page(results, runs, GOLDS)
    (raw,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    data = json.loads(raw)
    assert data["reference"] == "default"
    counted = sum(d.flips.gained + d.flips.lost for d in results.differences if d.flips)
    assert len(data["flips"]) == counted
    for flip in data["flips"]:
        better, worse = ("now", "was") if flip["kind"] == "gained" else ("was", "now")
        assert str(flip["gold"]) in flip[better]["output"]
        assert str(flip["gold"]) not in flip[worse]["output"]
    assert "<script>alert" not in page
    assert any("<script>alert(1)</script>" in side["output"] for flip in data["flips"] for side in (flip["was"], flip["now"]))
    assert "http://" not in page
    assert "https://" not in page
    assert "innerHTML" not in page

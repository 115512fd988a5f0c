"""Reports: what is read back, what is shown, and that the page says what the evaluation found."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from pictures import picture
from report_data import QUERIES, evaluated, photographs

from sfrs.cli import app
from sfrs.data.places import ImageSet, Places, load_places
from sfrs.models.network import save_network
from sfrs.retrieval.evaluation import Scoring, score
from sfrs.runtime.errors import UserError
from sfrs.web.report import Overrides, cases, charts, figures, page, subject, views
from sfrs.web.report.recorded import read_evaluation, read_predictions


@pytest.fixture
def evaluation(tmp_path, tiny_network):
    """A folder of ``sfrs evaluate``: twelve queries of four conditions, three of them hopeless."""
    return evaluated(tmp_path, tiny_network)


def images(names, positions=None) -> ImageSet:
    from pathlib import Path

    n = len(names)
    return ImageSet(
        tuple(map(Path, names)), np.zeros((n, 2)) if positions is None else positions, np.arange(n)
    )


def scored(query_metres, found, radius=25.0, names=None) -> tuple[Places, object]:
    """Queries on a line; ``found[q]`` are positions (metres) of what query q finds."""
    places = np.array(sorted({value for row in found for value in row} | set(query_metres)), float)
    database = images([f"{i}.jpg" for i in range(len(places))], np.stack([places, 0 * places], 1))
    line = np.array(query_metres, float)
    queries = images(names or [f"q{i}.jpg" for i in range(len(line))], np.stack([line, 0 * line], 1))
    result = Places("line", "test", database, queries)
    predictions = np.array([[int(np.searchsorted(places, value)) for value in row] for row in found])
    return result, score(result, predictions, Scoring((1, predictions.shape[1]), radius))


def test_errors_and_first_right_ranks():
    places, result = scored([0, 1000], [[300, 20, 10], [1000, 0, 300]])
    assert cases.errors(places, result).tolist() == [300, 0]
    assert cases.first_right(result).tolist() == [2, 1]


def test_the_worst_cases_are_failures_without_a_right_image_then_the_largest_errors():
    found = [[900, 0], [950, 700], [2000, 2000], [3000, 3000], [800, 790]]
    places, result = scored([0, 2000, 2001, 3000, 4000], found)
    worst, best = cases.choose_cases(places, result, [""] * 5, 10)
    assert [case.query for case in worst] == [4, 1, 0]
    assert [case.answer_rank for case in worst] == [0, 0, 2] and worst[0].answer == -1
    assert {case.query for case in best} == {2, 3} and all(case.success for case in best)


def test_conditions_take_turns_and_neighbours_make_way():
    found = [[5000]] * 6
    places, result = scored([0, 10, 20, 600, 1200, 1800], found)
    labels = ["day", "day", "day", "day", "day", "night"]
    worst, _ = cases.choose_cases(places, result, labels, 3)
    assert [case.query for case in worst] == [0, 3, 5]
    worst, _ = cases.choose_cases(places, result, labels, 6)
    assert len(worst) == 6


def test_conditions_are_read_from_notes_folders_or_the_order_of_tokyo():
    def labels(name, files):
        return cases.conditions(Places(name, "test", images(["a.jpg"]), images(files)))

    full = "@1@2@33@U@@@p@0@0@0@0@2@20230101_000000@{}@.jpg"
    assert (
        labels("x", [full.format(note) for note in ("day", "night", "day", "night")]) == ["day", "night"] * 2
    )
    many = [f"{light}-{weather}" for light in ("day", "dusk") for weather in "abcd"]
    assert labels("x", [full.format(note) for note in many]) == ["day"] * 4 + ["dusk"] * 4
    assert labels("x", ["sun/a.jpg", "rain/b.jpg", "sun/c.jpg", "rain/d.jpg"]) == ["sun", "rain"] * 2
    assert labels("tokyo247", ["a.jpg", "b.jpg", "c.jpg"]) == ["day", "sunset", "night"]
    assert labels("x", ["a.jpg", "b.jpg", "c.jpg"]) == ["", "", ""]


def test_predictions_are_found_again_where_the_data_set_has_moved(evaluation, tmp_path):
    before = read_evaluation(evaluation, Overrides())
    shutil.move(tmp_path / "town", tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"town, which is not there any more; say where with --data"):
        read_evaluation(evaluation, Overrides())
    after = read_evaluation(evaluation, Overrides(data=tmp_path / "elsewhere"))
    assert np.array_equal(before.result.predictions, after.result.predictions)
    assert after.result.recalls == before.result.recalls and after.places.queries.files[0].exists()


def test_what_is_read_back_scores_as_it_was_evaluated(evaluation):
    recorded = json.loads((evaluation / "results.json").read_text())
    read = read_evaluation(evaluation, Overrides())
    assert {str(n): recall for n, recall in read.result.recalls.items()} == recorded["recalls"]
    assert read.model is not None and read.model.size == (48, 64)
    with (evaluation / "predictions.csv").open() as lines:
        right = [line["correct"] == "1" for line in csv.DictReader(lines)]
    assert read.result.correct[:, :12].ravel().tolist() == right


def test_a_changed_data_set_is_refused_with_the_line(evaluation, tmp_path):
    places = load_places(tmp_path / "town")
    places.database.files[0].unlink()
    with pytest.raises(UserError, match=r"predictions\.csv, line \d+: .* is not in town/test"):
        read_evaluation(evaluation, Overrides())
    with (evaluation / "predictions.csv").open() as lines:
        kept = [line for line in lines if places.queries.files[3].name not in line]
    (evaluation / "fewer.csv").write_text("".join(kept))
    with pytest.raises(UserError, match="are missing. Has the data set changed"):
        read_predictions(evaluation / "fewer.csv", places, tmp_path / "town")


def test_recall_before_and_after_reranking_is_compared(run, evaluation, tmp_path):
    summary = json.loads((evaluation / "results.json").read_text())
    before = {n: recall - 0.1 for n, recall in summary["recalls"].items()}
    summary["rerank"] = {"by": "regions", "depth": 100, "score": "mixed", "recalls_before": before}
    (evaluation / "results.json").write_text(json.dumps(summary))
    read = read_evaluation(evaluation, Overrides())
    assert read.compared["re-ranked"] == read.result.recalls
    assert read.compared["searched"][1] == pytest.approx(read.result.recalls[1] - 0.1)
    assert run("report", evaluation, "--out", tmp_path / "r")[0] == 0
    text = (tmp_path / "r/index.html").read_text()
    assert "regions, the first 100, score mixed" in text and '<th scope="row">searched</th>' in text


def test_a_run_may_hold_its_own_report(run, tmp_path, tiny_network):
    training_run(tmp_path / "run", photographs(tmp_path), tiny_network)
    for _ in range(2):
        assert run("report", tmp_path / "run", "--out", tmp_path / "run")[0] == 0
        assert "How it was trained" in (tmp_path / "run/index.html").read_text()
    assert {f.name for f in (tmp_path / "run/evaluation").iterdir()} == {"results.json", "predictions.csv"}


def test_skipped_images_stay_left_out(run, tmp_path, tiny_network):
    data, weights = photographs(tmp_path), tmp_path / "tiny.safetensors"
    save_network(weights, tiny_network, {"image_size": [48, 64]})
    bad = load_places(data).database.files[5]
    bad.write_text("no picture")
    arguments = ("--data", data, "--weights", weights, "--skip-bad-images", "--out", tmp_path / "e")
    assert run("evaluate", *arguments)[0] == 0
    read = read_evaluation(tmp_path / "e", Overrides())
    assert len(read.places.database) == 11 and bad not in read.places.database.files


def test_the_page_is_one_file_that_refers_to_nothing(run, evaluation, tmp_path):
    code, out, _ = run("report", evaluation, "--out", tmp_path / "r", "--cases", "3")
    text = (tmp_path / "r/index.html").read_text()
    assert (
        code == 0 and "index.html" in out and [f.name for f in (tmp_path / "r").iterdir()] == ["index.html"]
    )
    assert set(re.findall(r"https?://[\w./]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r'(?:src|href)="(?!data:)', text) and "url(" not in text and "@import" not in text
    assert text.count("<article") == 6 and text.count('data-outcome="failure"') == 4  # and the button


def test_the_page_gives_the_figures_of_the_evaluation(run, evaluation, tmp_path):
    assert run("report", evaluation, "--out", tmp_path / "r")[0] == 0
    text = (tmp_path / "r/index.html").read_text()
    recalls = json.loads((evaluation / "results.json").read_text())["recalls"]
    for n, recall in recalls.items():
        assert re.search(rf"recall@{n}</p><p class=\"tile-value\">{100 * recall:.1f}<", text)
    rows = re.findall(r'<th scope="row">(\w+)</th><td>(\d+)</td>', text)
    assert sorted(rows) == sorted((name, "3") for name in ("day", "dusk", "night", "rain"))


def test_file_names_cannot_break_out_of_the_page(run, tmp_path, tiny_network):
    data, weights = photographs(tmp_path), tmp_path / "tiny.safetensors"
    save_network(weights, tiny_network, {"image_size": [48, 64]})
    folder = data / "images/test/queries"
    evil = "<img src=x onerror=alert(1)>"
    picture(1).save(folder / f"@500063.00@4000060.00@{evil}@.jpg")
    assert run("evaluate", "--data", data, "--weights", weights, "--out", tmp_path / "e")[0] == 0
    assert run("report", tmp_path / "e", "--out", tmp_path / "r", "--cases", "20")[0] == 0
    text = (tmp_path / "r/index.html").read_text()
    assert evil not in text and "&lt;img src=x" in text


def test_weights_that_are_gone_leave_a_page_without_explanations(run, evaluation, tmp_path):
    (tmp_path / "tiny.safetensors").unlink()
    code, _, err = run("report", evaluation, "--out", tmp_path / "r")
    text = (tmp_path / "r/index.html").read_text()
    assert code == 0 and "Without regions and clusters" in err
    assert "are not where they were" in text and "<canvas" not in text and "<article" in text


def training_run(folder, data, network) -> None:
    """The files of ``sfrs train`` that a report reads."""
    from sfrs.training.config import TrainConfig

    (folder / "generation_1").mkdir(parents=True)
    config = TrainConfig.preset("demo", data=str(data)).to_dict()
    (folder / "config.json").write_text(json.dumps({"config": config, "data": {}}))
    meta = {"image_size": [48, 64], "generation": 1, "epoch": 2, "recalls": {"1": 0.5}}
    save_network(folder / "generation_1/best.safetensors", network, meta)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history()) + '{"kin')


def history() -> list[dict]:
    lines = []
    for generation, epoch in ((1, 1), (1, 2), (2, 1)):
        for done in (20, 40):
            lines.append(
                {"kind": "step", "generation": generation, "epoch": epoch, "done": done, "of": 40}
                | {"total": 3.0 / epoch, "hard": 1.0, "soft": 2.0}
            )
        recalls = {1: 0.3 * epoch, 5: 0.4 * epoch, 10: 0.45 * epoch}
        lines.append({**lines[-1], "kind": "epoch", "recalls": recalls})
    return lines


def test_a_training_run_is_evaluated_once_and_shows_how_it_was_trained(
    run, tmp_path, tiny_network, monkeypatch
):
    training_run(tmp_path / "run", photographs(tmp_path), tiny_network)
    code, _, err = run("report", tmp_path / "run", "--out", tmp_path / "r")
    assert code == 0 and "database" in err
    text = (tmp_path / "r/index.html").read_text()
    assert "How it was trained" in text and "generation 2" in text and "Loss, moving average" in text

    def evaluate(*_, **__):
        raise AssertionError("evaluated again")

    monkeypatch.setattr(subject, "evaluate", evaluate)
    assert run("report", tmp_path / "run", "--out", tmp_path / "r")[0] == 0
    save_network(tmp_path / "run/generation_1/best.safetensors", tiny_network, {"image_size": [32, 48]})
    with pytest.raises(AssertionError, match="evaluated again"):
        app(["report", str(tmp_path / "run"), "--out", str(tmp_path / "r")])


def test_a_demonstration_compares_its_networks(run, tmp_path, tiny_network):
    training_run(tmp_path / "demo/baseline", photographs(tmp_path), tiny_network)
    training_run(tmp_path / "demo/sfrs", tmp_path / "town", tiny_network)
    shutil.move(tmp_path / "town", tmp_path / "demo/city")
    save_network(tmp_path / "demo/best.safetensors", tiny_network, {"image_size": [48, 64]})
    rows = [{"label": name, "recalls": {"1": 0.4, "5": 0.6}} for name in ("SARE-ind", "SFRS")]
    (tmp_path / "demo/results.json").write_text(json.dumps({"rows": rows}))
    assert run("report", tmp_path / "demo", "--out", tmp_path / "r")[0] == 0
    text = (tmp_path / "r/index.html").read_text()
    assert "Compared on the same queries" in text and '<th scope="row">SARE-ind</th>' in text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no such folder"),
        (lambda folder: folder.mkdir(), "nothing to report on"),
        (lambda folder: (folder.mkdir(), *written(folder, "{}")), "no data, split, recalls"),
        (lambda folder: (folder.mkdir(), *written(folder, "no json")), "this is not JSON"),
        (
            lambda folder: (folder.mkdir(), (folder / "config.json").write_text("{}")),
            "expected generation_N/best.safetensors",
        ),
    ],
)
def test_what_is_no_run_is_told_without_a_traceback(run, tmp_path, make, message):
    make(tmp_path / "x")
    code, out, err = run("report", tmp_path / "x", "--out", tmp_path / "r")
    assert code == 2 and message in err and "Traceback" not in err + out and not (tmp_path / "r").exists()


def written(folder, results) -> list:
    return [(folder / name).write_text(results) for name in ("results.json", "predictions.csv")]


def test_an_evaluation_has_its_split_already(run, evaluation, tmp_path):
    code, _, err = run("report", evaluation, "--out", tmp_path / "r", "--split", "val")
    assert code == 2 and "--split is for training runs" in err


def test_failures_get_the_right_image_most_like_the_query(evaluation):
    read = read_evaluation(evaluation, Overrides())
    labels = cases.conditions(read.places)
    worst, best = cases.choose_cases(read.places, read.result, labels, 12)
    assert {labels[case.query] for case in worst} <= set(QUERIES) and len(worst) == 3
    shown = views.case_views(read, [*worst, *best], labels)
    for view in shown:
        assert len(view["pairs"]) == (1 if view["success"] else 2)
        assert view["pairs"][-1]["right"] and view["pairs"][0]["rank"] == 1
        regions = view["pairs"][0]["regions"]
        assert regions["cells"][0]["value"] == pytest.approx(regions["whole"])
        values = [cluster["value"] for cluster in view["pairs"][0]["clusters"]]
        assert values == sorted(values, reverse=True) and sum(values) == pytest.approx(
            regions["whole"], abs=1e-4
        )


def test_the_answer_outside_the_predictions_is_found_by_similarity(evaluation):
    read = read_evaluation(evaluation, Overrides())
    explainer = views.Explainer(read)
    assert explainer.answer(cases.Case(2, False, (0,), -1, 0)) == 2  # each place has one image
    assert explainer.answer(cases.Case(2, False, (0,), 7, 3)) == 7  # one among the predictions is known


def test_groups_without_conditions_are_grades_of_error():
    places, result = scored([0, 1000, 2000], [[10], [1060], [9000]])
    labels, named = page._labels(type("S", (), {"places": places, "result": result})())
    assert not named and labels == ["within 25 m", "25 to 100 m", "beyond 100 m"]
    assert sorted(labels, key=page._group_order) == labels


@pytest.mark.parametrize(
    ("metres", "text"),
    [(0.04, "0.0 m"), (9.94, "9.9 m"), (9.96, "10 m"), (312.4, "312 m"), (12345, "12.3 km")],
)
def test_distances_are_readable(metres, text):
    assert page.show_metres(metres) == text


def test_the_error_curve_passes_recall_at_the_radius():
    places, result = scored([0, 1000, 2000, 3000], [[10], [1020], [2060], [9000]])
    text = figures.error_figure(places, result)
    path = re.search(r'class="line" d="M([^"]+)"', text)[1]
    points = np.array([point.split() for point in path.split("L")], float)
    at = float(re.search(r'class="mark" d="M([\d.]+)', text)[1])
    share = np.interp(at + 0.5, points[:, 0], points[:, 1])
    height = charts.HEIGHT - charts.TOP - charts.BOTTOM
    assert (charts.TOP + height - share) / height == pytest.approx(result.recalls[1], abs=0.01)
    assert points[0, 1] == charts.TOP + height and points[-1, 1] == charts.TOP  # from 0 to 100 %


def test_training_curves_have_a_line_per_depth_and_mark_generations():
    captions = figures.training_figures({"run": history()})
    assert [caption for caption, _ in captions] == [
        "Validation recall after each epoch",
        "Loss, moving average",
    ]
    assert captions[0][1].count('class="line"') == 3 and "generation 2" in captions[0][1]
    assert figures.training_figures({"run": []}) == []


@pytest.mark.parametrize(("high", "last"), [(1, 1), (5, 5), (20, 20), (100, 100), (7, 6)])
def test_axes_of_counts_begin_at_one(high, last):
    ticks = [value for value, _ in charts.count_axis("N", high).ticks]
    assert ticks[0] == 1 and ticks[-1] == last and len(ticks) <= 8


@pytest.mark.parametrize(("low", "high"), [(0.0, 3.0), (1.39, 1.71), (0.0, 1e-9), (-5.0, 1e4)])
def test_axes_of_values_contain_the_range_with_few_ticks(low, high):
    axis = charts.value_axis("loss", low, high)
    assert axis.low <= low and axis.high >= high and 2 <= len(axis.ticks) <= 8


def test_the_last_label_of_an_axis_is_not_cut_off():
    axis = charts.metres_axis("off", 138_000.0)
    chart = charts.line_chart(
        "x", [charts.Series("", [(1, 0, ""), (9, 1, "")])], axis, charts.percent_axis("y")
    )
    (at,) = re.findall(r'class="tick" x="([0-9.]+)"[^>]*>1,000 km<', chart)
    assert float(at) + charts.LETTER * len("1,000 km") / 2 <= charts.WIDTH


def test_labels_of_charts_are_escaped():
    line = charts.Series("<b>&", [(1, 0.5, "<i>"), (2, 0.6, "")])
    text = charts.line_chart("<u>", [line, line], charts.count_axis("N", 2), charts.percent_axis("<s>"))
    assert not re.search(r"<(b|i|u|s)>", text) and "&lt;b&gt;&amp;" in text

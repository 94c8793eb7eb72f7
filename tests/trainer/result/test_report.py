import re
from html.parser import HTMLParser

import pytest

from deepseek_trainer.evaluation.classification import classification
from deepseek_trainer.result.chart import line_chart
from deepseek_trainer.result.report import Answer, Report, flat, render

EVENTS = [
    {"event": "evaluation", "time": 1e9, "step": 0, "loss": 4.0, "perplexity": 54.6},
    *(
        {"event": "step", "time": 1e9 + i, "step": i, "loss": 4 / i, "learningRate": 1e-4, "tokensPerSecond": 90.5}
        for i in (1, 2, 3)
    ),
    {
        "event": "checkpoint",
        "time": 1e9,
        "step": 2,
        "sizeBytes": 1234,
        "seconds": 0.5,
        "stallSeconds": 0.1,
        "sealed": True,
    },
    {"event": "refused", "time": 1e9, "step": 2, "reason": "rank-00000.json is missing"},
    {"event": "resumed", "time": 1e9, "step": 2, "attempt": 2, "restart": 0},
    {"event": "evaluation", "time": 1e9, "step": 3, "loss": 1.5, "perplexity": 4.48},
]


def a_report(**changes):
    parts = {
        "title": "Run report: ml/pumps",
        "summary": {"Method": "LoRA"},
        "settings": {"data.sequenceLength": 64},
        "before": {"loss": 4.0, "right": 0},
        "after": {"loss": 1.5, "right": 3},
        "events": EVENTS,
        "answers": [Answer("<script>alert(1)</script>", "3.5 bar", "no & idea", "3.5 bar")],
    }
    return render(Report(**parts | changes))


class Tags(HTMLParser):
    """Every start tag, and whether all that open also close."""

    VOID = ("meta", "line", "circle", "polyline")

    def __init__(self, document):
        super().__init__()
        self.seen, self.open = [], []
        self.feed(document)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report_is_one_well_formed_document_with_its_charts():
    tags = Tags(a_report())
    assert tags.open == []
    assert tags.seen.count("svg") == 3  # loss, learning rate, throughput: no gradient norm was logged
    assert tags.seen.count("polyline") == 4
    assert "<tr></tr>" not in a_report()


def test_report_runs_nothing_and_fetches_nothing():
    report = a_report()
    assert "<script" not in report
    assert not re.search(r"(src|href)=|https?://|@import|url\(", report)


def test_report_escapes_what_people_and_models_wrote():
    report = a_report(title="<b>", settings={"<i>": "<i>"})
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in report
    assert "no &amp; idea" in report
    assert not re.search("<b>|<i>", report)


def test_report_tells_the_median_and_the_largest_of_what_was_measured():
    measured = [{"mfu": 0.25}, {"mfu": 0.5, "rankSkew": 1.5}, {"mfu": 0.4, "rankSkew": 3.0}]
    steps = [{"event": "step", "time": 1e9, "step": i, "loss": 2.0} | more for i, more in enumerate(measured)]
    report = a_report(events=steps)
    assert re.search("<td>MFU: [^<]*</td><td>0.4</td><td>0.5</td>", report)
    assert re.search("<td>time of the slowest rank [^<]*</td><td>1.5</td><td>3</td>", report)
    assert "peak memory" not in report
    assert Tags(report).seen.count("svg") == 2  # loss and share of the peak


def test_report_compares_before_and_after():
    assert "<tr><td>loss</td><td>4</td><td>1.5</td></tr><tr><td>right</td><td>0</td><td>3</td></tr>" in a_report()


@pytest.mark.parametrize(("gap", "verdict"), [(0.2, "0.2, not under"), (0.0, "0, under"), (-0.01, "-0.01, under")])
def test_report_tells_the_gap_of_the_weights_that_are_the_result(gap, verdict):
    evaluations = [{"event": "evaluation", "step": step, "loss": 2.0, "gap": gap + step - 2} for step in (1, 2, 3)]
    line = f"<p>Validation loss minus training loss at step 2: {verdict} 0.05.</p>"
    assert line in a_report(events=[*evaluations, {"event": "result", "step": 2}])
    assert "minus" not in a_report(events=evaluations)
    assert "minus" not in a_report(events=[{"event": "evaluation", "step": 2, "gap": None}])


def test_report_shows_which_labels_were_chosen():
    chosen = classification(["yes", "no", "no"], [[-1, -2], [-1, -2], [-2, -1]], ["yes", "no"])
    report = a_report(before={}, after={"loss": 1.5, "classification": chosen})
    assert Tags(report).open == []
    assert "<th>right / chosen</th><th>yes</th><th>no</th><th>precision</th>" in report
    assert "<td>no</td><td>1</td><td>1</td><td>1</td><td>0.5</td><td>0.66667</td>" in report
    assert "<td>classification.accuracy</td><td>-</td><td>0.66667</td>" in report
    assert "confusion" not in report


def test_report_tells_how_bleu_was_made():
    assert "sacrebleu, nrefs:1|tok:zh, divided by 100" in a_report(
        after={"bleu": 0.5, "bleuSignature": "nrefs:1|tok:zh"}
    )


def test_report_lists_restarts_and_checkpoints():
    report = a_report()
    assert "<td>2001-09-09 01:46:40 UTC</td><td>2</td><td>2</td>" in report
    assert "<td>1234</td><td>0.5</td><td>0.1</td><td>yes</td>" in report
    assert "<td>2</td><td>rank-00000.json is missing</td>" in report
    assert 'class="mark"' in report


def test_report_tells_how_a_run_adapted_and_what_that_left_of_the_result():
    facts = {"optimizer": "AdamW8bit", "reason": "memory ran out", "result": "another one"}
    report = a_report(events=[{"event": "adapted", "time": 1e9, "step": 4, "rung": 7, "offload": False} | facts])
    assert "<td>no</td><td>AdamW8bit</td><td>memory ran out</td><td>another one</td>" in report


def test_report_of_a_run_without_events_has_no_empty_sections():
    report = a_report(events=[], answers=[], before={}, after={})
    assert re.findall("<h2>(.*?)</h2>", report) == ["Settings"]


def test_chart_leaves_out_points_that_are_not_finite():
    chart = line_chart("loss", {"train": [(1, 2.0), (2, float("nan")), (3, float("inf")), (4, 1.0)]})
    (line,) = re.findall('points="(.*?)"', chart)
    assert len(line.split()) == 2


def test_chart_of_one_point_or_a_flat_line_is_drawn():
    for points in ([(5, 0.0)], [(1, 3.0), (2, 3.0)]):
        assert "polyline" in line_chart("flat", {"train": points})


def test_chart_of_nothing_is_empty():
    assert line_chart("loss", {"train": [], "validation": [(1, float("nan"))]}) == ""


def test_chart_draws_lower_values_further_down():
    chart = line_chart("loss", {"train": [(0, 9.0), (1, 1.0)]})
    (line,) = re.findall('points="(.*?)"', chart)
    (x0, y0), (x1, y1) = (tuple(map(float, point.split(","))) for point in line.split())
    assert x0 < x1
    assert y0 < y1  # SVG counts from the top


def test_settings_are_shown_under_their_dotted_names():
    assert flat({"data": {"train": {"path": "a"}}, "seed": 0}) == {"data.train.path": "a", "seed": 0}
    assert flat({"sources": [{"name": "a"}, {"name": "b"}]}) == {"sources.0.name": "a", "sources.1.name": "b"}

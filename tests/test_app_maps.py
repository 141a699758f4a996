"""Maps behind the page: what is drawn, in the background; its figures, words and files."""

import csv
import io
import threading
from dataclasses import replace

import pytest
from fake_backend import joint_map, layer_facts

from app import plots_map, views_map
from app.engine import Engine
from app.facts import MapRequest
from app.jobs import Job, JobState
from app.maps import UNTRANSLATED, WORDS_ONLY
from app.tabs.layers import clicked
from app.workspace import Attached, Selection
from cast.errors import CastError, RequestError

CHOICE = Selection("pocket:llama", "pocket:mistral", "pocket:llama/mood")
ASKED = MapRequest(CHOICE, 3, points=50)


@pytest.fixture
def maps(backend, jobs, tmp_path):
    made = Engine(backend, jobs, tmp_path, None).maps
    yield made
    made.close()


def drawn_of(view="joint", dimensions=2, translated=True, points=12):
    asked = MapRequest(CHOICE, 2, points=points, view=view, dimensions=dimensions)
    depths = range(4) if view == "along" else [2]
    return tuple(joint_map(d, asked, "umap", object(), True, translated) for d in depths)


def test_pca_comes_first_and_progress_with_it(maps):
    told = list(maps.draw(ASKED, Attached()))
    assert [found[0].method for found in told if not isinstance(found, Job)] == ["pca", "umap"]
    assert isinstance(told[0], Job)
    assert told[-1].state is JobState.DONE
    assert [found[0].method for found in maps.drawn(replace(ASKED, method="pca"))] == ["pca"]


def test_drawing_anew_stops_the_drawing_before(maps, backend):
    backend.pace, backend.steps = 0.01, 10_000
    first = maps.draw(ASKED, Attached())
    job = next(first)
    second = maps.draw(ASKED, Attached(), job.id)
    next(second)
    left = list(first)
    assert left[-1].state is JobState.CANCELLED
    assert all(isinstance(found, Job) for found in left)
    second.close()


def test_a_visitor_who_leaves_stops_the_drawing(maps, backend):
    backend.pace, backend.steps = 0.01, 10_000
    drawing = maps.draw(ASKED, Attached())
    job = next(drawing)
    drawing.close()
    assert not maps.cancel(job.id) or maps._jobs.get(job.id).cancelling


def test_what_goes_wrong_is_a_sentence(maps):
    with pytest.raises(RequestError, match="There is no model pocket:none"):
        list(maps.draw(replace(ASKED, selection=replace(CHOICE, source="pocket:none")), Attached()))


def test_a_map_needs_no_heads(maps, backend):
    backend.without_heads.add((CHOICE.source, CHOICE.target))
    *_, (drawn,) = maps.drawn(ASKED)
    assert not drawn.by_heads
    assert "a linear map that was fitted" in views_map.belief((drawn,))


@pytest.mark.parametrize(
    ("selection", "lora", "translated", "note"),
    [
        (CHOICE, True, False, WORDS_ONLY),
        (replace(CHOICE, segment=2), True, True, "The target's shift is that of hosted, 2 blocks a segment."),
        (replace(CHOICE, mode="instant"), True, False, UNTRANSLATED.format(mode="instant")),
        (replace(CHOICE, adapter=""), False, False, ""),
    ],
    ids=["words", "states", "not translated", "no adapter"],
)
def test_the_adapter_is_shown_at_both_ends_where_it_can_be(maps, backend, selection, lora, translated, note):
    *_, (drawn,) = maps.drawn(replace(ASKED, selection=selection))
    assert drawn.note == note
    _, asked_lora, runner = backend.maps_asked[-1]
    assert (asked_lora is not None, runner is not None) == (lora, translated)
    assert (drawn.points[0].translated is not None) == translated


def test_a_translation_that_the_visitor_made_moves_the_target_in_words_mode_too(maps, backend, monkeypatch):
    made = replace(CHOICE, mode="compiled")
    monkeypatch.setattr(
        backend, "shipped_translation", lambda selection, target: "mine" if selection == made else None
    )
    *_, (drawn,) = maps.drawn(ASKED)
    assert drawn.note == "The target's shift is that of the translation (compiled)."
    monkeypatch.setattr(backend, "carried_runner", failing)
    *_, (drawn,) = maps.drawn(ASKED)
    assert drawn.note == "Only the source's shift is shown: it is broken"


def failing(*_):
    raise CastError("it is broken")


def test_a_map_does_not_wait_for_a_training(maps, jobs):
    stop = threading.Event()
    try:
        for _ in range(4):
            jobs.start("heads", "Train heads.", lambda report: stop.wait(10))
        assert len(list(maps.drawn(ASKED))) == 2
        assert next(found for found in maps.draw(ASKED, Attached()) if not isinstance(found, Job))
    finally:
        stop.set()


@pytest.mark.parametrize("colour", list(plots_map.COLOURS))
@pytest.mark.parametrize("view", ["joint", "own", "along"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_point_i_is_token_i_in_every_trace_of_tokens(view, dimensions, colour):
    drawn = drawn_of(view, dimensions)
    figure = plots_map.token_map(drawn, colour)
    tokens = [trace for trace in figure.data if trace.meta == plots_map.TOKENS]
    assert len(tokens) == 2
    for trace, name in zip(tokens, ("source", "target"), strict=True):
        assert list(trace.x) == [getattr(point, name)[0] for point in drawn[0].points]
        assert "<b>tok3</b> after" in trace.text[3]
        assert "&lt;i&gt;3&lt;/i&gt;" in trace.text[3]
    arrows = [trace for trace in figure.data if "moved by" in (trace.name or "")]
    assert [trace.name for trace in arrows] == ["moved by the adapter", "moved by the translation"]
    first = drawn[0].points[0]
    assert list(arrows[0].x)[:3] == [first.source[0], first.adapted[0], None]
    assert list(arrows[1].x)[:3] == [first.target[0], first.translated[0], None]


def test_each_frame_moves_every_trace_to_its_depth():
    drawn = drawn_of("along")
    figure = plots_map.token_map(drawn)
    assert [frame.name for frame in figure.frames] == ["0", "1", "2", "3"]
    for frame in figure.frames:
        assert [len(trace.x) for trace in frame.data] == [len(trace.x) for trace in figure.data]
    assert [step.label for step in figure.layout.sliders[0].steps] == ["0 (0)", "1 (1)", "2 (2)", "3 (3)"]
    sent = plots_map.for_page(figure)
    assert not sent.frames
    assert [frame["name"] for frame in sent.layout.meta["frames"]] == ["0", "1", "2", "3"]
    # The page's own player stands in for what no key reaches.
    assert (sent.layout.sliders, sent.layout.updatemenus) == ((), ())
    assert [step["label"] for step in sent.layout.meta["steps"]] == ["0 (0)", "1 (1)", "2 (2)", "3 (3)"]
    assert [*zip(*(step["args"][0] for step in sent.layout.meta["steps"]), strict=True)] == [
        ("0", "1", "2", "3")
    ]
    assert "steps" not in plots_map.for_page(plots_map.token_map(drawn_of())).layout.meta


def test_colours_tell_kinds_and_effects():
    drawn = drawn_of()
    kinds = plots_map.token_map(drawn, "kind")
    assert {"word", "number"} <= {trace.name for trace in kinds.data}
    # The legend shows shapes where the colours say something else.
    sides = [trace for trace in kinds.data if trace.legendgroup]
    assert [trace.showlegend for trace in sides] == [False, False, None, None]
    assert [trace.marker.color for trace in sides[2:]] == [plots_map.INK] * 2
    effect = [t for t in plots_map.token_map(drawn, "shift").data if t.meta == plots_map.TOKENS]
    assert [set(trace.marker.color) for trace in effect] == [{0.5}, {0.25}]
    # Without a translation, the source's effect colours both.
    alone = [t for t in plots_map.token_map(drawn_of(translated=False), "shift").data if t.meta == "tokens"]
    assert [set(trace.marker.color) for trace in alone] == [{0.5}, {0.5}]


def test_the_grid_shows_its_controls_and_marks_its_pairs():
    facts = layer_facts("pocket:llama", "pocket:mistral")
    figure = plots_map.layer_grid(facts, "CKA", (2, 3), (0, 1, 1, 2, 3, 3, 4))
    assert figure.data[0].z[4][6] == pytest.approx(0.5)
    assert figure.data[0].customdata[0][0] == 0.01
    assert {(shape.x0, shape.x1, shape.y0, shape.y1) for shape in figure.layout.shapes} == {
        (2.5, 3.5, 1.5, 2.5)
    }
    dots = figure.data[1]
    assert [(round(x), round(y)) for x, y in zip(dots.x, dots.y, strict=True)] == list(
        enumerate((0, 1, 1, 2, 3, 3, 4))
    )
    # In the corner of the cell: neither its figure nor its edge is covered.
    assert {round(x - round(x), 2) for x in (*dots.x, *dots.y)} == {plots_map._CORNER}
    assert not plots_map.layer_grid(facts, "CKA").layout.shapes
    line = views_map.layers_line(facts, "CKA")
    assert "Most alike: source depth 4 and target depth 6 (0.50)" in line
    assert "Press Compare all layers" in views_map.layers_line(None, "CKA")


def test_a_cell_is_two_depths():
    assert clicked([3, 4]) == (3, 4)
    for other in (None, [1], [1, "2"], {"pair": 1}):
        with pytest.raises(RequestError):
            clicked(other)


def test_how_far_the_picture_may_be_believed():
    drawn = drawn_of("own")
    words = views_map.belief(drawn)
    assert "closely (trustworthiness 0.93)" in words
    assert "share 55 % of each token's nearest neighbours, 1 % by chance" in words
    assert "not across" in words
    apart = replace(drawn[0], measures=(replace(drawn[0].measures[1], value=0.05),), trustworthiness=0.5)
    words = views_map.belief((apart,))
    assert "poorly" in words
    assert "do not read closeness into it" in words
    assert "<td>0.91" in views_map.measures(drawn_of("along"))
    assert views_map.measures(()) == ""


def test_a_map_is_written_as_a_page_and_as_a_table(maps):
    drawn = drawn_of(points=5)
    html = maps.written(drawn, "kind", "HTML").read_text(encoding="utf-8")
    assert "Plotly.newPlot" in html
    assert "trustworthiness 0.93" in html
    assert "0.91 (−0.02)" in html
    evil = replace(drawn[0].points[0], token="=1+1", context="=1+1")
    table = replace(drawn[0], points=(evil, *drawn[0].points[1:]))
    rows = list(csv.DictReader(io.StringIO(maps.written((table,), "model", "CSV").read_text("utf-8"))))
    assert len(rows) == 5
    assert rows[0]["token"] == "'=1+1"
    assert (rows[1]["source_x"], rows[1]["adapted_x"], rows[1]["token"]) == ("1", "1.4", "tok1")
    with pytest.raises(RequestError, match="Draw a map first"):
        maps.written((), "model", "CSV")

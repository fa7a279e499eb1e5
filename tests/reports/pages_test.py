"""The page's parts: numbers by hand, drawings, and texts that nobody can trust."""

from __future__ import annotations

import numpy as np
import pytest
from pages import check_page

from tinybert_jax.reports import charts
from tinybert_jax.reports.calibration import calibration_error, confidence_bins
from tinybert_jax.reports.document import (
    Fold,
    Grid,
    Heading,
    Items,
    Picture,
    Pictures,
    Report,
    Section,
    Text,
    shortened,
)
from tinybert_jax.reports.html_page import write_html
from tinybert_jax.reports.markdown_page import write_markdown
from tinybert_jax.reports.similarity import attention_cosine, centred_gram, cka

HOSTILE = "<script>alert(1)</script> \"'>&|`*_[x](http://example.com)\n# no heading\x00\u202e"


def test_the_calibration_error_is_that_of_a_hand() -> None:
    # bins of 15: 0.62 and 0.66 in (9/15, 10/15], 0.95 in (14/15, 1]
    confidence = np.array([0.62, 0.66, 0.95, 0.95], np.float32)
    right = np.array([True, False, True, True])
    bins = confidence_bins(confidence, right)
    assert [(part.decisions, part.accuracy) for part in bins] == [(2, 0.5), (2, 1.0)]
    assert calibration_error(confidence, right) == pytest.approx((2 * abs(0.5 - 0.64) + 2 * abs(1 - 0.95)) / 4)


def test_a_confidence_on_a_border_belongs_to_the_bin_below() -> None:
    bins = confidence_bins(np.array([0.0, 0.5, 1.0]), np.array([False, True, True]), bins=2)
    assert [part.decisions for part in bins] == [2, 1]


def test_a_calibrated_model_has_no_error() -> None:
    random = np.random.default_rng(0)
    confidence = random.uniform(0.5, 1, 200_000)
    assert calibration_error(confidence, random.uniform(size=len(confidence)) < confidence) < 0.01
    assert calibration_error(confidence, np.zeros(len(confidence), bool)) == pytest.approx(confidence.mean())


def test_states_that_are_turned_scaled_and_moved_are_the_same_and_unrelated_ones_are_not() -> None:
    random = np.random.default_rng(0)
    states, other = random.normal(size=(200, 64)), random.normal(size=(200, 96))
    turned = 3 * states @ np.linalg.qr(random.normal(size=(64, 64)))[0] + 5
    assert cka(centred_gram(states), centred_gram(turned)) == pytest.approx(1)
    assert abs(cka(centred_gram(states), centred_gram(other))) < 0.05  # the biased estimate is 0.3
    shared = np.concatenate([states[:, :32], other[:, :32]], axis=1)
    assert 0.3 < cka(centred_gram(states), centred_gram(shared)) < 0.7


def test_attention_at_the_same_places_has_a_cosine_of_one() -> None:
    first = np.array([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
    assert attention_cosine(first, first) == pytest.approx(1)
    assert attention_cosine(first, np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])) == pytest.approx(0.5)


def hostile_report() -> Report:
    """A report whose every text is hostile."""
    svg = charts.lines([charts.Series(HOSTILE, [(0.0, 1.0), (1.0, 2.0)])], HOSTILE, HOSTILE, HOSTILE)
    marks = charts.marks({0: charts.Series(HOSTILE, [(1.0, 1.0)])}, HOSTILE, HOSTILE, HOSTILE, logarithmic=True)
    grid = Grid(HOSTILE, [HOSTILE, HOSTILE], [[HOSTILE, HOSTILE]], prose=True)
    shaded = Grid(HOSTILE, [HOSTILE, HOSTILE], [[HOSTILE, HOSTILE]], [[0.5]])
    pictures = Pictures(
        (Picture(HOSTILE, svg, HOSTILE, ((0, HOSTILE),), numbers=grid), Picture(HOSTILE, marks, HOSTILE, dots=True))
    )
    blocks = (Text(HOSTILE), Heading(HOSTILE), Items((HOSTILE,)), grid, shaded, pictures)
    return Report(HOSTILE, blocks, (Section("Rows", (Fold(HOSTILE, blocks),)),), HOSTILE)


def test_no_text_becomes_markup() -> None:
    source = write_html(hostile_report())
    check_page(source)
    assert "<script" not in source
    assert "alert(1)" in source  # as a text
    lines = write_markdown(hostile_report()).splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in tables} == {3}
    assert not any(line.lstrip("# ").startswith("no heading") for line in lines)
    assert not any("](http" in line.replace("\\]", "").replace("\\(", "") for line in lines)


def test_a_text_is_shortened_behind_a_word_and_a_long_word_within() -> None:
    assert shortened("a b\n\tc") == "a b c"
    assert len(shortened("word " * 100, 50)) <= 51
    assert shortened("x" * 100, 10) == "x" * 9 + " …"


@pytest.mark.parametrize("values", [[1.0], [0.0], [-2.0, -2.0], [1e-6, 1e6], [0.0, 1e9], [3e-9, 4e-9], [5.0, 200.0]])
def test_an_axis_holds_its_values(values: list[float]) -> None:
    for logarithmic in [None, False] + [True] * (min(values) > 0):
        axis = charts.axis(values, logarithmic)
        assert axis.low <= min(values)
        assert max(values) <= axis.high
        assert axis.low < axis.high
        assert 2 <= len(axis.ticks) <= 14
        assert all(-1e-9 <= axis.share(value) <= 1 + 1e-9 for value in values)


def test_letters_of_dots_at_one_place_stand_beside_each_other() -> None:
    points = {i: charts.Series("ABC"[i], [(2.0, 0.5)]) for i in range(3)}
    svg = charts.marks(points, "x", "y", "alt", logarithmic=False)
    places = [part.split('"')[0] for part in svg.split('class="mark" x="')[1:]]
    assert len(set(places)) == 3


def test_a_dot_of_reliability_grows_with_the_decisions_in_its_bin() -> None:
    svg = charts.reliability([(0.6, 0.5), (0.7, 0.5), (0.9, 1.0)], [1, 100, 400], "x", "y", "alt")
    assert [float(part.split('"')[0]) for part in svg.split(' r="')[1:]] == [1.5, 4.5, 9.0]

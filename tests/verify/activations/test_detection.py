"""Super activations, writes and shares on residual streams that are made up, so that every answer is known."""

import numpy as np
import pytest
from traces import entry, trace_of

from analyzer.verify.activations.detection import detect, layer_maxima, outlier_features
from analyzer.verify.records import LayerMaxima, OutlierFeature
from analyzer.verify.settings import Thresholds

THRESHOLDS = Thresholds()
LAYERS = tuple(range(8))
TOKENS = tuple("abcdefgh")


def quiet_stream(layers=8, positions=8, channels=32):
    """Every |h| is 1 or 2, so the median is between them."""
    generator = np.random.default_rng(0)
    signs = generator.choice([-1.0, 1.0], (layers, positions, channels))
    return (signs * generator.choice([1.0, 2.0], signs.shape)).astype(np.float32)


def test_a_quiet_stream_has_none():
    assert detect(quiet_stream(), LAYERS, TOKENS, THRESHOLDS) == ((), ())


def test_reports_run_peak_and_ratio():
    stream = quiet_stream()
    stream[2:6, 3, 5] = [-500, -900, -800, -700]
    (found,), features = detect(stream, LAYERS, TOKENS, THRESHOLDS)
    median = np.median(np.abs(stream[3]))
    assert (found.layer, found.last_layer, found.channel, found.position, found.token) == (2, 5, 5, 3, "d")
    assert found.value == -900
    assert found.median_ratio == pytest.approx(900 / median)
    assert features == ()


def test_layers_keep_their_own_numbers():
    stream = quiet_stream(layers=4)
    stream[1:, 0, 0] = 1000
    (found,), _ = detect(stream, (2, 5, 7, 11), TOKENS, THRESHOLDS)
    assert (found.layer, found.last_layer) == (5, 11)


@pytest.mark.parametrize(("length", "count"), [(2, 0), (3, 1)])
def test_must_persist_two_following_blocks(length, count):
    stream = quiet_stream()
    stream[4 : 4 + length, 1, 1] = 1000
    assert len(detect(stream, LAYERS, TOKENS, THRESHOLDS)[0]) == count


@pytest.mark.parametrize("layer", [6, 7])
def test_what_begins_in_the_last_two_blocks_is_late(layer):
    stream = quiet_stream()
    stream[layer:, 1, 1] = 1000
    stream[layer - 2 : layer, 2, 2] = 1000  # over by then
    lasting, late = detect(stream, LAYERS, TOKENS, THRESHOLDS)
    assert lasting == ()
    assert [(a.channel, a.layer, a.last_layer) for a in late] == [(1, layer, 7)]


@pytest.mark.parametrize(("factor", "count"), [(0.99, 0), (1.0, 1)])
def test_threshold_is_a_multiple_of_the_median(factor, count):
    stream = np.ones((8, 8, 32), np.float32) * 3
    stream[:, 0, 0] = 300 * factor
    assert len(detect(stream, LAYERS, TOKENS, THRESHOLDS)[0]) == count


def test_two_runs_at_one_place_are_two():
    stream = quiet_stream()
    stream[:3, 0, 0] = 1000
    stream[5:, 0, 0] = 3000
    found, _ = detect(stream, LAYERS, TOKENS, THRESHOLDS)
    assert [(a.layer, a.last_layer, a.value) for a in found] == [(5, 7, 3000), (0, 2, 1000)]


@pytest.mark.parametrize(
    ("positions", "features"), [(4, ()), (5, (OutlierFeature(9, 0, 7, 5),)), (8, (OutlierFeature(9, 0, 7, 8),))]
)
def test_a_channel_large_at_most_positions_is_a_feature_too(positions, features):
    stream = quiet_stream()
    stream[:, :positions, 9] = 1000
    found, _ = detect(stream, LAYERS, TOKENS, THRESHOLDS)
    assert [(a.channel, a.position, a.positions) for a in found] == [(9, p, positions) for p in range(positions)]
    assert outlier_features(stream, LAYERS, THRESHOLDS) == features


def test_positions_are_counted_where_the_activation_is_largest():
    stream = quiet_stream()
    stream[2:, 0, 9] = [1000, 1000, 3000, 1000, 1000, 1000]
    stream[2:4, 1:4, 9] = 1000
    (found, *_), _ = detect(stream, LAYERS, TOKENS, THRESHOLDS)
    assert (found.value, found.positions) == (3000, 1)


def test_a_stream_of_zeros_has_none():
    stream = np.zeros((8, 8, 32), np.float32)
    stream[:, 0, 0] = 1e-3
    assert detect(stream, LAYERS, TOKENS, THRESHOLDS) == ((), ())


def test_layer_maxima_are_signed_and_name_their_channel():
    residual = np.zeros((1, 2, 3), np.float32)
    residual[0, 1, 2] = -7
    entries = [entry([[1, -5, 2], [0, 3, 4]], positions=(0, 1)), entry([[4, 4, -4]], expert=1, positions=(1,))]
    (row,) = layer_maxima(trace_of(entries, [[1, 2, 3], [9, -8, 0]], layer=6, residual=residual))
    assert row == LayerMaxima(6, -5, 1, 9, 0, -7, 2)

"""Writes, shares and collapses on streams and traces that are made up, so that every answer is known."""

import numpy as np
import pytest
from traces import entry, trace_of

from analyzer.base.records import Coordinate
from analyzer.verify.activations.attribution import attribute, collapse, find_writes
from analyzer.verify.activations.detection import detect
from analyzer.verify.settings import Thresholds

THRESHOLDS = Thresholds()


LAYERS = tuple(range(8))


TOKENS = tuple("abcdefgh")


def test_finds_writes_in_steps_and_removals():
    stream = np.ones((8, 8, 32), np.float32)
    stream[:, 2, 4] = [1, 200, 700, 701, 702, 703, 50, 1]
    activations, _ = detect(stream, LAYERS, TOKENS, THRESHOLDS)
    entering = np.concatenate((np.ones((1, 8, 32), np.float32), stream[:-1]))
    writes = find_writes(entering, stream, LAYERS, activations, THRESHOLDS)
    assert writes == [(1, 2, 4, 199), (2, 2, 4, 500), (6, 2, 4, -653)]


def test_the_first_block_writes_over_what_enters():
    stream = np.full((8, 8, 32), 1, np.float32)
    stream[:, 0, 4] = 500
    entering = np.concatenate((np.ones((1, 8, 32), np.float32), stream[:-1]))
    activations, _ = detect(stream, LAYERS, TOKENS, THRESHOLDS)
    assert find_writes(entering, stream, LAYERS, activations, THRESHOLDS) == [(0, 0, 4, 499)]
    entering[0, 0, 4] = 500
    assert find_writes(entering, stream, LAYERS, activations, THRESHOLDS) == []


def test_what_is_changed_between_blocks_is_no_block_s_write():
    stream = np.full((8, 8, 32), 1, np.float32)
    stream[3:, 0, 4] = 500
    entering = np.concatenate((np.ones((1, 8, 32), np.float32), stream[:-1]))
    entering[3, 0, 4] = 450  # before block 3, in none
    activations, _ = detect(stream, LAYERS, TOKENS, THRESHOLDS)
    assert find_writes(entering, stream, LAYERS, activations, THRESHOLDS) == []


def rows_of(**rows):
    """Return what gives W[row]; each row is named by its expert and number."""
    return lambda place, row: np.array(rows[f"e{place[3]}_r{row}" if place[3] >= 0 else f"r{row}"], float)


def test_shares_are_terms_over_the_output_with_its_bias():
    # Terms of 20, -4, 1, 60, and a bias of 3.
    trace = trace_of([entry([10.0, 4.0, 2.0, 20.0])], [[0.0, 20 - 4 + 1 + 60 + 3]])
    write, behind = attribute((5, 0, 1, 79.0), trace, rows_of(r1=[2.0, -1.0, 0.5, 3.0]), THRESHOLDS)
    assert write.largest_share == 60 / 80
    assert (write.layer, write.position, write.channel, write.change) == (5, 0, 1, 79.0)
    assert [(a.coordinate, a.value, a.share, a.write) for a in behind] == [
        (Coordinate(5, None, 1, 3), 3.0, 60 / 80, write),
        (Coordinate(5, None, 1, 0), 2.0, 20 / 80, write),
    ]


def test_a_spread_write_is_no_single_weights_doing():
    trace = trace_of([entry(np.ones(10))], np.full((1, 3), 10))
    write, behind = attribute((5, 0, 0, 1.0), trace, rows_of(r0=np.ones(10)), THRESHOLDS)
    assert behind == []
    assert write.largest_share == 0.1


def test_shares_go_over_all_experts_by_their_routers_weights():
    entries = [
        entry([[9, 9], [10, 2]], expert=3, positions=(0, 1), routed=(0.5, 0.25)),  # at 1: 0.25 * (4 * 10 + 10 * 2)
        entry([[5, 1]], expert=0, positions=(1,), routed=(0.75,)),  # 0.75 * (2 * 5 - 1)
        entry([[50, 50]], expert=1, positions=(0,)),
        entry([[7, 7]], positions=(1,), routed=(0.5,)),  # of the shared expert: 0.5 * (7 + 7)
    ]
    total = 15 + 6.75 + 7
    trace = trace_of(entries, [[0, 0], [0, total]])
    rows = rows_of(e3_r1=[4, 10], e0_r1=[2, -1], r1=[1, 1])
    write, behind = attribute((5, 1, 1, 30.0), trace, rows, Thresholds(share=0.17))
    assert [(a.coordinate, a.share) for a in behind] == [
        (Coordinate(5, 3, 1, 0), pytest.approx(10 / total)),
        (Coordinate(5, 0, 1, 0), pytest.approx(7.5 / total)),
        (Coordinate(5, 3, 1, 1), pytest.approx(5 / total)),
    ]
    assert write.largest_share == pytest.approx(10 / total)


def test_a_position_that_no_expert_had_has_no_share():
    trace = trace_of([entry([[9, 9]], expert=3, positions=(0,))], [[0, 0], [0, 10]])
    write, behind = attribute((5, 1, 1, 10.0), trace, rows_of(), THRESHOLDS)
    assert (write.largest_share, behind) == (0, [])


def test_a_write_by_attention_alone_is_no_weights_doing():
    trace = trace_of([entry([1.0, 1.0])], [[0.0, 0.0]])
    write, behind = attribute((5, 0, 1, 500.0), trace, rows_of(r1=[1.0, -1.0]), THRESHOLDS)
    assert (write.largest_share, behind) == (0, [])


FIRST_LAYER = Coordinate(1, None, 4, 0)


def collapse_of(zeroed, coordinate=FIRST_LAYER):
    stream = np.ones((8, 8, 32), np.float32)
    stream[:, 0, 4] = [1, 400, 400, 400, 1, 8000, 8000, 8000]
    activations, _ = detect(stream, LAYERS, TOKENS, THRESHOLDS)
    assert len(activations) == 2
    after = stream.copy()
    after[:, 0, 4] = zeroed
    return collapse(coordinate, 4, 0, activations, LAYERS, stream, after)


def test_collapse_is_the_part_that_is_taken_away():
    assert collapse_of([1, 100, 100, 100, 1, 8000, 8000, 8000]) == pytest.approx(0.75)


def test_collapse_of_a_later_run_that_a_write_prepared_counts():
    assert collapse_of([1, 380, 380, 380, 1, 80, 80, 80]) == pytest.approx(0.99)


def test_collapse_before_the_weights_layer_does_not_count():
    assert collapse_of([1, 0, 0, 0, 1, 8000, 8000, 8000], Coordinate(5, None, 4, 0)) == 0


def test_an_activation_that_grows_has_a_negative_collapse():
    assert collapse_of([1, 1, 1, 1, 1, 20000, 20000, 20000], Coordinate(6, None, 4, 0)) == pytest.approx(-1.5)


def test_of_several_mlps_shares_are_of_what_all_add_also_where_a_norm_follows_each():
    entries = [entry([10.0, 1.0]), entry([5.0, 4.0], expert=2, part=1)]
    # The first gives 20 + 1, and its norm makes 42 of it; the second gives 10 + 8, and its norm makes 18 of it.
    trace = trace_of(entries, [[[0.0, 21.0]], [[0.0, 18.0]]], added=[[[0.0, 42.0]], [[0.0, 18.0]]])
    rows = rows_of(r1=[2.0, 1.0], e2_r1=[2.0, 2.0])
    write, behind = attribute((5, 0, 1, 60.0), trace, rows, Thresholds(share=0.15))
    assert [(a.coordinate, a.share) for a in behind] == [
        (Coordinate(5, None, 1, 0), pytest.approx(40 / 60)),
        (Coordinate(5, 2, 1, 0), pytest.approx(10 / 60)),
    ]
    assert write.largest_share == pytest.approx(40 / 60)
    cancelled = trace_of(entries, [[[0.0, 21.0]], [[0.0, 18.0]]], added=[[[0.0, 18.0]], [[0.0, -18.0]]])
    assert attribute((5, 0, 1, 60.0), cancelled, rows, THRESHOLDS)[1] == []

from __future__ import annotations

from router.training.batch import WINDOW, rows_of_step

LENGTHS = [(place * 37) % 101 for place in range(20)]


def steps(first: int, last: int, seed: int = 1, batch: int = 4) -> list[list[int]]:
    return [rows_of_step(step, LENGTHS, batch, seed) for step in range(first, last + 1)]


def test_an_epoch_sees_every_row_once() -> None:
    for epoch in (steps(1, 5), steps(6, 10)):
        assert sorted(row for rows in epoch for row in rows) == list(range(20))


def test_epochs_and_seeds_differ_and_repeat() -> None:
    assert steps(1, 5) == steps(1, 5)
    assert sorted(map(sorted, steps(1, 5))) == sorted(map(sorted, steps(6, 10)))  # one window: sorted alike
    assert steps(1, 5) != steps(6, 10)
    assert steps(1, 5) != steps(1, 5, seed=2)


def test_rows_of_like_length_go_together() -> None:
    spread = [max(LENGTHS[row] for row in rows) - min(LENGTHS[row] for row in rows) for rows in steps(1, 5)]
    assert sum(spread) < max(LENGTHS)


def test_windows_are_drawn_anew_each_epoch() -> None:
    lengths = list(range(WINDOW * 2 * 3))
    epochs = [
        [rows_of_step(epoch * WINDOW * 3 + step, lengths, 2, 0) for step in range(1, WINDOW * 3 + 1)]
        for epoch in range(2)
    ]
    assert sorted(map(sorted, epochs[0])) != sorted(map(sorted, epochs[1]))


def test_rows_left_over_wait_for_the_next_epoch() -> None:
    seen = {row for rows in steps(1, 40, batch=6) for row in rows}
    assert seen == set(range(20))
    assert all(len(rows) == 6 for rows in steps(1, 40, batch=6))


def test_batch_larger_than_the_data() -> None:
    assert sorted(rows_of_step(3, [5, 4, 6], 8, seed=0)) == [0, 1, 2]

"""Samples visit everything in the end, and never nothing."""

from __future__ import annotations

import itertools

import pytest

from tests import sampling


@pytest.fixture(params=range(3))
def seeds(request: pytest.FixtureRequest) -> range:
    return range(request.param * 1000, request.param * 1000 + 400)


@pytest.mark.parametrize(("total", "count"), [(12, 9), (17, 9), (40, 9), (9, 9), (5, 9), (391, 300)])
def test_all_of_what_is_spread_come_in_turn(
    total: int, count: int, seeds: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    for seed in seeds:
        monkeypatch.setattr(sampling, "SEED", seed)
        taken = sampling.spread(range(total), "any", count)
        assert len(taken) == min(total, count) == len(set(taken)) and list(taken) == sorted(taken)
        seen |= set(taken)
    assert seen == set(range(total))


@pytest.mark.parametrize(("total", "usual"), [(21, 6), (5, 9), (1, 23)])
def test_all_of_what_is_sampled_come_in_turn(
    total: int, usual: int, seeds: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "EVERY", 0)
    seen: set[int] = set()
    for seed in seeds:
        monkeypatch.setattr(sampling, "SEED", seed)
        taken = sampling.sampled(range(total), "any", usual)
        assert taken
        numbers = list(itertools.takewhile(lambda number: number <= total, sampling.numbers("any", usual)))
        assert numbers[0] == 1
        seen |= set(taken) & {number - 1 for number in numbers} if total > usual else set(taken)
    assert seen == set(range(total))


def test_everything_is_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "EVERY", 1)
    assert list(sampling.sampled(range(9), "any", 4)) == list(range(9))
    assert list(itertools.islice(sampling.numbers("any", 4, 3), 5)) == [1, 2, 3, 4, 5]
    assert list(sampling.spread(range(9), "any", 0)) == list(range(9))

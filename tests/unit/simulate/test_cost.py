"""What a job is said to take: a pure sum over its stages."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quantaudit.simulate import cost
from quantaudit.simulate.cost import Speed, Work, expected_stages, minutes, samples_in, seconds

SPEED = Speed(measured=0.002, forward=0.001, scored=0.0015)
REPORT = Work(tokens=60_000, evaluated=4096, schemes=2, weights=1, rendered=200)


def test_a_measurement_alone_is_its_tokens_times_the_measured_speed() -> None:
    assert seconds(Work(tokens=60_000), SPEED) == pytest.approx(120)
    assert [stage.title for stage in expected_stages(Work(tokens=60_000), SPEED)] == [cost.MEASURING]


def test_a_report_has_every_stage_in_the_order_in_which_it_runs() -> None:
    titles = [stage.title for stage in expected_stages(REPORT, SPEED)]
    assert titles == [
        cost.MEASURING, cost.GRADIENTS, cost.REPLAYING, cost.ROUNDING, cost.SINGLE, cost.SCORING, cost.RENDERING
    ]  # fmt: skip


def test_what_is_not_asked_for_is_no_stage() -> None:
    work = replace(REPORT, tokens=0, by_damage=True, rendered=0)
    titles = {stage.title for stage in expected_stages(work, SPEED)}
    assert titles == {cost.REPLAYING, cost.ROUNDING, cost.SINGLE, cost.SCORING}


def test_a_machine_of_half_the_speed_takes_twice_as_long_but_for_what_is_constant() -> None:
    half = Speed(measured=0.004, forward=0.002, scored=0.003)
    constant = cost.rendering(200)
    assert seconds(REPORT, half) - constant == pytest.approx(2 * (seconds(REPORT, SPEED) - constant))


@pytest.mark.parametrize(
    "more", [{"recipes": 1}, {"single": 3}, {"schemes": 3}, {"weights": 2}, {"calibrations": (("calibrating x", 99),)}]
)
def test_more_to_do_takes_longer(more: dict[str, object]) -> None:
    assert seconds(replace(REPORT, **more), SPEED) > seconds(REPORT, SPEED)  # type: ignore[arg-type]


def test_the_samples_that_fit_are_the_most_that_do() -> None:
    count = samples_in(100.0, REPORT, SPEED, samples=263, evaluation=20_000, budget=4096)
    assert count is not None

    def taking(count: int) -> float:
        share = count / 263
        part = replace(REPORT, tokens=round(60_000 * share), evaluated=min(4096, round(20_000 * share)))
        return seconds(part, SPEED)

    assert taking(count) <= 100.0 < taking(count + 1)


def test_where_two_samples_take_too_long_there_is_no_number() -> None:
    assert samples_in(1.0, REPORT, SPEED, samples=263, evaluation=20_000, budget=4096) is None


def test_all_samples_fit_where_there_is_time_enough() -> None:
    assert samples_in(1e9, REPORT, SPEED, samples=263, evaluation=20_000, budget=4096) == 263


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "5 seconds"),
        (42, "40 seconds"),
        (60, "1 minute"),
        (150, "2.5 minutes"),
        (1260, "21 minutes"),
        (9000, "2.5 hours"),
    ],
)
def test_lengths_of_time_in_words(value: float, text: str) -> None:
    assert minutes(value) == text


def test_advice_and_verification_name_the_stages_that_they_open() -> None:
    smoothing = {"advised": "advised", "smoothing": 60_000, "calibrating_again": 20_000, "sites": 99}
    advice = [stage.title for stage in cost.advise_stages(4096, SPEED, **smoothing)]
    once_more = ["calibrating advised", cost.CHOOSING]
    choosing = [cost.PRICING, cost.CHOOSING, *[cost.CHOOSING] * cost.ROUNDS]
    assert advice == [cost.SMOOTHING, *choosing, *once_more, cost.RENDERING]
    plain = cost.advise_stages(4096, SPEED, **smoothing | {"smoothing": 0, "calibrating_again": 0})
    assert [stage.title for stage in plain] == [*choosing, cost.RENDERING]
    runs = {"calibrations": [("calibrating r", 40_000)], "again": [(cost.AGAIN, 20_000), ("calibrating r", 0)]}
    verified = cost.verify_stages(4096, SPEED, **runs, oneshot=20_000, sites=99, loading=9.0)
    titles = [cost.PREDICTING, cost.AGAIN, cost.ONE_SHOT, cost.RELOADING, cost.COMPARING, cost.RENDERING]
    assert [stage.title for stage in verified] == ["calibrating r", *titles]
    assert verified[0].seconds == 40_000 * SPEED.measured

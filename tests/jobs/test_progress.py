"""The lines of progress during a run."""

import io

from jobs.progress import Progress, duration


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_come_now_and_then_and_at_the_end() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress(400, 100, stream=stream, clock=clock) as progress:
        for second, errors in ((4, 0), (8, 1), (12, 0)):
            clock.now = second
            progress.add(100, errors)
    assert stream.getvalue() == ("400 of 400 images (100%), 1 error, 25.0 images/s\n")


def test_the_line_tells_rate_and_time_left() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress(1000, stream=stream, clock=clock) as progress:
        assert progress.line() == "0 of 1,000 images (0.0%), 0 errors, starting"
        clock.now = 11
        progress.add(100, 2)
        clock.now = 21
        progress.add(100, 0)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "100 of 1,000 images (10.0%), 2 errors, measuring the rate"
    assert progress.line() == "200 of 1,000 images (20.0%), 2 errors, 10.0 images/s, 1 min 20 s left"
    assert progress.steady_rate() == 10.0


def test_a_terminal_gets_a_live_line() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    clock, stream = Clock(), Terminal()
    with Progress(10, stream=stream, clock=clock) as progress:
        progress.print_line("two captioners [start]")
        progress.add(10, 0)
    assert "two captioners [start]" in stream.getvalue()


def test_nearly_done_is_not_shown_as_done() -> None:
    progress = Progress(100_000, 99_999, stream=io.StringIO(), clock=Clock())
    assert "(99.9%)" in progress.line()


def test_durations_are_written_for_people() -> None:
    assert [duration(s) for s in (8, 200, 7500, 273_600)] == ["8 s", "3 min 20 s", "2 h 5 min", "3 d 4 h"]

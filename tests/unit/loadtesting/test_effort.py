from opsplane_server.loadtesting.effort import Effort
from opsplane_server.loadtesting.runners.port import Exited, Running, Status


def exhausted(*shares: float, cpus: float = 2.0, step: float = 1.0) -> bool:
    """Of a load generator that used so much of its CPUs in each step."""
    effort, cpu = Effort(), 5.0
    effort.note("k6", Running(cpu, cpus), 100.0)
    for number, share in enumerate(shares, start=1):
        cpu += share * cpus * step
        effort.note("k6", Running(cpu, cpus), 100.0 + number * step)
    return effort.exhausted


def test_a_generator_without_cpu_left_is_the_limit() -> None:
    assert exhausted(*[0.97] * 10)
    assert exhausted(*[0.2] * 4, *[0.95] * 6)
    assert exhausted(*[0.97] * 100, step=0.1)


def test_one_with_cpu_left_is_not() -> None:
    assert not exhausted(*[0.7] * 10)
    assert not exhausted(*[0.99] * 4, *[0.5] * 6)


def test_too_short_a_look_does_not_tell() -> None:
    assert not exhausted(0.99, 0.99)
    assert not exhausted()


def test_what_is_not_known_is_not_judged() -> None:
    effort = Effort()
    statuses: list[Status] = [Running(), Running(1.0), Running(None, 2.0), Exited(0)]
    for second in range(20):
        effort.note("k6", statuses[second % 4], float(second))
    assert not effort.exhausted


def test_each_generator_is_looked_at_by_itself() -> None:
    effort = Effort()
    for second in range(10):
        effort.note("idle", Running(0.1 * second, 2.0), float(second))
        effort.note("busy", Running(2.0 * second, 2.0), float(second))
    assert effort.exhausted

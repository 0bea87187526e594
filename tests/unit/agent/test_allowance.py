from dask_fleet.agent.allowance import DEAF_S, REFILL_BYTES_S, STORE_BYTES, Allowance


def test_a_store_is_given_at_once_and_what_is_too_much_counted() -> None:
    allowance = Allowance()
    assert allowance.take(STORE_BYTES - 10, 100.0) == STORE_BYTES - 10
    assert allowance.take(30, 100.0) == 10
    assert allowance.deaf
    assert allowance.take(7, 100.0 + DEAF_S - 1) == 0
    assert allowance.hear_again() == 27
    assert not allowance.deaf
    assert allowance.hear_again() == 0


def test_it_refills_and_never_overflows() -> None:
    allowance = Allowance()
    assert allowance.take(STORE_BYTES + 1, 0.0) == STORE_BYTES
    allowance.hear_again()
    room = int(DEAF_S * REFILL_BYTES_S)
    assert allowance.take(1 << 30, DEAF_S) == room
    allowance.hear_again()
    assert allowance.take(1 << 30, 1e9) == STORE_BYTES


def test_whoever_stays_within_it_loses_nothing() -> None:
    allowance = Allowance()
    for second in range(1_000):
        assert allowance.take(REFILL_BYTES_S, float(second)) == REFILL_BYTES_S
    assert allowance.hear_again() == 0

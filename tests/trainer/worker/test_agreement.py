"""A failure of one rank is a failure of all, with the same exit code."""

import errno

import pytest

from deepseek_trainer.contract.errors import ConfigError, IntegrityError, JobError, TryAgainError
from deepseek_trainer.worker.agreement import agree, alone
from support.builders.vault import Ranks


def test_every_rank_gets_the_values_of_all() -> None:
    assert Ranks(3).run(lambda rank, exchange: agree(exchange, lambda: rank * 10)) == [[0, 10, 20]] * 3
    assert agree(alone, lambda: "x") == ["x"]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (IntegrityError("cut", hint="h"), IntegrityError),
        (ConfigError("no"), ConfigError),
        (OSError(5, "bad"), TryAgainError),
        (KeyError("a bug"), JobError),
    ],
)
def test_a_failure_reaches_all_ranks_with_its_exit_code(raised: Exception, expected: type[JobError]) -> None:
    def work(rank: int) -> None:
        if rank == 1:
            raise raised

    outcomes = Ranks(3).run(lambda rank, exchange: agree(exchange, lambda: work(rank)))
    assert [type(outcomes[0]), type(outcomes[2])] == [expected] * 2
    assert str(outcomes[0]).startswith("rank 1: ")
    assert not str(outcomes[1]).startswith("rank 1: ")


def test_a_bug_reaches_the_rank_that_has_it_as_it_is() -> None:
    def work(rank: int) -> None:
        if rank == 1:
            raise KeyError("a bug")

    outcomes = Ranks(2).run(lambda rank, exchange: agree(exchange, lambda: work(rank)))
    assert [type(outcome) for outcome in outcomes] == [JobError, KeyError]
    assert str(outcomes[0]) == "rank 1: KeyError: 'a bug'"


@pytest.mark.parametrize(("number", "kept"), [(errno.ESTALE, True), (errno.EIO, True), (errno.ENOENT, False)])
def test_a_failure_of_the_volume_stays_one_on_the_rank_that_met_it(number: int, kept: bool) -> None:
    def work(rank: int) -> None:
        if rank == 1:
            raise OSError(number, "bad")

    other, met = Ranks(2).run(lambda rank, exchange: agree(exchange, lambda: work(rank)))
    assert type(met) is (OSError if kept else TryAgainError)
    assert type(other) is TryAgainError

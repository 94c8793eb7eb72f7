"""Work that is done in a process of its own comes back, or is refused for what it did there."""

import os
import resource
import time

import pytest

from deepseek_trainer.base_model.confined import confined
from deepseek_trainer.base_model.patience import within
from deepseek_trainer.contract.errors import ConfigError


def done(work, seconds=1):
    return confined(work, "the work", seconds=seconds, memory=64 << 20, hint="do less")


def refusal(work, seconds=1):
    with pytest.raises(ConfigError) as caught:
        done(work, seconds)
    return caught.value.problem


def forever():
    while True:
        pass


def test_what_the_work_returns_comes_back_and_nothing_else_has_changed():
    seen = []
    assert done(lambda: [seen.append(1), "é\ud800", 2.5, {"a": None}]) == [None, "é\ud800", 2.5, {"a": None}]
    assert seen == []


def test_a_large_answer_comes_back():
    assert len(done(lambda: "x" * 10_000_000, seconds=5)) == 10_000_000


def test_a_refusal_comes_back_with_its_hint():
    def refuse():
        raise ConfigError("no such thing", hint="make one")

    with pytest.raises(ConfigError, match=r"^no such thing \(hint: make one\)$"):
        done(refuse)


def test_any_other_error_is_a_refusal_that_names_it():
    assert refusal(lambda: {}["x"]) == "the work fails: KeyError: \"'x'\""


def test_an_error_that_may_quote_a_text_of_the_data_is_named_alone():
    with pytest.raises(ConfigError, match=r"^the work fails: KeyError ") as caught:
        confined(lambda: {}["p4ss phrase"], "the work", seconds=1, memory=64 << 20, hint="do less", quoting=False)
    assert "p4ss phrase" not in str(caught.value)


def test_work_without_end_is_ended():
    assert refusal(forever) == "the work takes more than 1 s of computing"


@pytest.mark.parametrize("work", [lambda: bytearray(1 << 40), lambda: [bytearray(1 << 20) for _ in range(10_000)]])
def test_work_that_takes_all_memory_is_ended(work):
    assert refusal(work).startswith("the work takes more memory than there may be")


def test_work_that_ends_its_process_is_refused():
    assert refusal(lambda: os._exit(3)).startswith("the work takes more memory than there may be, or ends the process")


def test_no_core_of_it_reaches_a_disk():
    assert done(lambda: resource.getrlimit(resource.RLIMIT_CORE)[0] <= 1)


def test_no_process_is_left():
    with pytest.raises(ConfigError):
        done(forever)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_waiting_ends_although_the_work_does_not():
    with pytest.raises(ConfigError, match=r"the work takes more than 0 s"):
        within(0.05, lambda: time.sleep(5), "the work", hint="do less")


def test_what_the_awaited_work_returns_or_raises_comes_back():
    assert within(5, lambda: 7, "the work", hint="") == 7
    with pytest.raises(KeyError):
        within(5, lambda: {}["x"], "the work", hint="")

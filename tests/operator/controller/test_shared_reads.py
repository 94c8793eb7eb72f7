"""Questions asked once for many askers."""

import asyncio

from deepseek_operator.controller.shared_reads import Shared
from support.fakes.clock import quiet


class Oracle:
    """Numbers its answers; each takes until `speak` is called."""

    def __init__(self) -> None:
        self.asked, self.speaking = list[str](), asyncio.Event()
        self.shared = Shared(self.answer)

    async def answer(self, name: str) -> int:
        self.asked.append(name)
        number = len(self.asked)
        await self.speaking.wait()
        return number


async def test_who_asks_during_a_question_shares_the_next_one() -> None:
    oracle = Oracle()
    first = asyncio.create_task(oracle.shared.ask("cpu"))
    await quiet()
    others = [asyncio.create_task(oracle.shared.ask("cpu")) for _ in range(5)]
    await quiet()
    assert oracle.asked == ["cpu"]
    oracle.speaking.set()
    assert await first == 1
    assert await asyncio.gather(*others) == [2] * 5


async def test_names_do_not_wait_for_each_other() -> None:
    oracle = Oracle()
    asks = [asyncio.create_task(oracle.shared.ask(name)) for name in ("cpu", "gpu")]
    await quiet()
    assert oracle.asked == ["cpu", "gpu"]
    oracle.speaking.set()
    await asyncio.gather(*asks)


async def test_one_asker_that_gives_up_leaves_the_others_their_answer() -> None:
    oracle = Oracle()
    asks = [asyncio.create_task(oracle.shared.ask("cpu")) for _ in range(2)]
    await quiet()
    asks[0].cancel()
    oracle.speaking.set()
    assert await asks[1] == 1


async def test_a_question_that_fails_fails_for_those_who_asked_it_only() -> None:
    async def answer(name: str) -> str:
        if fails:
            raise ConnectionError("API server is away")
        return name

    fails, shared = True, Shared(answer)
    answers = await asyncio.gather(shared.ask("cpu"), shared.ask("cpu"), return_exceptions=True)
    assert [type(found) for found in answers] == [ConnectionError] * 2
    fails = False
    assert await shared.ask("cpu") == "cpu"


async def test_a_question_that_was_cancelled_while_it_waited_is_asked_anew() -> None:
    oracle = Oracle()
    asks = [asyncio.create_task(oracle.shared.ask("cpu")) for _ in range(2)]
    await quiet()
    later = asyncio.create_task(oracle.shared.ask("cpu"))
    await quiet()
    oracle.shared._next["cpu"].cancel()
    await quiet()
    oracle.speaking.set()
    assert await asyncio.gather(*asks, later, return_exceptions=True)
    assert await oracle.shared.ask("cpu") == 2

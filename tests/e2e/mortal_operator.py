"""The operator, dead right after its n-th write: python mortal_operator.py N ARGUMENTS...

Killed from inside, because nobody outside can tell one write from the next.
"""

import os
import signal
import sys
from typing import Any

from deepseek_operator.__main__ import main
from deepseek_operator.controller.client import Api

WRITES = {"POST", "PUT", "PATCH", "DELETE"}
send = Api._send
left = [int(sys.argv.pop(1))]


async def deadly(api: Api, method: str, *arguments: Any, **options: Any) -> Any:
    answer = await send(api, method, *arguments, **options)
    left[0] -= method in WRITES
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer


if __name__ == "__main__":
    Api._send = deadly  # type: ignore[method-assign]
    main()

"""Speed of the preparation, stage by stage, on generated text: `python benchmarks/trainer/bench_prepare.py [MB]`.

Text: one .jsonl of Zipf-distributed words, from nothing to rows on disk with a tokenizer of 4096 tokens
trained on it.  Instruction: the same words as questions and answers.  In the clear.  MB are 10^6 bytes of input.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from deepseek_trainer import tasks
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.data.inputs import Inputs
from deepseek_trainer.data.preparation import prepare
from deepseek_trainer.tasks.language.tokenizer import documents, trained_tokenizer
from deepseek_trainer.worker.vaults import data_vault


def words(count: int, seed: int = 0) -> list[str]:
    """Words of 2 to 11 letters out of 30,000, the frequent ones short."""
    random = np.random.default_rng(seed)
    letters = list("etaoinshrdlucmfwypvbgk")
    known = ["".join(random.choice(letters, 2 + min(9, i // 1500))) for i in range(30_000)]
    return [known[i] for i in np.minimum(random.zipf(1.3, count), len(known)) - 1]


def write_corpus(path: Path, megabytes: float, instruction: bool) -> None:
    all_words = words(int(megabytes * 250_000))
    with path.open("w") as file:
        for start in range(0, len(all_words), 120):
            text = " ".join(all_words[start : start + 120])
            prompt, response = text[: len(text) // 3], text[len(text) // 3 :]
            file.write(json.dumps({"prompt": prompt, "response": response} if instruction else {"text": text}) + "\n")


def config(instruction: bool) -> TrainingConfig:
    model = {"hiddenSize": 64, "numLayers": 1, "numHeads": 1, "intermediateSize": 64, "vocabSize": 4096}
    data = {"train": {"claimName": "corpus"}, "format": "Instruction" if instruction else "Text"}
    empty = ("method", "optimization", "checkpoint", "evaluation", "export")
    return TrainingConfig.model_validate(
        {
            "job": {"namespace": "bench", "name": "prepare"},
            "numNodes": 1,
            "numProcPerNode": 1,
            "model": {"architecture": model},
            "data": data,
            **{part: {} for part in empty},
        }
    )


def measure(megabytes: float, instruction: bool, root: Path) -> None:
    paths, job = Paths(root), config(instruction)
    paths.claim("corpus").mkdir(parents=True)
    write_corpus(paths.claim("corpus", "a.jsonl"), megabytes, instruction)
    size = paths.claim("corpus", "a.jsonl").stat().st_size / 1e6
    vault = data_vault(job, paths)

    def timed(name: str, start: float) -> None:
        seconds = time.perf_counter() - start
        print(f"{job.data.format:12} {name:28} {seconds:7.2f} s {size / seconds:8.1f} MB/s")

    start = time.perf_counter()
    (source,) = Inputs.find(job, paths, tasks.preparer(job).reading).train.values()
    timed("read, check, split", start)
    start = time.perf_counter()
    source.digest()
    timed("digest", start)
    start = time.perf_counter()
    tokenizer = trained_tokenizer((record.text for record in source.records()), 4096)
    timed("train the tokenizer", start)
    start = time.perf_counter()
    tokens = sum(map(len, documents(tokenizer, source.records())))
    timed(f"tokenise ({tokens / 1e6:.1f} M tokens)", start)
    start = time.perf_counter()
    prepare(job, paths, vault, "bench-1", tasks.preparer(job))
    timed("all of it, to the commit", start)
    start = time.perf_counter()
    prepare(job, paths, vault, "bench-2", tasks.preparer(job))
    timed("again: it is there", start)


def main() -> None:
    megabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    for instruction in (False, True):
        with tempfile.TemporaryDirectory() as root:
            measure(megabytes, instruction, Path(root))


if __name__ == "__main__":
    main()

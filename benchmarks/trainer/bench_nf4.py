"""LoRA beside a base in fp32 and in NF4: `python benchmarks/trainer/bench_nf4.py [FILE.gguf]`, minutes with SmolLM2.

Without a file the base is a small Llama of random weights.  Both learn the handbook of examples/.  In the
end the adapters of the NF4 base are merged twice: into the weights that they were trained beside, and
into the original ones.
"""

import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import set_peft_model_state_dict
from torch import Tensor, nn

from deepseek_trainer import tasks
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.method import LoraSpec, MethodSpec, MethodType
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.data.dataset import Prepared, open_prepared
from deepseek_trainer.data.preparation import prepare
from deepseek_trainer.model.adapters import adapter_state, merged
from deepseek_trainer.model.loading import load_model, trainable_parameters
from deepseek_trainer.model.method import trainable
from deepseek_trainer.tasks.language.batch import TokenBatch
from deepseek_trainer.tasks.language.loss import causal_loss
from deepseek_trainer.worker.vaults import data_vault

CPU = torch.device("cpu")
HANDBOOK = Path(__file__).parents[2] / "examples" / "handbook"
SMALL = {"hiddenSize": 512, "numLayers": 6, "numHeads": 8, "intermediateSize": 1536, "vocabSize": 2048}
STEPS, ROWS, RATE = 16, 2, 4e-3


def a_job(file: Path | None, root: Path) -> tuple[TrainingConfig, Paths]:
    paths = Paths(root, root / "scratch")
    paths.claim("data").parent.mkdir(parents=True)
    paths.claim("data").symlink_to(HANDBOOK)
    if file is not None:
        paths.claim("models").symlink_to(file.resolve().parent)
    config = {
        "job": {"namespace": "bench", "name": "nf4"},
        "numNodes": 1,
        "numProcPerNode": 1,
        "model": {"base": {"claimName": "models", "path": file.name}} if file else {"architecture": SMALL},
        "data": {
            "format": "Instruction",
            "train": {"claimName": "data", "path": "train.jsonl"},
            "validation": {"claimName": "data", "path": "validation.jsonl"},
            "sequenceLength": 256,
        },
    }
    parts = ("method", "optimization", "checkpoint", "evaluation", "export")
    return TrainingConfig.model_validate(config | {part: {} for part in parts}), paths


def linear_bytes(model: nn.Module) -> tuple[int, int]:
    """[bytes] of the decoder layers' matrices with what NF4 keeps beside them, and of all other frozen weights."""
    linear, rest = 0, 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            continue
        state = getattr(parameter, "quant_state", None)
        beside = 0 if state is None else sum(t.nbytes for t in (state.absmax, state.code, state.state2.absmax))
        if parameter.dtype is torch.uint8 or "_proj" in name:
            linear += parameter.nbytes + beside
        else:
            rest += parameter.nbytes
    return linear, rest


def mean_loss(model: nn.Module, batch: TokenBatch) -> float:
    model.eval()
    with torch.no_grad():
        loss, learned = causal_loss(model, batch)
    return float(loss) / learned


def train(model: nn.Module, prepared: Prepared[TokenBatch]) -> float:
    """Some steps of AdamW; CPU seconds of a step, median: others use the machine, too."""
    optimizer, seconds = torch.optim.AdamW(trainable_parameters(model), lr=RATE), []
    for step in range(STEPS):
        model.train()
        batch = prepared.train.batch([(step * ROWS + i) % len(prepared.train) for i in range(ROWS)])
        started = time.process_time()
        loss, learned = causal_loss(model, batch)
        (loss / learned).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def logits(model: nn.Module, batch: TokenBatch) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=batch.tokens_BT[:1]).logits
    return found


def measure(file: Path | None, root: Path) -> None:
    config, paths = a_job(file, root)
    vault = data_vault(config, paths)
    directory = prepare(config, paths, vault, "run-1", tasks.preparer(config))
    prepared = open_prepared(config, directory, vault, tasks.of(config, paths, vault, directory))
    held_out = prepared.validation.batch(range(len(prepared.validation)))

    def adapted(type_: MethodType) -> nn.Module:
        method = MethodSpec(type=type_, lora=LoraSpec(dropout=0))
        return trainable(load_model(config, paths, vault, CPU), method, 0, CPU, torch.float32)

    print(
        f"{'base':6} {'linear':>9} {'rest':>9} {'loss before':>12} {'after':>7} {'step':>7}   [MB, nats/token, CPU s]"
    )
    models = {type_: adapted(type_) for type_ in (MethodType.LORA, MethodType.QLORA)}
    for type_, model in models.items():
        linear, rest = (size / 1e6 for size in linear_bytes(model))
        before, step = mean_loss(model, held_out), train(model, prepared)
        after = mean_loss(model, held_out)
        name = "NF4" if type_ is MethodType.QLORA else "fp32"
        print(f"{name:6} {linear:9.1f} {rest:9.1f} {before:12.4f} {after:7.4f} {step:7.2f}", flush=True)

    trained, original = models[MethodType.QLORA], adapted(MethodType.LORA)
    set_peft_model_state_dict(original, adapter_state(trained))
    expected = logits(trained, held_out)
    for name, model in (("de-quantised", trained), ("original", original)):
        complete = merged(model)
        difference = float((logits(complete, held_out) - expected).abs().max() / expected.abs().max())
        print(
            f"merged into the {name} weights: loss {mean_loss(complete, held_out):.4f}, logits off by {difference:.1e}"
        )


def main() -> None:
    torch.manual_seed(0)
    with TemporaryDirectory() as root:
        measure(Path(sys.argv[1]) if len(sys.argv) > 1 else None, Path(root))


if __name__ == "__main__":
    main()

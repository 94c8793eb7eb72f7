"""The training loop: one turn of `while` is one optimizer step, and every rank turns together.

Shapes: B rows in a micro-batch, T tokens of context.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import NotFiniteError
from deepseek_trainer.contract.optimization import Precision
from deepseek_trainer.cursor import Cursor
from deepseek_trainer.dataset import Batch, Rows
from deepseek_trainer.distributed import World
from deepseek_trainer.evaluate import EvalResult, evaluate_loss
from deepseek_trainer.model import causal_loss, trainable_parameters
from deepseek_trainer.process import StopRequested
from deepseek_trainer.reporter import Reporter, StepResult
from deepseek_trainer.saver import Saver
from deepseek_trainer.schedule import learning_rate
from deepseek_trainer.state import RunState, checkpoint_state
from deepseek_trainer.training_config import config_digest

LOGGED_STEPS = 200  # points of the loss curve over a whole run


class SummedLoss(nn.Module):
    """`causal_loss` as a module, so that DDP sees every forward pass."""

    def __init__(self, model: nn.Module, autocast: torch.autocast) -> None:
        super().__init__()
        self.model, self._autocast = model, autocast
        frozen = [name for name, parameter in self.named_parameters() if not parameter.requires_grad]
        # DDP leaves alone what is named here: these are the same on all ranks, and not worth a broadcast.
        self._ddp_params_and_buffers_to_ignore = frozen + [name for name, _ in self.named_buffers()]

    def forward(self, batch: Batch) -> Tensor:
        with self._autocast:
            return causal_loss(self.model, batch)[0]


def steps_in(config: TrainingConfig, rows: int) -> int:
    """Optimizer steps of the whole run over `rows` training rows."""
    optimization = config.optimization
    return optimization.max_steps or math.ceil((optimization.epochs or 3) * rows / optimization.global_batch_size)


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """BF16 compute over FP32 weights where the job, or by default the GPU, wants it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wants_bf16(precision, device))


def wants_bf16(precision: Precision, device: torch.device) -> bool:
    """By default only where the GPU computes in BF16: one that emulates it is slower than in FP32."""
    if precision is Precision.AUTO:
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision is Precision.BF16


@dataclass(slots=True)
class Loop:
    """One run of one job, on one rank."""

    config: TrainingConfig
    world: World
    model: nn.Module
    optimizer: torch.optim.Optimizer
    train_rows: Rows
    validation_rows: Rows
    cursor: Cursor
    state: RunState
    saver: Saver
    reporter: Reporter
    stop_requested: Callable[[], bool]
    job_uid: str
    token_bytes: Tensor | None = None  # bytes of text by token: see `evaluate_loss`
    total_steps: int = field(init=False)
    autocast: torch.autocast = field(init=False)  # the precision of training and evaluation alike
    evaluation: EvalResult | None = field(init=False, default=None)  # of the weights as they are
    _trainable: list[nn.Parameter] = field(init=False)
    _loss: DistributedDataParallel = field(init=False)
    _saved_step: int = field(init=False)
    _saved_best: int | None = field(init=False, default=-1)  # the best step that retention knows; -1: an earlier run's
    _saved_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.total_steps = steps_in(self.config, len(self.train_rows))
        self.autocast = autocast(self.config.optimization.precision, self.world.device)
        self._trainable = trainable_parameters(self.model)
        self._loss = DistributedDataParallel(SummedLoss(self.model, self.autocast))
        self._saved_step, self._saved_at = self.state.step, time.monotonic()

    def run(self) -> None:
        """Train to the end or to early stopping; raises StopRequested on a stop.  The last step is saved."""
        if self.world.size > 2:
            self._settle_order_of_sums()
        self._complete_step()
        while self.state.step < self.total_steps and not self._has_stalled():
            started = time.monotonic()
            batches = self._next_batches()
            targets, tokens, stop, save, has_failed = self.world.sum(
                [
                    sum(batch.num_targets for batch in batches),
                    sum(batch.num_tokens for batch in batches),
                    self.stop_requested(),
                    self.world.is_lead and self._clock_is_due(),
                    self.saver.has_failed,
                ]
            )
            if has_failed:
                self.saver.wait()
            if stop:
                self._leave()
            if save:
                self.save()
            result = self._step(batches, int(targets))
            self.reporter.step(result, int(tokens), time.monotonic() - started)
            self._complete_step()
            self._report_saves()
        self._save_to_the_end()

    def evaluate(self) -> None:
        """Measure; remember the best step, and save it where the job keeps the best."""
        result = self.measure()
        is_best = self.state.evaluated(result.loss)
        self.reporter.evaluation(self.state.step, self.cursor.epoch, result)
        if is_best and self.config.checkpoint.retention.keep_best:
            self.save()

    def measure(self) -> EvalResult:
        """Loss on the held-out rows, over all ranks; raises StopRequested on a stop."""
        with self.autocast:
            self.evaluation = evaluate_loss(
                self.model,
                self.validation_rows,
                max_rows=self.config.evaluation.max_rows,
                batch_size=self.config.optimization.micro_batch_size,
                rank=self.world.rank,
                world_size=self.world.size,
                reduce=self.world.sum,
                before_batch=self.leave_if_stopped,
                token_bytes=self.token_bytes,
            )
        return self.evaluation

    def leave_if_stopped(self) -> None:
        """Collective.  Raises StopRequested where any rank was asked to stop, once the last step is saved."""
        if self.world.any(self.stop_requested()):
            self._leave()

    def save(self) -> None:
        """Begin a checkpoint of the current step, unless there is one; drop those that retention gives up."""
        best, before = self.state.best_step, self._saved_best
        self._saved_best = best
        if self._saved_step == self.state.step:
            if best != before:
                self.saver.prune(best)
            return
        meta = {
            "run": self.state.to_json() | {"history": self.reporter.history},
            "cursor": self.cursor.state().hex(),
            "jobUid": self.job_uid,
            "configDigest": config_digest(self.config),
        }
        state = checkpoint_state(self.model, self.optimizer, self.world)
        self.saver.save(self.state.step, state, meta, best)
        self._saved_step, self._saved_at = self.state.step, time.monotonic()

    def _leave(self) -> NoReturn:
        self._save_to_the_end()
        raise StopRequested

    def _save_to_the_end(self) -> None:
        self.save()
        self.saver.wait()
        self._report_saves()

    def _report_saves(self) -> None:
        for saved in self.saver.finished():
            self.reporter.checkpoint(saved)

    def _settle_order_of_sums(self) -> None:
        """Have DDP order its gradients for good, by a pass that is thrown away.

        It lays them out anew after its first backward pass.  From three ranks on that changes the order of sums,
        and a resumed run, for which a later step is the first, would part from an uninterrupted one.
        """
        gpus = [self.world.device] if self.world.device.type == "cuda" else []
        with torch.random.fork_rng(devices=gpus):
            self._loss(self.train_rows.batch([0])).backward()
        self.optimizer.zero_grad(set_to_none=True)

    def _complete_step(self) -> None:
        """Evaluate and save where the step is due; after a resume, what a stop has cut off."""
        is_evaluated = self.state.evaluated_step == self.state.step
        if not is_evaluated and (self._is_due(self.config.evaluation.interval_steps) or self._is_last()):
            self.evaluate()
        if self._is_due(self.config.checkpoint.interval.steps):
            self.save()

    def _next_batches(self) -> list[Batch]:
        """This rank's rows of the next step, in micro-batches."""
        indices = self.cursor.rank_slice(self.world.rank, self.world.size)
        size = self.config.optimization.micro_batch_size
        return [self.train_rows.batch(indices[i : i + size]) for i in range(0, len(indices), size)]

    def _step(self, batches: Sequence[Batch], targets: int) -> StepResult:
        """One optimizer step.  Raises NotFiniteError on every rank before any weight has changed."""
        rate = learning_rate(self.state.step, self.total_steps, self.config.optimization)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        summed = self._backward(batches, targets)
        # The gradients are those of all ranks, so that every rank comes to the same verdict.
        norms = nn.utils.clip_grad_norm_(self._trainable, self.config.optimization.max_grad_norm)
        loss, norm = torch.stack([summed, norms.double()]).tolist()  # the only wait for the device in a step
        self._refuse_not_finite(norm)
        self.saver.before_change()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.cursor = self.cursor.advanced()
        self.state.step += 1
        self.evaluation = None
        return StepResult(
            step=self.state.step,
            max_steps=self.total_steps,
            epoch=self.cursor.epoch,
            loss=self.world.sum([loss])[0] / targets if self._is_logged() else None,
            grad_norm=norm,
            learning_rate=rate,
        )

    def _backward(self, batches: Sequence[Batch], targets: int) -> Tensor:
        """Accumulate the gradient of the mean over all `targets`; this rank's summed loss, float64 on the device."""
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for i, batch in enumerate(batches):
            self._loss.require_backward_grad_sync = i == len(batches) - 1
            loss = self._loss(batch)
            # DDP takes the mean over ranks and we want the sum: `targets` already counts all ranks.
            (loss * (self.world.size / targets)).backward()
            total += loss.detach()
        return total

    def _refuse_not_finite(self, norm: float) -> None:
        if not math.isfinite(norm):
            raise NotFiniteError(
                f"step {self.state.step + 1}: the gradient norm is {norm}, no weight was changed",
                hint="lower optimization.learningRate or raise warmupSteps; the last checkpoint is good",
            )

    def _is_logged(self) -> bool:
        return self._is_due(max(1, self.total_steps // LOGGED_STEPS)) or self._is_last()

    def _is_due(self, interval: int | None) -> bool:
        return interval is not None and self.state.step % interval == 0

    def _is_last(self) -> bool:
        return self.state.step == self.total_steps

    def _clock_is_due(self) -> bool:
        seconds = self.config.checkpoint.interval.seconds
        return seconds is not None and time.monotonic() - self._saved_at >= seconds

    def _has_stalled(self) -> bool:
        stopping = self.config.optimization.early_stopping
        return stopping is not None and self.state.stale_evaluations >= stopping.patience

"""How a model is spread; what ranks compute with it is tested on real ones."""

from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy

from deepseek_trainer.contract.method import PreferenceSpec
from deepseek_trainer.contract.optimization import OptimizationSpec
from deepseek_trainer.model import parallel
from support.builders.loop import ALONE, a_learner, a_model


@pytest.fixture(scope="module", autouse=True)
def group_of_one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("offload", "policy"), [(False, OffloadPolicy()), (True, CPUOffloadPolicy(pin_memory=False))], ids=["no", "yes"]
)
def test_every_shard_of_policy_and_reference_is_offloaded_where_a_job_wants_it(
    monkeypatch: pytest.MonkeyPatch, offload: bool, policy: OffloadPolicy
):
    """On the CPU nothing is pinned: pinning needs CUDA."""
    found, shard = [], parallel.fully_shard

    def watched(module: Any, **settings: Any) -> Any:
        found.append(settings["offload_policy"])
        return shard(module, **settings)

    monkeypatch.setattr(parallel, "fully_shard", watched)
    a_learner(a_model(), OptimizationSpec(strategy="FSDP", offload=offload), ALONE, PreferenceSpec())
    assert found == [policy] * 4, "a layer and the rest, of both"

"""`dstj plan`: what a job takes, before it takes it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deepseek_trainer.base_model.source import prepare_model
from deepseek_trainer.worker.vaults import data_vault
from dstj.commands import forecast
from support.builders.cli import job_file
from support.builders.model import a_config, a_gguf, a_tokenizer, paths_with_base, tiny_model

LARGE = {"hiddenSize": 4096, "numLayers": 32, "numHeads": 32, "intermediateSize": 14336, "vocabSize": 128256}
MEDIUM = LARGE | {"hiddenSize": 1024, "numHeads": 16, "intermediateSize": 4096}


@pytest.fixture
def planned(run_dstj, capsys):
    """Exit code, {label: text} and the errors of `dstj plan`."""

    def run(*arguments):
        code = run_dstj("plan", *arguments)
        out, err = capsys.readouterr()
        cells = [line.split("  ", 1) for line in out.splitlines() if line]
        return code, {label: text.strip() for label, text in cells}, err

    return run


def on_cpu(place, memory, **changes):
    resources = {"limits": {"memory": memory}}
    return job_file(place, optimization={"maxSteps": 10}, trainer__resourcesPerNode=resources, **changes)


def test_job_that_fits_is_planned_in_numbers(planned, place):
    code, printed, err = planned(on_cpu(place, "4Gi"))
    assert (code, err) == (0, "")
    assert printed["ranks"] == "1 on the CPU, FP32"
    assert printed["parameters"] == "2,552, of which 2,552 are trained"
    assert printed["tokens a step"] == "32,768"
    assert printed["steps"] == "10"
    assert printed["sum"].endswith(" of 4.00")
    assert (printed["strategy"], printed["verdict"]) == ("DDP", "fits")


def test_job_that_does_not_fit_is_refused_with_the_micro_batch_that_does(planned, place):
    file = on_cpu(place, "36Gi", model={"architecture": MEDIUM})
    code, printed, err = planned(file)
    assert code == 64
    assert printed["verdict"] == "does not fit"
    assert f"dstj: error: a rank needs {printed['sum'].split(' ')[0]} GiB, the CPU has 36.00 for it" in err
    hint = err.splitlines()[1].removeprefix("dstj: hint: optimization.microBatchSize: ")
    content = yaml.safe_load(file.read_text())
    content["spec"]["optimization"]["microBatchSize"] = int(hint)
    file.write_text(yaml.safe_dump(content))
    assert planned(file)[0] == 0


def test_model_of_which_not_one_row_fits_is_pointed_to_lora(planned, place):
    code, _, err = planned(on_cpu(place, "64Gi", model={"architecture": LARGE}))
    assert code == 64
    assert "hint: method.type: LoRA, or more memory: one row is too much" in err


def test_ranks_of_a_node_share_its_memory(planned, place):
    file = on_cpu(place, "4Gi", trainer__numProcPerNode=2)
    assert planned(file)[1]["sum"].endswith(" of 2.00")


def test_gpu_gives_memory_precision_and_a_time_whose_assumption_is_named(planned, place):
    file = job_file(place, model={"architecture": MEDIUM}, optimization={"maxSteps": 1000, "microBatchSize": 2})
    code, printed, _ = planned(file, "--gpu", "h200", "--mfu", "0.5")
    assert code == 0
    assert printed["ranks"] == "1 on NVIDIA H200, BF16"
    assert printed["tokens a second"].endswith("if 50% of the peak is reached (--mfu)")
    speed = int(printed["tokens a second"].split(",  ")[0].split(" ")[0].rstrip(",").replace(",", ""))
    flops = int(printed["FLOPs a token"].split(" ")[0].replace(",", ""))
    assert speed * flops == pytest.approx(0.5 * 989e12, rel=1e-3)
    assert printed["sum"].endswith(" of 131.32")


def test_gpu_that_nobody_named_has_no_limit_and_no_time(planned, place):
    file = job_file(place, optimization={"maxSteps": 1}, trainer__resourcesPerNode={"limits": {"nvidia.com/gpu": 1}})
    code, printed, _ = planned(file)
    assert code == 0
    assert printed["ranks"] == "1 on a GPU (--gpu NAME names it), BF16"
    assert printed["sum"].endswith(" of unknown")
    assert printed["verdict"].startswith("unknown")
    assert printed["time"].startswith("unknown: give --flops-per-second")


def test_on_the_cpu_a_time_follows_from_what_a_rank_reaches(planned, place):
    file = on_cpu(place, "40Gi", model={"architecture": MEDIUM}, trainer__numProcPerNode=2)
    printed = planned(file, "--flops-per-second", "4e10")[1]
    speed = int(printed["tokens a second"].removesuffix(", if a rank reaches 4e+10 FLOP/s").replace(",", ""))
    flops = int(printed["FLOPs a token"].split(" ")[0].replace(",", ""))
    assert speed == round(2 * 4e10 / flops)
    assert re.fullmatch(r"(\d+ days?, )?\d+:\d\d:\d\d, evaluation and saves left out", printed["time"])
    assert planned(file, "--flops-per-second", "0")[0] == 2


@pytest.mark.parametrize(("memory", "verdict", "code"), [("8Gi", "fits", 0), ("6Gi", "does not fit", 64)])
def test_copy_for_saves_of_a_gpu_is_held_against_the_memory_of_the_pod(planned, place, memory, verdict, code):
    resources = {"limits": {"nvidia.com/gpu": 1, "memory": memory}}
    parts = {"model": {"architecture": MEDIUM}, "trainer__resourcesPerNode": resources}
    file = job_file(place, optimization={"maxSteps": 1, "microBatchSize": 1}, **parts)
    found, printed, err = planned(file, "--gpu", "H200")
    assert (found, printed["verdict"]) == (code, verdict)
    of_host = printed["sum on the host, with Python and torch"].split(" of ")
    assert float(of_host[0]) == pytest.approx(float(printed["copy for saves, on the host"]) + 520 / 1024, abs=0.02)
    assert of_host[1] == f"{memory.removesuffix('Gi')}.00"
    if code:
        assert f"a rank needs {of_host[0]} GiB, the host has 6.00 for it" in err
        assert "hint: checkpoint.asynchronous: false, or more memory in trainer.resourcesPerNode" in err


def test_offload_moves_weights_gradients_and_moments_from_the_gpu_to_the_host(planned, place):
    def gpu_plan(*, offload):
        optimization = {"maxSteps": 1, "microBatchSize": 1, "strategy": "FSDP", "offload": offload}
        file = job_file(place, model={"architecture": MEDIUM}, trainer__numNodes=4, optimization=optimization)
        return planned(file, "--gpu", "H200")[1]

    def sum_of(plan, name):
        return float(plan[name].split(" ")[0])

    plain, offloaded = gpu_plan(offload=False), gpu_plan(offload=True)
    assert (plain["strategy"], offloaded["strategy"]) == ("FSDP", "FSDP, offloaded to the host")
    moved = sum(float(plain[name]) for name in ("weights", "gradients", "moments"))
    assert sum_of(plain, "sum") - sum_of(offloaded, "sum") == pytest.approx(moved, abs=0.03)
    host = "sum on the host, with Python and torch"
    assert sum_of(offloaded, host) - sum_of(plain, host) == pytest.approx(moved, abs=0.03)


@pytest.mark.parametrize(("nodes", "strategy"), [(1, "DDP"), (2, "FSDP")])
def test_auto_that_comes_to_full_shards_over_several_ranks(planned, place, nodes, strategy):
    file = job_file(place, method={"type": "Auto"}, optimization={"maxSteps": 1}, trainer__numNodes=nodes)
    printed = planned(file)[1]
    assert (printed["method"], printed["strategy"]) == ("Full", strategy)


@pytest.mark.parametrize("share", ["0", "1.1", "fast"])
def test_share_of_the_peak_is_a_share(planned, place, share):
    assert planned(job_file(place), "--mfu", share)[0] == 2


def test_steps_are_counted_from_data_that_are_at_hand(planned, place):
    file = job_file(place, data__sequenceLength=16, optimization={"epochs": 2, "globalBatchSize": 4})
    (place / "corpus/a.txt").write_text("one fine day " * 200)
    (place / "corpus/b.txt").write_text("another fine day " * 200)
    code, printed, _ = planned(file)
    assert code == 0
    rows = int(printed["steps"].split("for ")[1].split(" ")[0])
    assert printed["steps"] == f"{-(-2 * rows // 4)}, for {rows} rows of 16 tokens"


def test_rows_of_a_large_corpus_are_counted_in_a_sample(planned, place, monkeypatch):
    file = job_file(place, data__sequenceLength=16, optimization={"epochs": 1, "globalBatchSize": 1})
    lines = (f'{{"text": "day {day:03}, and then another one"}}\n' for day in range(400))
    (place / "corpus/a.jsonl").write_text("".join(lines))
    exact = planned(file)[1]["steps"]
    monkeypatch.setattr(forecast, "SAMPLE_BYTES", 4000)
    about = planned(file)[1]["steps"]
    counts = [int(text.removeprefix("about ").split(",")[0]) for text in (exact, about)]
    assert about.startswith("about ")
    assert counts[1] == pytest.approx(counts[0], rel=0.1)


def test_steps_are_unknown_without_data(planned, place):
    file = job_file(place)
    (place / "corpus").rmdir()
    assert planned(file)[1]["steps"].startswith("unknown: give maxSteps")


def test_a_time_budget_is_given_in_steps_where_the_speed_is_known(planned, place):
    file = job_file(place, model={"architecture": MEDIUM}, optimization={"maxMinutes": 30, "microBatchSize": 1})
    _, printed, _ = planned(file, "--gpu", "H200")
    speed = int(printed["tokens a second"].split(", if")[0].replace(",", ""))
    steps = int(printed["steps"].removeprefix("about ").removesuffix(", in 30 minutes").replace(",", ""))
    assert steps == pytest.approx(30 * 60 * speed / 32768, abs=1)
    assert printed["time"].startswith("0:30:00,")
    assert planned(file)[1]["steps"] == "as many as there is time for, in 30 minutes"


def test_of_steps_and_a_time_budget_the_time_is_that_of_the_first_to_end(planned, place):
    steps = {"maxSteps": 10, "maxMinutes": 60.5, "microBatchSize": 1}
    _, printed, _ = planned(job_file(place, model={"architecture": MEDIUM}, optimization=steps), "--gpu", "H200")
    assert re.fullmatch(r"10 or about [\d,]+, in 60.5 minutes", printed["steps"])
    assert printed["time"].startswith("0:00:")


def test_epochs_without_data_are_unknown_beside_a_time_budget(planned, place):
    file = job_file(place, optimization={"epochs": 2, "maxMinutes": 5})
    (place / "corpus").rmdir()
    assert planned(file)[1]["steps"].endswith("[trainer] or as many as there is time for, in 5 minutes")


EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "pretrain-120m.yaml"


@pytest.mark.parametrize(
    ("where", "ranks", "memory"),
    [
        (["--gpu", "H100 80GB"], "1 on NVIDIA H100 80GB HBM3, BF16", "5.34 of 74.51"),
        (["--gpu", "RTX 3090"], "1 on NVIDIA GeForce RTX 3090, BF16", "5.34 of 22.35"),
        ([], "1 on the CPU, FP32", "7.97 of unknown"),
        (
            ["--profile", str(EXAMPLE.with_name("profile-gpu.yaml"))],
            "1 on a GPU (--gpu NAME names it), BF16",
            "5.34 of unknown",
        ),
    ],
    ids=["H100", "3090", "CPU", "profile"],
)
def test_the_preset_of_120_million_parameters_has_them_and_fits_where_it_is_meant_to_run(planned, where, ranks, memory):
    code, printed, err = planned(str(EXAMPLE), *where)
    assert (code, err) == (0, "")
    assert printed["parameters"] == "119,672,064, of which 119,672,064 are trained"
    assert printed["tokens a step"] == "32,768"
    assert printed["ranks"] == ranks
    assert printed["sum"] == memory
    assert printed["steps"].endswith(", in 120 minutes")


def a_base(place):
    """A base model beside the job file, as the claim `models`."""
    a_gguf(place / "models/base.gguf", tiny_model(), a_tokenizer())
    return {"base": {"claimName": "models", "path": "base.gguf"}}


def test_base_model_is_measured_from_its_file(planned, place):
    file = job_file(place, model=a_base(place), method={"type": "LoRA"}, data__sequenceLength=64,
                    optimization={"maxSteps": 1})  # fmt: skip
    total = tiny_model().num_parameters()
    adapters = 2 * 16 * ((32 + 32) + (32 + 16))
    assert planned(file)[1]["parameters"] == f"{total + adapters:,}, of which {adapters:,} are trained"


@pytest.mark.parametrize(
    ("family", "active"), [("DeepSeekV3", 6 * 3 * 32 * 16), ("ALBERT", -3 * (4 * 32 * 32 + 3 * 32 * 48 + 64))]
)
def test_of_experts_and_of_layers_that_share_weights_what_a_token_is_computed_with_is_told(
    planned, place, family, active
):
    shape = {"hiddenSize": 32, "numLayers": 4 if family == "ALBERT" else 2, "numHeads": 4, "intermediateSize": 48}
    file = on_cpu(place, "4Gi", model={"architecture": {"family": family, "vocabSize": 260, **shape}})
    total, _, computed = planned(file)[1]["parameters"].partition(", of which ")
    assert computed.endswith(f"each token is computed with {int(total.replace(',', '')) - active:,}")


@pytest.mark.parametrize(("method", "copies"), [("Full", 2), ("LoRA", 1)])
def test_pairs_cost_a_forward_pass_of_their_reference_and_of_all_weights_a_copy(planned, place, method, copies):
    parts = {"model": a_base(place), "method": {"type": method}, "optimization": {"maxSteps": 1}}
    printed = {}
    for format_ in ("Instruction", "Preference"):
        file = job_file(place, data__sequenceLength=64, data__format=format_, **parts)
        printed[format_] = planned(file)[1]
    flops, with_reference = (int(each["FLOPs a token"].split(" ")[0].replace(",", "")) for each in printed.values())
    full = 6 * tiny_model().num_parameters() + 12 * 2 * 32 * 64
    assert with_reference - flops == full // 3
    weights, with_copy = (float(each["weights"]) for each in printed.values())
    assert with_copy == pytest.approx(copies * weights, abs=0.01)


def test_pairs_by_odds_cost_no_reference(planned, place):
    parts = {"model": a_base(place), "optimization": {"maxSteps": 1}, "data__sequenceLength": 64}
    plain = planned(job_file(place, data__format="Instruction", **parts))[1]
    by_odds = planned(job_file(place, data__format="Preference", method={"preference": {"loss": "ORPO"}}, **parts))[1]
    assert [by_odds[name] for name in ("FLOPs a token", "weights")] == [
        plain[name] for name in ("FLOPs a token", "weights")
    ]


def test_base_model_that_is_not_at_hand_is_named_with_the_way_out(planned, place):
    file = job_file(place, model={"base": {"claimName": "models", "path": "base.gguf"}})
    code, _, err = planned(file)
    assert code == 64
    assert "the claim models has no base.gguf: its size is not known" in err
    assert "hint: --volume models=DIR names the directory that holds it" in err


def test_plan_refuses_a_base_as_preparation_will(planned, place, tmp_path_factory):
    file = job_file(place, model=a_base(place), data__sequenceLength=256)
    code, _, err = planned(file)
    paths, base = paths_with_base(tmp_path_factory.mktemp("pod"))
    a_gguf(base, tiny_model(), a_tokenizer())
    config = a_config(data={"train": {"claimName": "data"}, "sequenceLength": 256})
    with pytest.raises(Exception, match="256 is longer") as caught:
        prepare_model(config, paths, data_vault(config, paths))
    assert code == 64
    assert f"dstj: error: {caught.value.problem}\n" in err


def test_plan_without_data_imports_neither_torch_nor_transformers(place):
    file = job_file(place, optimization={"maxSteps": 1})
    program = f"""
import sys
from dstj.cli import main
assert main(["plan", {str(file)!r}]) == 0
assert not {{"torch", "transformers", "numpy", "tokenizers"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_base_model_needs_the_trainers_packages(planned, place, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepseek_trainer.base_model.source", None)
    code, _, err = planned(job_file(place, model={"base": {"claimName": "models"}}))
    assert code == 64
    assert "[trainer]" in err


def test_steps_are_unknown_without_the_trainers_packages(planned, place, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepseek_trainer.tasks.language.preparation", None)
    assert planned(job_file(place))[1]["steps"].startswith("unknown")

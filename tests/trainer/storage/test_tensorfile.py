import pytest
import safetensors.torch
import torch

from deepseek_trainer.checkpoints.statefile import entries
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.storage.tensorfile import stream, views

TENSORS = {
    "a.weight": torch.arange(6.0).view(2, 3),
    "b.bias": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "c": torch.tensor(3.0, dtype=torch.float16),
    "d": torch.zeros(0, 4),
    "turned": torch.arange(6.0).view(2, 3).T,
}


def written():
    return b"".join(stream(entries(TENSORS)))


def test_written_file_is_what_safetensors_reads():
    loaded = safetensors.torch.load(written())
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype is tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_views_are_what_safetensors_wrote():
    found = views(bytearray(safetensors.torch.save({"a": TENSORS["a.weight"]})), "m.safetensors")
    assert (found["a"].dtype, found["a"].shape) == ("F32", (2, 3))
    assert torch.equal(torch.frombuffer(found["a"].data, dtype=torch.float32).view(2, 3), TENSORS["a.weight"])


def test_file_that_is_cut_anywhere_is_refused():
    whole = written()
    for size in range(len(whole)):
        with pytest.raises(ConfigError, match=r"m\.safetensors is not a safetensors file, or is cut short"):
            views(bytearray(whole[:size]), "m.safetensors")


@pytest.mark.parametrize(
    "facts",
    [
        '"dtype": "F32", "shape": [9], "data_offsets": [0, 24]',
        '"dtype": "Q9", "shape": [1], "data_offsets": [0, 4]',
        '"shape": [1]',
    ],
)
def test_file_whose_header_lies_is_refused(facts):
    header = ('{"a": {' + facts + "}}").encode()
    with pytest.raises(ConfigError, match="not a safetensors file"):
        views(bytearray(len(header).to_bytes(8, "little") + header + bytes(24)), "m.safetensors")

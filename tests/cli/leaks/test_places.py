"""What of a sealed job may be in the clear, by where it lies."""

import pytest

from dstj.leaks.places import BESIDE, HOME, allowed, volume


@pytest.mark.parametrize("name", ["keyring.json", "keyring.json.partial-0a1b", "logs/events.jsonl"])
def test_of_a_volume_keyring_and_numbers_may_be_in_the_clear(name):
    assert allowed(name, volume())


@pytest.mark.parametrize(
    "name",
    [
        "x/keyring.json",
        "keyring.json/x",
        "keyring.json.bak",
        "logs/events.jsonl.gz",
        "logs/other.jsonl",
        "logs/tensorboard/x/events.out.tfevents.1",
        "prepared/0a1b/manifest.json",
        "export/tiny/config.json",
        "checkpoints/HEAD.json",
        "status.yaml",
    ],
)
def test_of_a_volume_nothing_else_may_be_in_the_clear(name):
    assert allowed(name, volume()) is None


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("prepared/0a1b/manifest.json", volume(data_sealed=False)),
        ("export/tiny/adapter/config.json", volume(export_sealed=False)),
        ("status.yaml", HOME),
        ("logs/tiny-a1-0/trainer.log", HOME),
        ("tmp/tiny-a1-0/ranks/0", HOME),
        ("tmp/tiny-a1-0/torchinductor_root/ab/code.py", HOME),
        ("anything/at/all", BESIDE),
    ],
)
def test_what_a_job_says_and_what_lies_beside_its_volume_may_be_in_the_clear(name, rules):
    assert allowed(name, rules)


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("export/tiny/config.json", volume(data_sealed=False)),
        ("prepared/0a1b/manifest.json", volume(export_sealed=False)),
        ("logs/tiny-a1-0/core", HOME),
        ("tmp/tiny-a1-0/tokens.bin", HOME),
        ("export/model.safetensors", HOME),
    ],
)
def test_what_nobody_says_may_not_be_in_the_clear(name, rules):
    assert allowed(name, rules) is None

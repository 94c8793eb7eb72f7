"""A whole run on pictures: what it tells, and that plain transformers loads what it exports."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoModelForImageClassification

from deepseek_trainer.contract.names import Paths
from support.builders.images import ALL_AUGMENTATION, RESNET, VIT, a_picture, an_image_job, write_pictures
from support.builders.run import a_worker, events, trained
from support.builders.vault import a_key_file

SEALED = {"encryption": {"keyRef": {"secretName": "keys"}}, "interval": {"steps": 20}}


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Paths]:
    with a_worker(tmp_path, monkeypatch) as paths:
        for file in paths.claim("corpus").rglob("*.jsonl"):
            file.unlink()
        write_pictures(paths, each=20)
        yield paths


@pytest.mark.parametrize("vision", [RESNET, VIT], ids=["resnet", "vit"])
@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "colour"])
def test_plain_transformers_loads_the_result_and_gives_the_same_answers(paths: Paths, vision: Any, channels: int):
    size = {"height": 16, "width": 24, "channels": channels}
    result = trained(an_image_job(vision=vision, size=size, maxSteps=2), paths)
    model, loading = AutoModelForImageClassification.from_pretrained(result, output_loading_info=True)
    assert {kind: list(names) for kind, names in loading.items() if names} == {}
    assert model.config.id2label == {0: "dark", 1: "light"}
    picture = Image.fromarray(a_picture(1, shape=(20, 24) if channels == 1 else (20, 24, 3)))
    values = AutoImageProcessor.from_pretrained(result)(picture, return_tensors="pt")["pixel_values"]
    resized = np.asarray(picture.resize((24, 16), Image.Resampling.BILINEAR)).reshape(16, 24, channels)
    ours = (torch.from_numpy(resized.copy()).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
    torch.testing.assert_close(values, ours)
    with safe_open(result / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert len(names) == len([*model.parameters()])
    with torch.no_grad():
        assert model.eval()(pixel_values=values).logits.shape == (1, 2)


def test_the_result_recognises_what_the_run_says_that_it_does(paths: Paths):
    result = trained(an_image_job(augmentation=ALL_AUGMENTATION, maxSteps=40, learningRate=0.01), paths)
    scores = json.loads((result / "evaluation.json").read_text())["after"]
    found = scores["classification"]
    assert scores["accuracy"] == found["accuracy"] == 1.0
    assert (found["macroF1"], found["rocAuc"]) == (1.0, 1.0)
    assert sum(map(sum, found["confusion"])) == found["total"]
    model = AutoModelForImageClassification.from_pretrained(result).eval()
    processor = AutoImageProcessor.from_pretrained(result)
    for light in (False, True):
        inputs = processor(Image.fromarray(a_picture(99, light=light)), return_tensors="pt")
        with torch.no_grad():
            chosen = int(model(**inputs).logits.argmax())
        assert model.config.id2label[chosen] == ("light" if light else "dark")


def test_few_of_many_held_out_pictures_are_of_every_class(paths: Paths):
    """Folders make rows lie sorted by class: the first of them are of one."""
    result = trained(an_image_job(maxSteps=1, max_rows=4), paths)
    scores = json.loads((result / "evaluation.json").read_text())["after"]["classification"]
    assert [label["support"] for label in scores["perClass"]] == [2, 2]


def test_card_and_report_show_the_confusion_and_how_the_model_is_used(paths: Paths):
    result = trained(an_image_job(maxSteps=2), paths)
    card, report = (result / "README.md").read_text(), (result / "report.html").read_text()
    for page in (card, report):
        assert "right / chosen" in page
        assert "classification.rocAuc" in page
    assert "pipeline_tag: image-classification" in card
    assert "`AutoModelForImageClassification.from_pretrained(directory)`" in card
    assert "| images.height | 16 |" in card
    assert "Loss [nats/image]" in report
    assert "images/s" in report
    (told,) = [event for event in events(paths) if event["event"] == "classification" and event["step"] == 2]
    assert {"accuracy", "macroF1", "rocAuc"} <= told.keys()


def test_a_sealed_run_leaves_no_byte_of_a_picture_and_no_class_in_the_clear(paths: Paths):
    a_key_file(paths.key_dir / "kek")
    trained(an_image_job(maxSteps=2, checkpoint=SEALED), paths)
    below = {file: file.read_bytes() for file in paths.work.rglob("*") if file.is_file()}
    pictures = [
        np.asarray(Image.fromarray(a_picture(i)).resize((16, 16), Image.Resampling.BILINEAR)) for i in range(20)
    ]
    for pattern in [picture.tobytes()[64:80] for picture in pictures] + [b'"dark"', b'"light"']:
        assert [file for file, content in below.items() if pattern in content] == []

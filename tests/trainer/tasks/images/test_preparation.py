"""From files to rows of pixels: what is read, what is refused and named, and what a sealed job leaves in the clear."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from deepseek_trainer import tasks
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.data import dataset
from deepseek_trainer.tasks.images import preparation
from deepseek_trainer.worker.vaults import data_vault
from support.builders.data import CLAIM, RUN, RUN_ID, prepare, some_paths
from support.builders.images import CLASSES, SIZE, a_picture, an_image_job, encoded, write_file, write_pictures
from support.builders.vault import a_key_file

SEALED = {"encryption": {"keyRef": {"secretName": "keys"}}}
APART = {"validation": {"claimName": CLAIM, "path": "validation"}, "validationFraction": None}


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = some_paths(tmp_path)
    a_key_file(paths.key_dir / "kek")
    return paths


def prepared(paths: Paths, config: TrainingConfig, run_id: str = RUN_ID) -> Path:
    return prepare(config, paths, data_vault(config, paths), run_id)


def opened(paths: Paths, config: TrainingConfig) -> dataset.Prepared[Any]:
    vault = data_vault(config, paths)
    directory = dataset.prepared_directory(paths, vault, RUN)
    return dataset.open_prepared(config, directory, vault, tasks.of(config, paths, vault, directory))


def refusal(paths: Paths, **data: Any) -> DataError:
    with pytest.raises(DataError) as error:
        prepared(paths, an_image_job(data=data))
    assert list(paths.prepared.glob("*")) == [], "nothing is left behind"
    return error.value


def rows_of(split: dataset.Rows[Any]) -> Any:
    return split.read(range(len(split)))


def test_folders_are_classes_and_every_picture_becomes_a_row_of_its_size(paths: Paths):
    write_pictures(paths)
    write_pictures(paths, "validation", each=2)
    config = an_image_job(data=APART)
    directory = prepared(paths, config)
    found = opened(paths, config)
    train = rows_of(found.train)
    assert train["pixels"].shape == (12, 16, 16, 1)
    assert train["label"].tolist() == [0] * 6 + [1] * 6
    resized = Image.fromarray(a_picture(0)).resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(train["pixels"][0, :, :, 0], np.asarray(resized))
    assert len(found.validation) == 4
    assert tuple(json.loads((directory / preparation.CLASSES).read_text())) == CLASSES


def test_a_share_of_the_pictures_is_held_out_by_content(paths: Paths):
    write_pictures(paths, each=20)
    for name in CLASSES:
        write_file(paths, f"train/{name}/again.png", encoded(a_picture(0, light=name == "light")))
    config = an_image_job()
    prepared(paths, config)
    found = opened(paths, config)
    train, held_out = ({row.tobytes() for row in rows_of(split)["pixels"]} for split in (found.train, found.validation))
    assert (len(found.train) + len(found.validation), len(train & held_out)) == (42, 0)


def test_pictures_in_colour_in_palettes_and_turned_by_the_camera_are_read_as_they_look(paths: Paths):
    colour = np.zeros((8, 12, 3), np.uint8)
    colour[:, :6] = (200, 40, 90)
    turned = Image.fromarray(colour).transpose(Image.Transpose.ROTATE_270)
    exif = Image.Exif()
    exif[0x0112] = 8  # shown after a quarter turn back
    file = io.BytesIO()
    turned.save(file, "PNG", exif=exif)
    for name, content in {
        "a/plain.png": encoded(colour),
        "a/turned.PNG": file.getvalue(),
        "b/palette.png": saved(Image.fromarray(colour).convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
        "b/photo.jpeg": saved(Image.fromarray(colour), "JPEG", quality=100, subsampling=0),
    }.items():
        write_file(paths, f"train/{name}", content)
    config = an_image_job(size={"height": 8, "width": 12}, data=APART)
    write_file(paths, "validation/a/x.png", encoded(colour))
    prepared(paths, config)
    rows = rows_of(opened(paths, config).train)
    for row in rows:
        assert np.abs(row["pixels"].astype(int) - colour).max() <= 8
    assert np.array_equal(rows["pixels"][0], rows["pixels"][1])


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("column", ["bytes", "struct"])
def test_tables_hold_the_bytes_of_files_and_a_class(paths: Paths, column: str):
    pictures = [encoded(a_picture(i, light=bool(i % 2))) for i in range(8)]
    cells: list[Any] = pictures if column == "bytes" else [{"bytes": each, "path": None} for each in pictures]
    table = pa.table({"photo": cells, "kind": [i % 2 + 3 for i in range(8)], "note": ["x"] * 8})
    file = paths.claim(CLAIM, "train/a.parquet")
    file.parent.mkdir()
    parquet.write_table(table, file)
    config = an_image_job(size=SIZE | {"imageField": "photo", "labelField": "kind"})
    directory = prepared(paths, config)
    found = opened(paths, config)
    assert len(found.train) + len(found.validation) == 8
    assert json.loads((directory / preparation.CLASSES).read_text()) == ["3", "4"]


def a_bomb() -> bytes:
    """A PNG of a few bytes that claims to have 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def flipped(content: bytes) -> bytes:
    """With one bit of its middle turned."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def of_64_megapixels() -> bytes:
    return encoded(np.zeros((8000, 8001), np.uint8))


BAD = {
    "light/cut.png": (encoded(a_picture(1))[:-60], "light/cut.png is damaged: "),
    "light/cut.jpg": (encoded(a_picture(1, shape=(64, 64)), "JPEG")[:700], "light/cut.jpg is damaged: "),
    "light/flipped.png": (flipped(encoded(a_picture(1))), "light/flipped.png is damaged: "),
    "light/text.png": (b"no picture", "light/text.png is no PNG or JPEG"),
    "light/gif.png": (encoded(a_picture(1), "GIF"), "light/gif.png is no PNG or JPEG"),
    "light/a.webp": (b"RIFF", "light/a.webp is a .webp file: PNG and JPEG are read"),
    "light/empty.png": (b"", "light/empty.png: the picture is empty"),
    "light/bomb.png": (a_bomb(), "light/bomb.png has more than 64,000,000 pixels"),
    "light/large.png": (of_64_megapixels(), "light/large.png has 8001 x 8000 pixels: at most 64,000,000 are read"),
    "light/deep.png": (saved(Image.new("I;16", (8, 8)), "PNG"), "light/deep.png has pixels of kind I;16: 8 bits"),
    "astray.png": (encoded(a_picture(1)), "astray.png lies in no folder: its class is the first folder below"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_is_named_with_the_rule_and_the_way_out_or_left_out_and_counted(paths: Paths, name: str):
    content, beginning = BAD[name]
    write_pictures(paths)
    write_pictures(paths, "validation")
    write_file(paths, f"train/{name}", content)
    error = refusal(paths, **APART)
    assert error.problem.startswith(beginning)
    assert error.hint
    config = an_image_job(data=APART | {"onBadRecord": "Skip"})
    prepared(paths, config)
    counts = opened(paths, config).counts["train"]
    assert (counts.records, counts.rows, counts.skipped) == (12, 12, 1)


def test_where_every_picture_is_bad_the_job_fails_all_the_same(paths: Paths):
    for name in CLASSES:
        write_file(paths, f"train/{name}/a.png", encoded(a_picture(1, light=name == "light"))[:-60])
    write_pictures(paths, "validation")
    error = refusal(paths, **APART, onBadRecord="Skip")
    assert error.problem.startswith("no picture is left: all were bad and skipped, the first: dark/a.png is damaged")


def test_a_file_that_is_too_large_is_not_read_whole(paths: Paths, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("deepseek_trainer.tasks.images.records.MAX_BYTES", 1000)
    write_pictures(paths)
    write_file(paths, "train/dark/a.png", bytes(1001))
    assert "dark/a.png: the picture has more than" in refusal(paths).problem


def test_one_class_is_none_and_a_held_out_class_must_be_trained(paths: Paths):
    write_file(paths, "train/dark/a.png", encoded(a_picture(1)))
    write_file(paths, "train/dark/b.png", encoded(a_picture(2)))
    assert refusal(paths).problem == "data.train has 1 classes: 2 to 1000 can be told apart"
    write_file(paths, "train/light/a.png", encoded(a_picture(2)))
    write_file(paths, "validation/grey/a.png", encoded(a_picture(3)))
    error = refusal(paths, **APART)
    assert error.problem == "1 held-out pictures are of a class that training never sees; the first is grey/a.png"


def test_a_table_without_the_columns_names_those_that_it_has(paths: Paths):
    file = paths.claim(CLAIM, "train/a.parquet")
    file.parent.mkdir()
    parquet.write_table(pa.table({"images": [b"x"], "label": ["a"]}), file)
    error = refusal(paths)
    assert error.problem == "a.parquet: no field 'image', did you mean 'images'; it has: images, label"
    assert error.hint == "set data.images.imageField to the field's name"
    parquet.write_table(pa.table({"image": ["text"], "label": ["a"]}), file)
    assert refusal(paths).problem == (
        "a.parquet:1: field 'image' must have the bytes of a PNG or JPEG file, this is a string"
    )


def test_where_there_is_no_picture_the_message_says_what_is_read(paths: Paths):
    write_file(paths, "train/dark/a.txt", b"x")
    error = refusal(paths)
    assert error.problem.startswith("no .png, .jpg, .jpeg or .parquet file for data.format Images at ")
    assert "in a folder for each class" in error.hint


def test_classes_of_different_sizes_are_drawn_alike_where_the_job_balances_them(paths: Paths):
    write_pictures(paths, each=20)
    for i in range(100, 140):
        write_file(paths, f"train/light/{i}.png", encoded(a_picture(i, light=True)))
    config = an_image_job(data={"balanceBy": "label"})
    prepared(paths, config)
    found = opened(paths, config)
    assert {source.name for source in found.sources} == set(CLASSES)
    labels = found.train.read(found.order.at(0, np.arange(600)))["label"]
    assert 280 < labels.sum() < 320


def test_augmentation_makes_no_other_rows_and_a_size_does(paths: Paths):
    write_pictures(paths)
    plain, varied, larger = (
        prepared(paths, config, f"uid-{i}")
        for i, config in enumerate(
            (
                an_image_job(),
                an_image_job(augmentation={"rotationDegrees": 5}),
                an_image_job(size=SIZE | {"width": 32}),
            )
        )
    )
    assert plain == varied
    assert plain != larger


def test_a_sealed_job_leaves_no_byte_of_a_picture_and_no_class_in_the_clear(paths: Paths):
    write_pictures(paths)
    config = an_image_job(checkpoint=SEALED)
    prepared(paths, config)
    rows = rows_of(opened(paths, config).train)
    below = [file.read_bytes() for file in paths.work.rglob("*") if file.is_file()]
    assert sum(map(len, below)) > rows.nbytes
    for row in rows:
        pattern = row["pixels"].tobytes()[64:80]  # noise: 16 bytes of it are nowhere else by chance
        assert not any(pattern in content for content in below)
    assert not any(name.encode() in content for content in below for name in CLASSES)

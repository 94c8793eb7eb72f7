"""What a reader that knows docs/checkpoint-format.md, and nothing of our code, opens and refuses."""

import json
import shutil
import struct
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
import torch

from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.storage.keyring import KEYRING, Keyring
from deepseek_trainer.storage.rotation import grant, rotate, shred
from deepseek_trainer.storage.vault import Purpose
from support.builders.data import RUN, a_config, open_prepared, prepare, questions, some_paths, write_jsonl
from support.builders.result import a_result
from support.builders.vault import JOB, KEK, OTHER_KEK, Ranks, a_key_file, a_state, a_store, a_vault
from support.judges.reader import Told, built, refusal, run, told

GOLDEN = Path(__file__).parents[1] / "golden"
STORES = ("sealed_v1/work", "sealed_v2/work", "sealed_v3/work", "clear_v2/work", "clear_v3/work")
TWO_RANKS = ("sealed_v2/two_ranks", "sealed_v3/two_ranks")
RESULT = "sealed_v3/job"
SEALED = tuple(name for name in (*STORES, *TWO_RANKS, RESULT) if name.startswith("sealed"))
# No manifest lists these, and a job may have none of them: that they were deleted does not show.
MAY_BE_MISSING = {"train.order.sealed", "tokenizer.json.sealed", "tokenizer_config.json.sealed"}
BORDERS = (0, 1, 100, 1_048_519, 1_048_520, 1_048_521, 2_097_080, 2_097_081)  # of segments


@pytest.fixture(scope="module", autouse=True)
def _program() -> None:
    built()


@pytest.fixture
def kek(tmp_path: Path) -> Path:
    return a_key_file(tmp_path / "keys/kek")


@pytest.fixture
def other_kek(tmp_path: Path) -> Path:
    return a_key_file(tmp_path / "keys/other", OTHER_KEK.material)


def keys_of(name: str, kek: Path) -> list[Path]:
    return [kek] if name.startswith("sealed") else []


def copied(name: str, tmp_path: Path) -> Path:
    return shutil.copytree(GOLDEN / name, tmp_path / "work")


def files_of(work: Path) -> list[Path]:
    return sorted(path for path in work.rglob("*") if path.is_file())


def is_unauthenticated(path: Path) -> bool:
    """In the clear, nothing has the digest of HEAD."""
    return path.name == "HEAD.json"


@pytest.mark.parametrize("name", STORES)
def test_every_golden_store_opens_with_what_its_page_says(name: str, kek: Path) -> None:
    found = told(GOLDEN / name, keys_of(name, kek))
    assert {step for step in (6, 7, 8) if f"checkpoints/step-{step:08d}/manifest.json" in found} == {6, 7}
    for step in (6, 7):
        place = f"checkpoints/step-{step:08d}"
        assert found[f"{place}#model/layers.0.weight"] == Told.of(struct.pack("<4f", *[step] * 4))
        assert found[f"{place}/rank-00000#rng/cpu"] == Told.of(bytes(range(3)))
        assert found[f"{place}/rank-00000.json"] == Told.of(b'{"scheduler": {"step": %d}}' % step)


@pytest.mark.parametrize("name", TWO_RANKS)
def test_the_blocks_of_two_ranks_are_put_together(name: str, kek: Path) -> None:
    found = told(GOLDEN / name, [kek])
    assert found["checkpoints/step-00000003#model/sharded"] == Told.of(struct.pack("<9f", *range(9)))
    assert found["checkpoints/step-00000003#model/whole"] == Told.of(struct.pack("<2f", 1, 2))


def test_the_golden_job_opens_with_what_its_page_says(kek: Path) -> None:
    found = told(GOLDEN / RESULT, [kek], "-job", "ml/demo")
    assert found["export/demo/adapter/adapter_config.json"] == Told.of(b'{"r": 4}')
    weights = [name for name in found if name.endswith(".safetensors")]
    assert len(weights) == 3
    assert len({found[name] for name in weights}) == 1, "base model, result and adapter hold one tensor alike"
    assert any(name.startswith("prepared/runs/uid-1/") for name in found)


def test_a_second_recipient_opens_the_same(kek: Path, other_kek: Path) -> None:
    work = GOLDEN / "sealed_v3/work"
    assert told(work, [kek]) == told(work, [other_kek]) == told(work, [other_kek, kek], "-job", JOB)


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "clear"])
def test_a_fresh_store_and_its_result_open(tmp_path: Path, kek: Path, sealed: bool) -> None:
    work = tmp_path / "work"
    store = a_store(work, sealed=sealed)
    for step in (8, 9):
        store.save(step, a_state(step, floats=600_000), {"note": "a tensor of three segments"})
    store.mark_exported()
    contents = {f"of-{size}": bytes(i * 7 % 251 for i in range(size)) for size in BORDERS}
    a_result(work, sealed=sealed, files=contents, commit=store.newest_digest())
    found = told(work, [kek] if sealed else [], "-job", JOB)
    assert found["checkpoints/step-00000009#model/layers.0.weight"] == Told.of(struct.pack("<f", 9) * 600_000)
    assert {name: found[f"export/demo/{name}"] for name in contents} == {
        name: Told.of(content) for name, content in contents.items()
    }


def test_each_rank_has_a_random_state_of_its_own(tmp_path: Path, kek: Path) -> None:
    work, ranks = tmp_path / "work", Ranks(2)
    seeds = [bytes([rank] * 3) for rank in (0, 1)]

    def save(rank: int, exchange: object) -> object:
        store = a_store(work, rank=rank, world_size=2, exchange=exchange)
        cpu = torch.frombuffer(bytearray(seeds[rank]), dtype=torch.uint8)
        return store.save(1, a_state(1) | {"rng": {"cpu": cpu}}, {})

    assert not [each for each in ranks.run(save) if isinstance(each, Exception)]
    found = told(work, [kek])
    assert [found[f"checkpoints/step-00000001/rank-{rank:05d}#rng/cpu"] for rank in (0, 1)] == [*map(Told.of, seeds)]


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "clear"])
def test_rows_are_those_that_the_trainer_reads(tmp_path: Path, kek: Path, sealed: bool) -> None:
    config, paths = a_config(format="Instruction", sequenceLength=52, seal=sealed), some_paths(tmp_path / "root")
    write_jsonl(paths, "a.jsonl", questions(12))
    paths.work.mkdir()
    vault = a_vault(paths.work, purpose=Purpose.DATA, job="ml/demo", sealed=sealed)
    directory = prepare(config, paths, vault, "uid-1")
    found = told(paths.work, [kek] if sealed else [])
    assert found[f"prepared/{directory.name}/train#tokens"] == Told.of(tokens_of(paths, config, vault))
    listed = {"manifest.json", "prompts.json", "train-00000.rows", "tokenizer.json"}
    assert {name: found[f"prepared/{directory.name}/{name}"] for name in listed} == {
        name: Told.of(bytes(vault.read(directory / name))) for name in listed
    }


def tokens_of(paths: Paths, config: object, vault: object) -> bytes:
    train = open_prepared(config, paths, vault, RUN).train  # type: ignore[arg-type]
    tokens_BT = train.batch(range(len(train))).tokens_BT
    return bytes(tokens_BT.to(torch.int32).numpy().tobytes())


def test_prepared_data_in_the_clear_open_where_the_job_file_says_so(tmp_path: Path, kek: Path) -> None:
    config, paths = a_config(format="Instruction", sequenceLength=64), some_paths(tmp_path / "root")
    write_jsonl(paths, "a.jsonl", questions(12))
    a_store(paths.work).save(1, a_state(1), {})
    prepare(config, paths, a_vault(paths.work, purpose=Purpose.DATA, job=JOB, sealed=False), "uid-1")
    assert "in the clear" in refusal(paths.work, [kek])
    assert any(name.endswith("train-00000.rows") for name in told(paths.work, [kek], "-clear-data"))


def test_files_in_the_clear_open_below_a_sealed_manifest_until_they_change(tmp_path: Path, kek: Path) -> None:
    directory = a_result(tmp_path / "work", clear_files=True)
    assert told(tmp_path / "work", [kek])["export/demo/model.safetensors"] == Told.of(b"weights")
    (directory / "model.safetensors").write_bytes(b"Weights")
    assert "another file" in refusal(tmp_path / "work", [kek])


def test_a_commit_that_a_crash_left_unrecorded_is_read_and_a_foreign_one_is_not(tmp_path: Path, kek: Path) -> None:
    work = tmp_path / "work"
    head = work / "checkpoints/HEAD.json.sealed"
    store = a_store(work)
    store.save(1, a_state(1), {})
    before = head.read_bytes()
    store.save(2, a_state(2), {})
    head.write_bytes(before)
    assert "checkpoints/step-00000002#model/layers.0.weight" in told(work, [kek])
    (work / "checkpoints/step-00000002").rename(work / "checkpoints/step-00000005")
    done = run(work, [kek])
    assert (done.returncode, "not used: step-00000005" in done.stderr) == (0, True)
    assert "step-00000005" not in done.stdout


def altered(content: bytes) -> Iterator[bytes]:
    """One byte changed, at each of about a dozen places."""
    for place in {*range(0, len(content), max(1, len(content) // 10)), len(content) - 1}:
        yield content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("name", [*STORES, *TWO_RANKS, RESULT])
def test_one_byte_that_differs_is_refused_in_every_file(name: str, tmp_path: Path, kek: Path) -> None:
    work = copied(name, tmp_path)
    for path in files_of(work):
        content = path.read_bytes()
        for changed in () if path.name == KEYRING or is_unauthenticated(path) else altered(content):
            path.write_bytes(changed)
            assert refusal(work, keys_of(name, kek)), path
        path.write_bytes(content)
    assert told(work, keys_of(name, kek))


@pytest.mark.parametrize("name", SEALED)
def test_both_readers_judge_every_changed_keyring_alike(name: str, tmp_path: Path, kek: Path) -> None:
    path = copied(name, tmp_path) / KEYRING
    content, job = path.read_bytes(), json.loads(path.read_bytes())["job"]
    judged = set()
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        ours = opens(path, job)
        assert ours == (not refusal(path.parent, [kek], "-job", job)), (place, path.read_bytes())
        judged.add(ours)
    assert False in judged


def opens(path: Path, job: str) -> bool:
    try:
        Keyring.open(path, job, [KEK])
    except IntegrityError:
        return False
    return True


@pytest.mark.parametrize("name", [*STORES, *TWO_RANKS, RESULT])
def test_a_file_that_is_missing_cut_off_or_too_long_is_refused(name: str, tmp_path: Path, kek: Path) -> None:
    work = copied(name, tmp_path)
    for path in files_of(work):
        content = path.read_bytes()
        for changed in (b"", content.rstrip()[:-1], content + b"!"):
            path.write_bytes(changed)
            assert refusal(work, keys_of(name, kek)), path
        path.unlink()
        assert bool(refusal(work, keys_of(name, kek))) == (path.name not in MAY_BE_MISSING), path
        path.write_bytes(content)


@pytest.mark.parametrize("name", [*STORES, *TWO_RANKS, RESULT])
def test_two_files_that_changed_places_are_refused(name: str, tmp_path: Path, kek: Path) -> None:
    work = copied(name, tmp_path)
    for one, other in combinations(files_of(work), 2):
        contents = one.read_bytes(), other.read_bytes()
        one.write_bytes(contents[1])
        other.write_bytes(contents[0])
        assert refusal(work, keys_of(name, kek)), (one, other)
        one.write_bytes(contents[0])
        other.write_bytes(contents[1])


@pytest.mark.parametrize("name", SEALED)
def test_a_keyring_of_another_job_is_refused(name: str, tmp_path: Path, kek: Path) -> None:
    work = copied(name, tmp_path)
    keyring = json.loads((work / KEYRING).read_bytes())
    assert "of the job" in refusal(work, [kek], "-job", "lab/other")
    (work / KEYRING).write_text(json.dumps(keyring | {"job": "lab/other"}))
    for options in ((), ("-job", "lab/other"), ("-job", keyring["job"])):
        assert refusal(work, [kek], *options)


@pytest.mark.parametrize("name", SEALED)
def test_without_the_right_key_nothing_opens(name: str, tmp_path: Path) -> None:
    stranger = a_key_file(tmp_path / "stranger", bytes(range(2, 34)))
    for keks in ([], [stranger]):
        done = run(GOLDEN / name, keks)
        assert (done.returncode, done.stdout, KEK.id in done.stderr) == (1, "", True)


def test_a_rotated_keyring_opens_by_the_new_key_and_a_shredded_one_by_none(
    tmp_path: Path, kek: Path, other_kek: Path
) -> None:
    work = copied("sealed_v1/work", tmp_path)
    before = told(work, [kek])
    rotate(work / KEYRING, [KEK], OTHER_KEK)
    assert told(work, [other_kek]) == before
    assert "needs one of the KEKs" in refusal(work, [kek])
    grant(work / KEYRING, [OTHER_KEK], KEK)
    assert told(work, [kek]) == before
    shred(work / KEYRING)
    assert "shredded" in refusal(work, [kek, other_kek])


def test_a_result_is_refused_with_a_file_more_a_link_another_name_or_an_older_commit(tmp_path: Path, kek: Path) -> None:
    work = tmp_path / "work"
    store = a_store(work)
    store.save(1, a_state(1), {})
    store.mark_exported()
    result = a_result(work, commit=store.newest_digest())
    assert told(work, [kek])
    (result / "more.sealed").touch()
    assert "its manifest lists" in refusal(work, [kek])
    (result / "more.sealed").unlink()
    (result / "link").symlink_to("README.md.sealed")
    assert "neither file nor directory" in refusal(work, [kek])
    (result / "link").unlink()
    result.rename(result.with_name("other"))
    assert refusal(work, [kek])
    result.with_name("other").rename(result)
    shutil.rmtree(result)
    a_result(work, commit="ab" * 32)
    assert "replaced" in refusal(work, [kek])


def test_a_sealed_job_falls_back_to_no_file_in_the_clear(tmp_path: Path, kek: Path) -> None:
    work = shutil.copytree(GOLDEN / "clear_v3/work", tmp_path / "work")
    assert told(work)
    assert refusal(work, [kek])
    shutil.copy(GOLDEN / "sealed_v3/work" / KEYRING, work)
    assert "HEAD.json.sealed is missing" in refusal(work, [kek])


def test_the_newest_checkpoint_must_be_there_and_an_older_one_may_be_pruned(tmp_path: Path, kek: Path) -> None:
    work = copied("sealed_v3/work", tmp_path)
    shutil.rmtree(work / "checkpoints/step-00000006")
    assert "checkpoints/step-00000007/manifest.json" in told(work, [kek])
    shutil.rmtree(work / "checkpoints/step-00000007")
    assert "the newest checkpoint" in refusal(work, [kek])

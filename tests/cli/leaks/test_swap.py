"""Swap that is not known to be encrypted is named."""

from pathlib import Path

from dstj.leaks.swap import swap_in_the_clear

HEAD = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


def test_only_swap_in_the_clear_is_named(tmp_path: Path):
    (tmp_path / "swaps").write_text(
        HEAD
        + "".join(f"/dev/{name} partition 9 0 -2\n" for name in ("dm-0", "dm-1", "zram0", "zram1", "sda2"))
        + "/swapfile file 9 0 -3\n"
    )
    for name, uuid in (("dm-0", "CRYPT-PLAIN-swap"), ("dm-1", "LVM-abc")):
        (tmp_path / name / "dm").mkdir(parents=True)
        (tmp_path / name / "dm" / "uuid").write_text(f"{uuid}\n")
    for name, backing in (("zram0", "none"), ("zram1", "/dev/sdb1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "backing_dev").write_text(f"{backing}\n")
    found = swap_in_the_clear(tmp_path / "swaps", tmp_path)
    assert found == ["/dev/dm-1", "/dev/zram1", "/dev/sda2", "/swapfile"]


def test_no_swap_is_nothing_to_name(tmp_path: Path):
    (tmp_path / "swaps").write_text(HEAD)
    assert swap_in_the_clear(tmp_path / "swaps", tmp_path) == []
    assert swap_in_the_clear(tmp_path / "gone", tmp_path) == []

import subprocess

from deepseek_trainer.base_model.digest import digest_of


def test_digest_of_a_file_is_that_of_sha256sum(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"abc")
    assert digest_of(tmp_path / "a.gguf") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_digest_of_a_directory_is_what_the_shell_gives(tmp_path):
    for name in ("b", "a", "B with space"):
        (tmp_path / name).write_text(name)
    (tmp_path / ".hidden").write_text("does not count")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "c").write_text("does not count")
    command = "sha256sum * 2>/dev/null | LC_ALL=C sort | sha256sum"
    shell = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert digest_of(tmp_path) == shell.stdout.split()[0]

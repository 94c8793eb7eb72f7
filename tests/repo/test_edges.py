"""Rules for where foreign files and foreign text come in and go out, over the source of all packages.

`storage/opening.py` opens what others can write, `contract/foreign.py` shows what others wrote, and `contract/lines.py`
lets lines out.  Whatever stands here beside them says why it may.
"""

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("operator/deepseek_operator", "trainer_image/deepseek_trainer", "cli/dstj")
SOURCES = {
    file.relative_to((ROOT / package).parent).as_posix(): file.read_text()
    for package in PACKAGES
    for file in (ROOT / package).rglob("*.py")
}

OPENINGS = {
    "deepseek_operator/__main__.py": "the namespace that the kubelet mounts",
    "deepseek_operator/crd.py": "files of this repository",
    "deepseek_trainer/budget/cgroup.py": "the kernel's",
    "deepseek_trainer/worker/failure.py": "the scratch directory of a worker's own processes",
    "deepseek_trainer/worker/scratch.py": "the same",
    "deepseek_trainer/base_model/confined.py": "/dev/null, and the kernel's",
    "deepseek_trainer/base_model/gguf_file.py": "maps what `opened` has opened",
    "deepseek_trainer/checkpoints/unseal.py": "makes a file, and fails if it is there",
    "deepseek_trainer/data/shards.py": "maps what `opened_own` has opened",
    "dstj/cli.py": "/dev/null",
    "dstj/leaks/swap.py": "the kernel's",
    "dstj/jobfile.py": "a pipe of the user's own shell",
    "dstj/local/home.py": "the lock of a private directory",
    "dstj/local/machine.py": "the kernel's",
    "dstj/local/strays.py": "the kernel's",
}
OUTLETS = {
    "deepseek_trainer/contract/lines.py": "the outlet",
    "deepseek_operator/controller/logs.py": "escapes each message itself",
    "deepseek_trainer/run/preparing.py": "chooses a level, after `guard_logs`",
    "deepseek_operator/crd.py": "speaks to developers",
    "dstj/arguments.py": "help, and arguments that `Parser.error` escapes",
}
SHOWING = {
    "dstj/arguments.py": "`Parser.error` escapes, and --help must not import what shows",
    "deepseek_operator/controller/apply.py": "the operator's own ApiError, whose message `words.py` has bounded",
    "deepseek_trainer/worker/failure.py": "the last line of a traceback, which `one_line` bounds",
}
OWN_ROOMS = ("deepseek_trainer/storage/",)  # it confines its files to directories, and shows what it refuses

OPENERS = {"open", "io.open", "os.open", "io.FileIO", "np.memmap", "np.load", "np.fromfile", "mmap.mmap"}
METHODS = {"open", "read_bytes", "read_text"}
SPEAKERS = {"print", "sys.stdout.write", "sys.stderr.write", "logging.basicConfig", "logging.StreamHandler"}
OF_OUR_ERRORS = {"problem", "hint"}  # one line each, by JobError
NO_TEXT = {"strerror", "errno", "start", "colno", "status", "code", "name"}

Rule = Callable[[ast.Module], Iterator[int]]


@cache
def _parsed(name: str) -> ast.Module:
    return ast.parse(SOURCES[name])


def calls(tree: ast.Module) -> Iterator[tuple[ast.Call, str]]:
    return ((node, ast.unparse(node.func)) for node in ast.walk(tree) if isinstance(node, ast.Call))


def opens(tree: ast.Module) -> Iterator[int]:
    """Lines that open a file by another way than `storage/opening.py`."""
    for call, name in calls(tree):
        owner, _, method = name.rpartition(".")
        is_class = (
            owner.isidentifier() and owner[:1].isupper() and not owner.isupper()
        )  # Keyring.open, Image.open: no paths
        if name in OPENERS or (method in METHODS and owner and not is_class):
            yield call.lineno


def speaks(tree: ast.Module) -> Iterator[int]:
    """Lines that let text out by another way than `contract/lines.py`."""
    return (call.lineno for call, name in calls(tree) if name in SPEAKERS)


def quotes(tree: ast.Module) -> Iterator[int]:
    """Lines that put a repr, or the words of an error, into a text as they are: `shown` and `first_line` do not."""
    caught = {node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name}
    given = (node for node in ast.walk(tree) if isinstance(node, ast.arg) and node.annotation is not None)
    caught |= {node.arg for node in given if ast.unparse(node.annotation).endswith(("Exception", "Error"))}
    for value in (node for node in ast.walk(tree) if isinstance(node, ast.FormattedValue)):
        if value.conversion == ord("r") or _is_raw(value.value, caught):
            yield value.lineno


def _is_raw(value: ast.expr, caught: set[str | None]) -> bool:
    match value:
        case ast.Name(id=name):
            return name in caught
        case ast.Attribute(value=ast.Name(id=name), attr=attr):
            return name in caught and attr not in OF_OUR_ERRORS | NO_TEXT
        case ast.Call(func=ast.Name(id="str"), args=[of]):
            return _is_raw(of, caught)
        case ast.Call(func=ast.Name(id="repr")):
            return True
        case ast.Subscript(value=of) | ast.Call(func=ast.Attribute(value=of)):
            return _is_raw(of, caught)
    return False


RULES = [(opens, OPENINGS), (speaks, OUTLETS), (quotes, SHOWING)]


@pytest.mark.parametrize(("rule", "allowed"), RULES, ids=lambda each: getattr(each, "__name__", ""))
def test_foreign_files_and_foreign_text_pass_by_their_edge_alone(rule: Rule, allowed: dict[str, str]) -> None:
    found = {name: [*rule(_parsed(name))] for name in SOURCES}
    broken = {name: lines for name, lines in found.items() if lines and not name.startswith(OWN_ROOMS)}
    assert {name: lines for name, lines in broken.items() if name not in allowed} == {}
    assert set(allowed) - set(broken) == set(), "these no longer need their exception"


@pytest.mark.parametrize(
    ("rule", "bad"),
    [
        (opens, "path.read_text()"),
        (opens, "(root / name).read_bytes()"),
        (opens, "with self.path.open('rb') as file: pass"),
        (opens, "open(path)"),
        (opens, "os.open(path, os.O_RDONLY)"),
        (speaks, "print(name)"),
        (speaks, "sys.stderr.write(name)"),
        (quotes, "raise DataError(f'no field {name!r}')"),
        (quotes, "try: pass\nexcept ValueError as error: raise ConfigError(f'no JSON: {error}')"),
        (quotes, "try: pass\nexcept ValueError as odd: log.warning(f'no JSON: {str(odd)}')"),
        (quotes, "try: pass\nexcept ValueError as error: say(f'no JSON: {str(error).splitlines()[0]}')"),
        (quotes, "try: pass\nexcept ValueError as error: say(f'no JSON: {error.msg}')"),
    ],
)
def test_a_rule_finds_what_breaks_it(rule: Rule, bad: str) -> None:
    assert [*rule(ast.parse(bad))]


@pytest.mark.parametrize(
    "good",
    [
        "opened(path)",
        "Keyring.open(path)",
        "vault.open_reader(path)",
        "say(name)",
        "raise DataError(f'no field {shown(name)} in {path}: {len(names)}')",
        "try: pass\nexcept ValueError as error: raise ConfigError(f'no JSON: {first_line(error)}, {error.strerror}')",
    ],
)
def test_a_rule_lets_the_edges_pass(good: str) -> None:
    assert [line for rule, _ in RULES for line in rule(ast.parse(good))] == []


@pytest.mark.parametrize(
    "program", [f"deepseek_trainer/{name}" for name in ("train.py", "agent.py", "run/preparing.py")] + ["dstj/cli.py"]
)
def test_every_program_that_logs_guards_its_logs_first(program: str) -> None:
    assert "guard_logs()" in SOURCES[program]


def test_the_linter_forbids_print_everywhere_but_at_the_outlets() -> None:
    assert {name for name, text in SOURCES.items() if "noqa: T201" in text} <= set(OUTLETS)

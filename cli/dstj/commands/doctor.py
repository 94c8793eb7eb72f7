"""`dstj doctor`: checks whether this machine is fit for local runs, has what a job needs, and keeps what is sealed."""

import platform
import socket
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from deepseek_operator.jobs.spec import JobSpec
from deepseek_trainer.base_model.digest import digest_of
from deepseek_trainer.contract.errors import ConfigError, JobError, TryAgainError
from deepseek_trainer.contract.foreign import first_line
from deepseek_trainer.contract.lines import say
from deepseek_trainer.contract.names import SERVER_CA, SERVER_TOKEN, ExitCode
from deepseek_trainer.storage.keys import read_kek
from deepseek_trainer.worker.failure import Failure
from dstj.commands.forecast import INSTALL, mounted
from dstj.commands.inputs import Examination
from dstj.commands.leaks import leaks
from dstj.jobfile import Job, load_job
from dstj.local.claims import sources
from dstj.local.home import Home
from dstj.local.machine import cores, free_bytes, free_ports, gpus, memory_bytes
from dstj.local.worker_job import loopback
from dstj.screen.checks import Check, Warned, print_check

GIB = 1 << 30
MIN_MEMORY = 4 * GIB  # a rank with torch and a model of 135 M parameters takes about 2 GiB
MIN_DISK = 5 * GIB  # the demo: base model, prepared data, two checkpoints, result
MIN_SHM = 64 << 20  # Docker's default; NCCL asks for about 33 MB a rank
SHM = Path("/dev/shm")  # noqa: S108


def doctor(arguments: Namespace) -> int:
    """Print a line for each check, with the way out if it is not ok.  The exit code is that of the first failure."""
    of_leaks = (arguments.directory, arguments.key_dir, arguments.words, arguments.also)
    if arguments.name is not None or any(of_leaks):
        return leaks(arguments)
    if arguments.digest:
        say(_digest(Path(arguments.digest)))
        return ExitCode.DONE
    home = Home.from_env()
    codes = [_run(name, check) for name, check in _machine_checks(home)]
    if arguments.file:
        codes += [_run(name, check) for name, check in _job_checks(arguments, home)]
    return next((code for code in codes if code), ExitCode.DONE)


def _digest(path: Path) -> str:
    if not (path.is_file() or path.is_dir()):
        raise ConfigError(f"{path}: no such file or directory", hint="name a GGUF file or a model directory")
    return digest_of(path)


def _run(name: str, check: Check) -> ExitCode:
    try:
        found = check()
    except JobError as error:
        print_check("fail", name, error.problem, error.hint)
        return error.code
    except ModuleNotFoundError as error:
        print_check("fail", name, f"cannot be checked without {error.name}", INSTALL)
        return ExitCode.CONFIG
    except (OSError, MemoryError) as error:  # of the machine: the run would say the same, and try again
        failure = Failure.of(error)
        print_check("fail", name, failure.message)
        return ExitCode(failure.exit_code)
    except ExceptionGroup as group:
        for each in group.exceptions:
            print_check("fail", name, str(each))
        return ExitCode.CONFIG
    if isinstance(found, Warned):
        print_check("warn", name, found.text, found.hint)
    else:
        print_check("ok", name, found)
    return ExitCode.DONE


def _machine_checks(home: Home) -> Iterator[tuple[str, Check]]:
    yield "python", _python
    yield "torch", _torch
    yield "cores", lambda: f"{cores()}"
    yield "gpu", lambda: ", ".join(gpus()) or "none: training runs on the CPU"
    yield (
        "memory",
        lambda: _at_least(memory_bytes(), MIN_MEMORY, "free", "close programs, or take a smaller model"),
    )
    yield "disk", lambda: _at_least(free_bytes(home.directory), MIN_DISK, f"free for {home.directory}", "set DSTJ_HOME")
    yield "shm", lambda: _at_least(free_bytes(SHM), MIN_SHM, f"free in {SHM}", f"mount -o remount,size=1G {SHM}")
    yield "network", _loopback
    yield "gloo", _gloo
    for file in sorted(home.directory.glob("secrets/*/*")):
        if file.name in (SERVER_TOKEN, SERVER_CA):
            continue
        yield "key", lambda file=file: f"{read_kek(file).id} in {file}"  # type: ignore[misc]  # mypy sees no default


def _python() -> str:
    if not (3, 11) <= sys.version_info < (3, 13):
        raise ConfigError(f"Python {platform.python_version()}", hint="use Python 3.11 or 3.12")
    return platform.python_version()


def _torch() -> str:
    try:
        import torch
    except ImportError as error:
        raise ConfigError(f"cannot be imported: {first_line(error)}", hint=INSTALL) from None
    return f"{torch.__version__}, transformers {metadata.version('transformers')}, peft {metadata.version('peft')}"


def _at_least(found: int, wanted: int, what: str, hint: str) -> str | Warned:
    text = f"{found / GIB:.1f} GiB {what}"
    return text if found >= wanted else Warned(f"{text}, less than {wanted / GIB:.1f}", hint)


def _loopback() -> str:
    """Check that each node of a local run can have an address of its own."""
    for index in (0, 1):
        with socket.socket() as listener:
            try:
                listener.bind((loopback(index), 0))
            except OSError as error:
                hint = "on macOS: sudo ifconfig lo0 alias 127.0.0.2" if index else "is the interface lo up?"
                raise TryAgainError(f"{loopback(index)}: {error.strerror}", hint=hint) from None
    return f"{loopback(0)}, {loopback(1)}, free ports"


def _gloo() -> str:
    """Let one process meet itself over TCP and reduce a number, as the ranks of a run do."""
    try:
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_ports(1)[0]}", rank=0, world_size=1)
        try:
            dist.all_reduce(torch.ones(1))
        finally:
            dist.destroy_process_group()
    except (ImportError, RuntimeError) as error:
        hint = "see torch above; does this host's name resolve, or is GLOO_SOCKET_IFNAME set?"
        raise TryAgainError(str(error).splitlines()[0], hint=hint) from None
    return "works"


def _job_checks(arguments: Namespace, home: Home) -> Iterator[tuple[str, Check]]:
    """The checks of a job.  A check is left out if the one before did not find what it needs."""
    path, loaded = Path(arguments.file), list[Job]()

    def job_file() -> str:
        loaded.append(load_job(path))
        return f"{path}: {loaded[0].name}"

    yield "job", job_file
    if not loaded:
        return
    job = loaded[0]
    yield "machine", lambda: _fits(job.spec)
    found: dict[str, Path] = {}

    def claims() -> str:
        found.update(sources(job, home, arguments.volume, arguments.vault_token).claims)
        return ", ".join(f"{name}={directory}" for name, directory in found.items())

    yield "claims", claims
    if not found:
        return
    with mounted(found) as paths:
        config = job.spec.training_config(job.namespace, job.name)
        here = {str(paths.claim(name)): str(directory) for name, directory in found.items()}
        for name, check in Examination(config, paths, looks_at_all=arguments.all).checks():
            yield name, lambda check=check: _named_as_here(check, here)  # type: ignore[misc]
    yield "fit", lambda: f"`dstj plan {path}` tells whether it fits into memory, and how long it takes"


def _fits(spec: JobSpec) -> str | Warned:
    ranks = spec.trainer.world_size
    text = f"{ranks} ranks on {cores()} cores and {len(gpus())} GPUs"
    return Warned(text, "ranks share cores: expect it to be slow") if ranks > max(cores(), len(gpus())) else text


def _named_as_here(check: Check, here: Mapping[str, str]) -> str | Warned:
    """The outcome of a check with the job's directories under their own names."""

    def named(text: str) -> str:
        for mounted_at, directory in here.items():
            text = text.replace(mounted_at, directory)
        return text

    try:
        found = check()
    except JobError as error:
        raise type(error)(named(error.problem), hint=named(error.hint)) from None
    return Warned(named(found.text), named(found.hint)) if isinstance(found, Warned) else named(found)

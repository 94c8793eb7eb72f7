"""The command line of `dstj`.  Nothing heavy is imported here, so that --help answers at once.

Each command names the function that runs it as "module:function"; cli.py imports that only when the command runs.
"""

import argparse
import math
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

    Commands = argparse._SubParsersAction[Any]

EXIT_CODES: Final = (
    (0, "done"),
    (1, "a bug in dstj, or a failure that nobody foresaw"),
    (2, "wrong arguments"),
    (64, "the job file, the model or a key reference is wrong, or the cluster refuses it: a retry cannot help"),
    (65, "the data are missing, empty or malformed: a retry cannot help"),
    (70, "the loss is no longer finite; the last checkpoint is good"),
    (75, "the machine or the cluster failed us (killed, disk full, busy, out of reach): try again"),
    (
        77,
        "a key is missing, wrong or open to others, sealed bytes do not authenticate, or private ones are in the clear",
    ),
    (130, "stopped by Ctrl-C: the same command resumes"),
    (141, "the reader of the output went away"),
    (143, "stopped by SIGTERM or a closed terminal: the same command resumes"),
)


class Parser(argparse.ArgumentParser):
    """A parser that reports wrong arguments, and help that cannot be written, like every other error."""

    def print_help(self, file: "SupportsWrite[str] | None" = None) -> None:
        print(self.format_help(), end="", file=file)

    def error(self, message: str) -> NoReturn:
        from deepseek_trainer.contract.foreign import one_line

        self.exit(2, f"dstj: error: {one_line(message)}\ndstj: hint: {self.prog} --help\n")


def parser() -> Parser:
    """The whole command line."""
    codes = "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES)
    root = Parser(
        prog="dstj",
        description="Private LLM training from one file: checked, rendered, and run without a cluster.",
        epilog=f"exit codes:\n{codes}\n\nLocal runs keep their state in ./.dstj; set DSTJ_HOME to move it.\n"
        "A cluster is the one of the kubeconfig's current context, as for kubectl.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add_to in (
        _validate,
        _render,
        _plan,
        _data,
        _run,
        _submit,
        _suspend,
        _status,
        _logs,
        _keys,
        _checkpoint,
        _result,
        _doctor,
    ):
        add_to(commands)
    return root


def _command(commands: "Commands", name: str, target: str, summary: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
    )
    command.set_defaults(target=target)
    return command


def _group(commands: "Commands", name: str, summary: str) -> "Commands":
    group = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    added: Commands = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    return added


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _index(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def _above_zero(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to 1")
    return share


def _validate(commands: "Commands") -> None:
    command = _command(
        commands, "validate", "dstj.commands.validate:validate", "check job files without running anything"
    )
    command.add_argument("files", nargs="+", metavar="FILE", help="YAML file with jobs and profiles")


def _render(commands: "Commands") -> None:
    command = _command(
        commands, "render", "dstj.commands.validate:render", "print the Kubernetes objects that a job becomes"
    )
    command.add_argument("file", metavar="FILE", help="YAML file with one job")
    command.add_argument("--profile", metavar="FILE", help="YAML file with the job's TrainingProfile")
    command.add_argument("--attempt", type=_positive, default=1, metavar="N", help="which attempt to show (default: 1)")
    command.add_argument(
        "--uid", default="00000000-0000-0000-0000-000000000000", help="uid of the job in the cluster (default: zeros)"
    )


def _plan(commands: "Commands") -> None:
    command = _command(
        commands, "plan", "dstj.commands.plan:plan", "estimate memory, steps and time of a job before it runs"
    )
    command.add_argument("file", metavar="FILE", help="YAML file with one job")
    command.add_argument("--profile", metavar="FILE", help="YAML file with the job's TrainingProfile")
    command.add_argument("--volume", action="append", default=[], metavar="CLAIM=DIR", help="as for run")
    command.add_argument("--gpu", metavar="NAME", help="GPU of each rank, H200 for example (default: none, the CPU)")
    command.add_argument(
        "--mfu",
        type=_share,
        default=0.4,
        metavar="SHARE",
        help="share of the GPU's peak that a rank reaches (default: 0.4)",
    )
    command.add_argument(
        "--flops-per-second",
        type=_above_zero,
        metavar="N",
        help="FLOP/s that a rank reaches, instead of a share of a peak; on the CPU, 4e10 for example",
    )


def _data(commands: "Commands") -> None:
    group = _group(commands, "data", "look at the data of a job before it runs")
    command = _command(
        group, "preview", "dstj.commands.preview:preview", "print a few records as a job will learn them, and counts"
    )
    command.add_argument("file", metavar="FILE", help="YAML file with one job")
    command.add_argument("--volume", action="append", default=[], metavar="CLAIM=DIR", help="as for run")
    command.add_argument(
        "--records",
        type=_positive,
        default=4,
        metavar="N",
        help="at most so many: the first, the longest, random ones (default: 4)",
    )
    command.epilog = "Learned text is coloured on a terminal, and stands between [[ and ]] elsewhere."


def _run(commands: "Commands") -> None:
    command = _command(commands, "run", "dstj.commands.run:run", "run a job on this machine, or resume it")
    command.add_argument("file", metavar="FILE", help="YAML file with one job")
    command.add_argument(
        "--volume",
        action="append",
        default=[],
        metavar="CLAIM=DIR",
        help="directory that stands for a claim (default: CLAIM beside the file, then $DSTJ_HOME/volumes/CLAIM)",
    )
    _vault_token(command)
    command.add_argument("--plain", action="store_true", help="plain lines even on a terminal")
    command.add_argument(
        "--recreate", action="store_true", help="forget the last run and its end, as deleting the job in a cluster does"
    )


def _submit(commands: "Commands") -> None:
    command = _command(commands, "submit", "dstj.commands.submit:submit", "create or change jobs in a cluster")
    command.add_argument("files", nargs="+", metavar="FILE", help="YAML file with jobs and profiles")
    _namespace(command, "namespace of jobs whose file names none (default: the context's)")
    command.add_argument("--dry-run", action="store_true", help="let the API server check everything and keep nothing")


def _vault_token(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--vault-token",
        metavar="FILE",
        help="with keyRef.vaultTransit: file with a token of the server (default: $DSTJ_VAULT_TOKEN_FILE)",
    )


def _suspend(commands: "Commands") -> None:
    for name, summary in (
        ("suspend", "stop a job in a cluster after a checkpoint, and free its pods"),
        ("resume", "let a suspended job in a cluster go on"),
    ):
        command = _command(commands, name, f"dstj.commands.submit:{name}", summary)
        command.add_argument("name", metavar="NAME", help="job")
        _namespace(command, "its namespace (default: the context's)")


def _namespace(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("-n", "--namespace", metavar="NS", help=text)


def _status(commands: "Commands") -> None:
    command = _command(commands, "status", "dstj.commands.status:status", "show jobs, or one of them")
    command.add_argument("name", nargs="?", metavar="NAME", help="job (default: all that were run here)")
    _namespace(command, "jobs in this namespace of the cluster (default: jobs that were run here come first)")
    command.add_argument("-o", "--output", choices=("table", "yaml"), default="table", help="yaml: the whole object")


def _logs(commands: "Commands") -> None:
    command = _command(commands, "logs", "dstj.commands.logs:logs", "print what the nodes of a job wrote")
    command.add_argument("name", metavar="NAME", help="job")
    _namespace(command, "a job in this namespace of the cluster (default: jobs that were run here come first)")
    command.add_argument("--node", type=_index, metavar="N", help="only node N (default: all; in a cluster, 0)")
    command.add_argument("--container", choices=("prepare", "trainer"), help="only this container (default: both)")
    command.add_argument("--attempt", type=_positive, metavar="N", help="which attempt (default: the newest)")
    command.add_argument("-f", "--follow", action="store_true", help="print new lines until the attempt ends")


def _keys(commands: "Commands") -> None:
    group = _group(commands, "keys", "make, rotate, share, show and destroy the keys that seal checkpoints")
    generate = _command(group, "generate", "dstj.commands.keys:generate", "make a key-encryption key for local runs")
    generate.add_argument("--secret", required=True, metavar="NAME", help="as in encryption.keyRef.secretName")
    generate.add_argument("--key", default="kek", help="entry of the secret, as in keyRef.key (default: kek)")
    rotate = _command(
        group, "rotate", "dstj.commands.keys:rotate", "wrap a job's data key under a new key; data stay as they are"
    )
    _source(rotate)
    rotate.add_argument("--new-key-dir", metavar="DIR", help="with --directory: directory with the new key")
    rotate.add_argument("--key", metavar="KEY", help="which file of --new-key-dir (default: the only one)")
    grant = _command(group, "grant", "dstj.commands.keys:grant", "let another key, such as one in escrow, open a job")
    _source(grant)
    grant.add_argument("--kek", required=True, metavar="FILE", help="the other key")
    revoke = _command(group, "revoke", "dstj.commands.keys:revoke", "let a key open a job no longer")
    _source(revoke)
    revoke.add_argument("--kek-id", required=True, metavar="ID", help="id of the key, as `dstj keys inspect` shows it")
    inspect = _command(
        group, "inspect", "dstj.commands.key_table:inspect", "show ids of keys and what they wrap, never a key"
    )
    _source(inspect, required=False)
    shred = _command(
        group, "shred", "dstj.commands.keys:shred", "destroy a job's data key: what it sealed is lost for ever"
    )
    _job_or_volume(shred)
    shred.add_argument("--yes", action="store_true", help="do it (default: only name what would be lost)")


def _checkpoint(commands: "Commands") -> None:
    group = _group(commands, "checkpoint", "list, verify, prune and open checkpoints")
    _source(_command(group, "list", "dstj.commands.checkpoints:show", "list a job's checkpoints"))
    _source(
        _command(group, "verify", "dstj.commands.checkpoints:verify", "authenticate every byte of a job's checkpoints")
    )
    prune = _command(
        group, "prune", "dstj.commands.pruning:prune", "delete older checkpoints of a job that does not run"
    )
    _source(prune)
    prune.add_argument(
        "--keep-last", type=_positive, metavar="N", help="keep the newest N (default: as in the job, or 3)"
    )
    prune.add_argument(
        "--keep-every",
        type=_index,
        metavar="N",
        help="also keep steps that are a multiple of N; 0: none (default: as in the job)",
    )
    decrypt = _command(group, "decrypt", "dstj.commands.checkpoints:decrypt", "write a checkpoint's files in the clear")
    _source(decrypt)
    decrypt.add_argument("--step", type=_index, metavar="N", help="which checkpoint (default: the newest)")
    _target(decrypt)


def _result(commands: "Commands") -> None:
    command = _command(commands, "result", "dstj.commands.checkpoints:result", "write a job's result in the clear")
    _source(command)
    _target(command)
    command.add_argument(
        "--without-manifest", action="store_true", help="also take a result that an earlier version left without one"
    )


def _source(command: argparse.ArgumentParser, *, required: bool = True) -> None:
    _job_or_volume(command, required=required)
    command.add_argument("--key-dir", metavar="DIR", help="directory with the key (default: the local job's secret)")


def _job_or_volume(command: argparse.ArgumentParser, *, required: bool = True) -> None:
    which = command.add_mutually_exclusive_group(required=required)
    which.add_argument("name", nargs="?", metavar="NAME", help="local job")
    which.add_argument("--directory", metavar="DIR", help="instead of NAME: a copy of the job's work volume")


def _target(command: argparse.ArgumentParser) -> None:
    command.add_argument("--to", required=True, metavar="DIR", help="directory to make; must not exist")


def _doctor(commands: "Commands") -> None:
    command = _command(
        commands, "doctor", "dstj.commands.doctor:doctor", "check this machine, and what a job needs of it"
    )
    command.add_argument("file", nargs="?", metavar="FILE", help="YAML file with one job")
    command.add_argument("--volume", action="append", default=[], metavar="CLAIM=DIR", help="as for run")
    command.add_argument(
        "--all",
        action="store_true",
        help="look at all records and at the base's weights and SHA-256 (default: the first 10,000 records of a place)",
    )
    _vault_token(command)
    command.add_argument("--digest", metavar="PATH", help="only print the SHA-256 of a model, for model.base.sha256")
    leaks = command.add_argument_group(
        "of a sealed job, look for private bytes in the clear instead; exit code 77 if there are any"
    )
    leaks.add_argument(
        "--sealed", nargs="?", const="", dest="name", metavar="JOB", help="local job: its volume, logs, scratch, status"
    )
    leaks.add_argument(
        "--directory", metavar="DIR", help="with --sealed instead of JOB: a work volume, or a copy of it"
    )
    leaks.add_argument("--key-dir", metavar="DIR", help="directory with the key (default: the local job's secret)")
    leaks.add_argument(
        "--words", metavar="FILE", help="private words, one a line, to look for in every spelling: names, addresses"
    )
    leaks.add_argument(
        "--also", action="append", default=[], metavar="PATH", help="look there, too: logs saved from pods, for example"
    )

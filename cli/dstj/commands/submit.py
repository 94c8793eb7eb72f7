"""`dstj submit`, `suspend` and `resume`: create and change jobs in a cluster."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek_operator.api.names import KIND
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import named
from deepseek_trainer.contract.lines import say
from deepseek_trainer.contract.names import ExitCode
from dstj.jobfile import Document, Manifest, checked, documents
from dstj.local.home import Home
from dstj.remote.context import ask

if TYPE_CHECKING:
    from dstj.remote.apiserver import ApiServer

OWN_METADATA = ("name", "namespace", "labels", "annotations")


def submit(arguments: Namespace) -> int:
    """Apply jobs and profiles, after all files have been checked."""
    files = list(checked(Path(name) for name in arguments.files))
    if errors := [error for file in files for error in file.errors]:
        raise ExceptionGroup("job files", errors)
    # Profiles come first, so that a job finds its profile in the very first pass.
    ours = sorted((document for file in files for document in file.documents), key=lambda each: each.kind == KIND)
    ask(lambda server: _apply(server, ours, arguments), arguments.namespace)
    for file in files:
        _print_left_out(file.path)
    return ExitCode.DONE


async def _apply(server: "ApiServer", ours: Sequence[Document], arguments: Namespace) -> None:
    manifests = [_manifest(document, server.namespace, arguments.namespace) for document in ours]
    where = f"context {server.target.context}" + (", dry run" if arguments.dry_run else "")
    for manifest in manifests:
        before, after = await server.apply(manifest, dry_run=arguments.dry_run)
        say(f"{_title(manifest)}: {_outcome(before, after)} ({where})")
    jobs = [manifest["metadata"] for manifest in manifests if manifest["kind"] == KIND]
    if jobs and not arguments.dry_run:
        say(f"next: dstj status {jobs[-1]['name']} -n {jobs[-1]['namespace']}")


def _manifest(document: Document, default: str, given: str | None) -> Manifest:
    """The manifest to apply, without what the API server adds to an object, in case the file was read from there."""
    content: Manifest = document.content
    meta = {key: content["metadata"][key] for key in OWN_METADATA if key in content["metadata"]}
    if content["kind"] != KIND:
        meta.pop("namespace", None)  # a profile belongs to the whole cluster
    elif given not in (None, meta.setdefault("namespace", default)):
        raise ConfigError(
            document.at(f"metadata.namespace: {named(meta['namespace'])} is not the --namespace given, {named(given)}"),
            hint="leave out one of them",
        )
    return {"apiVersion": content["apiVersion"], "kind": content["kind"], "metadata": meta, "spec": content["spec"]}


def _title(manifest: Manifest) -> str:
    meta = manifest["metadata"]
    return f"job {meta['namespace']}/{meta['name']}" if manifest["kind"] == KIND else f"profile {meta['name']}"


def _outcome(before: Manifest | None, after: Manifest) -> str:
    if before is None:
        return "created"
    return "unchanged" if _wanted(before) == _wanted(after) else "configured"


def _wanted(manifest: Manifest) -> tuple[Any, ...]:
    meta = manifest["metadata"]
    return manifest.get("spec"), meta.get("labels"), meta.get("annotations")


def _print_left_out(path: Path) -> None:
    kinds = [str(document.kind) for document in documents(path) if not document.is_ours]
    if kinds:
        say(f"left out: {', '.join(kinds)}; kubectl apply -f {path} applies all that is in the file")


def suspend(arguments: Namespace) -> int:
    return _set_suspend(arguments, True, "suspending: it writes a checkpoint and frees its pods")


def resume(arguments: Namespace) -> int:
    return _set_suspend(arguments, False, "resuming from its last checkpoint")


def _set_suspend(arguments: Namespace, value: bool, outcome: str) -> int:
    if arguments.namespace is None and Home.from_env().has(arguments.name):
        raise ConfigError(
            f"{arguments.name}: was run on this machine",
            hint="Ctrl-C suspends a `dstj run`, the same command resumes it; --namespace means a job in a cluster",
        )

    async def change(server: "ApiServer") -> None:
        job = await server.job(arguments.name)
        phase, name = (job.get("status") or {}).get("phase"), f"job {server.namespace}/{arguments.name}"
        if phase in ("Succeeded", "Failed"):
            raise ConfigError(f"{name}: {phase} already", hint="give a new job another name, or delete this one first")
        if job["spec"].get("suspend", False) is value:
            say(f"{name}: unchanged, suspend is {str(value).lower()} already")
            return
        await server.suspend(arguments.name, value)
        say(f"{name}: {outcome}")
        say(f"next: dstj status {arguments.name} -n {server.namespace}")

    ask(change, arguments.namespace)
    return ExitCode.DONE

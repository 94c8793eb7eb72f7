"""Talks to an API server: objects in and out, and every refusal as one line with the way out."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp
import yaml
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from deepseek_operator.api.names import API_VERSION, GROUP, KIND, PLURAL
from deepseek_operator.controller.client import APPLY, DEADLINE_S, AnswerError, Api, ApiError, error_text, path
from deepseek_operator.jobs.spec import MAX_NAME_LENGTH
from deepseek_trainer.contract.errors import ConfigError, JobError, TryAgainError
from deepseek_trainer.contract.foreign import named
from dstj.jobfile import Manifest
from dstj.problems import is_label

FIELD_MANAGER: Final = "dstj"
MERGE: Final = "application/merge-patch+json"
_ENDLESS: Final = aiohttp.ClientTimeout(total=None, sock_connect=DEADLINE_S)  # a log that is followed


@dataclass(frozen=True, slots=True)
class Target:
    """The cluster and namespace of the kubeconfig's current context."""

    context: str
    url: str
    namespace: str


@asynccontextmanager
async def connected(kubeconfig: str, namespace: str | None) -> AsyncIterator["ApiServer"]:
    """The API server of the current context.  Raises ConfigError if the kubeconfig does not lead to one."""
    configuration = Configuration()
    try:
        loader = await config.load_kube_config(kubeconfig, client_configuration=configuration)
        context = loader.current_context
        own = context["context"].get("namespace")
        client = ApiClient(configuration)
    except (config.ConfigException, yaml.YAMLError, OSError, AttributeError, TypeError, KeyError, ValueError) as error:
        raise ConfigError(
            f"kubeconfig {kubeconfig}: cannot be used: {_one_line(str(error)) or type(error).__name__}",
            hint="`kubectl config get-contexts` lists what it holds; KUBECONFIG names another; dstj run needs none",
        ) from None
    async with client:
        yield ApiServer(client, Target(context["name"], configuration.host, namespace or own or "default"))


class ApiServer:
    """One namespace of a cluster.  Every method raises JobError for what goes wrong there or on the way."""

    def __init__(self, client: ApiClient, target: Target) -> None:
        self._client, self._api, self.target = client, Api(client), target

    @property
    def namespace(self) -> str:
        return self.target.namespace

    async def job(self, name: str) -> Manifest:
        if not is_label(name, MAX_NAME_LENGTH):
            raise ConfigError(f"{named(name)} cannot name a job: use a-z, 0-9 and '-', at most {MAX_NAME_LENGTH}")
        with self._explained(f"job {name}"):
            found = await self._api.get(path(API_VERSION, KIND, self.namespace, name))
        if found is None:
            raise ConfigError(
                f"no job {named(name)} was run here, nor is one in namespace {self.namespace} ({self.target.context})",
                hint=f"dstj status -n {self.namespace} lists the jobs there; dstj status those that were run here",
            )
        return found

    async def jobs(self) -> tuple[Manifest, ...]:
        with self._explained(f"jobs in {self.namespace}"):
            return await self._api.items(API_VERSION, KIND, self.namespace)

    async def pods(self, selector: str) -> tuple[Manifest, ...]:
        with self._explained(f"pods in {self.namespace}"):
            return await self._api.items("v1", "Pod", self.namespace, labelSelector=selector)

    async def apply(self, manifest: Manifest, *, dry_run: bool) -> tuple[Manifest | None, Manifest]:
        """Apply server-side, taking no field from others; returns the object before, None if it is new, and after."""
        meta = manifest["metadata"]
        where = path(API_VERSION, manifest["kind"], meta.get("namespace", ""), meta["name"])
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"} | ({"dryRun": "All"} if dry_run else {})
        with self._explained(meta["name"]):
            before = await self._api.get(where)
            return before, await self._api.request("PATCH", where, query, manifest, content_type=APPLY)

    async def suspend(self, name: str, value: bool) -> None:
        where = path(API_VERSION, KIND, self.namespace, name)
        with self._explained(f"job {name}"):
            body = {"spec": {"suspend": value}}
            await self._api.request("PATCH", where, {"fieldManager": FIELD_MANAGER}, body, content_type=MERGE)

    async def log(self, pod: str, container: str, *, follow: bool) -> AsyncIterator[str]:
        """The lines of a container that has started; with `follow`, until it ends."""
        with self._explained(f"log of {pod}"):
            prepared = await self._client.param_serialize(
                "GET",
                path("v1", "Pod", self.namespace, pod, "log"),
                query_params=[("container", container), ("follow", str(follow).lower())],
                auth_settings=["BearerToken"],
            )
            answer = await self._client.call_api(*prepared, _request_timeout=_ENDLESS)
            async with answer.response:
                if answer.status != 200:
                    raise ApiError(answer.status, error_text(await answer.read()))
                async for line in answer.response.content:
                    yield line.decode(errors="replace").rstrip("\r\n")

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except AnswerError as error:
            raise _refusal(what, error, self.target) from error
        except TimeoutError as error:
            raise self._unreachable(f"no answer within {DEADLINE_S:.0f} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(_one_line(str(error))) from error

    def _unreachable(self, reason: str) -> TryAgainError:
        hint = "`kubectl cluster-info` asks the same server; `kubectl config use-context NAME` chooses another"
        return TryAgainError(f"{self.target.url} (context {self.target.context}): {reason}", hint=hint)


def _refusal(what: str, error: AnswerError, target: Target) -> JobError:
    """The error, with a way out, that an answer other than success means."""
    kind: type[JobError] = ConfigError
    match error.status:
        case 401:
            hint = f"log in to {target.context} again; `kubectl auth whoami` shows as whom"
        case 403:
            hint = f"`kubectl auth can-i --list -n {target.namespace}` lists what you may do"
        case 404:
            crd = f"kubectl get crd {PLURAL}.{GROUP}"
            hint = f"is the operator installed (`{crd}`), and does the namespace exist?"
        case 409 if "conflict" in error.message:
            take = f"kubectl apply --server-side --force-conflicts --field-manager={FIELD_MANAGER} -f FILE"
            hint = f"leave these fields out of the file, or take them over: {take}"
        case status if status in {409, 429} or status >= 500:
            kind, hint = TryAgainError, "give the same command again; `kubectl get --raw /readyz` asks for its health"
        case _:
            hint = "put the file right and give the same command again"
    return kind(f"{what}: {_one_line(error.message)}", hint=hint)


def _one_line(text: str) -> str:
    return " ".join(text.split())

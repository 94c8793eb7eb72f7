"""Makes and changes the objects of an owner, and touches nobody else's.

Every object that the operator makes goes through here, whatever its kind.  An object that is not there is created by a
request that fails if it is there after all.  One that is there is read first.  Only if it was made for the same owner,
it is applied by force, on condition that it is still the object that was read.
"""

from typing import Final

from deepseek_operator.controller.client import METADATA, Api, ApiError, path
from deepseek_operator.controller.reconcile import RefusedError
from deepseek_operator.objects.kind import AnyKind
from deepseek_operator.objects.observed import Manifest
from deepseek_operator.objects.ownership import Standing, standing, whose
from deepseek_operator.objects.plan import Cause, Refusal

# After these answers to a write no retry helps until somebody acts: bad request, forbidden (by a quota, by admission,
# for want of rights) and unprocessable (an invalid or immutable field).
REFUSALS: Final = frozenset({400, 403, 422})
_CONFLICT: Final = 409
_LEAVING: Final = {
    True: "is being deleted",
    False: "still belongs to an earlier job of this name, which is being deleted",
}
_WAY_OUT: Final = "nothing of it was changed; delete it, or make the job anew under another name"


async def apply(api: Api, kind: AnyKind, manifest: Manifest, *, is_new: bool) -> None:
    """Create or change an object.  Raises RefusedError.  `is_new`: it is believed that nothing has its name."""
    if is_new and await _is_created(api, manifest):
        return
    for is_last in (False, False, True):
        try:
            await _create_or_change(api, kind, manifest)
            return
        except ApiError as error:  # somebody wrote meanwhile: kube-controller-manager does, to a young worker job
            if is_last or error.status != _CONFLICT:
                raise


async def _create_or_change(api: Api, kind: AnyKind, manifest: Manifest) -> None:
    found = await _read(api, manifest)
    if found is None:
        await _create(api, manifest)
    else:
        _require_ours(kind, manifest, found)
        await _change(api, manifest, found)


async def _is_created(api: Api, manifest: Manifest) -> bool:
    """Try to create the object.  False: it has to be looked at, since a quota refuses even what is there already."""
    try:
        await api.create(manifest)
    except ApiError as error:
        if error.status not in {_CONFLICT, *REFUSALS}:
            raise
        return False
    return True


async def _read(api: Api, manifest: Manifest) -> Manifest | None:
    meta = manifest["metadata"]
    where = path(manifest["apiVersion"], manifest["kind"], meta["namespace"], meta["name"])
    try:
        return await api.get(where, accept=METADATA)
    except ApiError as error:
        raise _refusal(manifest, error, Cause.REFUSED) from error


async def _create(api: Api, manifest: Manifest) -> None:
    try:
        await api.create(manifest)
    except ApiError as error:
        raise _refusal(manifest, error, Cause.REFUSED) from error


def _require_ours(kind: AnyKind, manifest: Manifest, found: Manifest) -> None:
    """Raise RefusedError unless `found` was made for the owner of `manifest` and stays."""
    what = _name_of(manifest)
    match standing(found, manifest, kind):
        case Standing.LEAVING:
            raise RefusedError(Refusal(Cause.LEAVING, f"{what} {_LEAVING['deletionTimestamp' in found['metadata']]}"))
        case Standing.FOREIGN:
            raise RefusedError(Refusal(Cause.TAKEN, f"{what} is somebody else's: {whose(found)}; {_WAY_OUT}"))


async def _change(api: Api, manifest: Manifest, found: Manifest) -> None:
    """Apply over the object that was found.  The API server answers 409 if it is another one by now, or gone.

    The version says this before the API server looks at the object, the uid where the object is gone.
    """
    meta = manifest["metadata"] | {field: found["metadata"][field] for field in ("uid", "resourceVersion")}
    try:
        await api.apply(manifest | {"metadata": meta})
    except ApiError as error:
        raise _refusal(manifest, error, Cause.CHANGE_REFUSED) from error


def _refusal(manifest: Manifest, error: ApiError, cause: Cause) -> Exception:
    """`error`, or a RefusedError if no retry helps."""
    if error.status not in REFUSALS:
        return error
    return RefusedError(Refusal(cause, f"{_name_of(manifest)}: {error.message}"))


def _name_of(manifest: Manifest) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"

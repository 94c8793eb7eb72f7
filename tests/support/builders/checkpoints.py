"""Local jobs with checkpoints that the trainer's own store wrote."""

from dstj.local.store import store
from support.builders.cli import a_job, job_home
from support.builders.vault import JOB, KEK, a_state, a_store

KEY = {"encryption": {"keyRef": {"secretName": "s"}}}


def a_key(place, key=KEK):
    """The key as `dstj keys generate --secret s` would have left it."""
    file = place / ".dstj/secrets/s/kek"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(key.material)
    file.chmod(0o600)
    return file.parent


def a_run(*, sealed, steps=(10, 20)):
    """A job with a checkpoint for each step, and its work volume."""
    home = job_home()
    namespace, name = JOB.split("/")
    job = a_job(checkpoint=KEY if sealed else {})
    store(home, job | {"metadata": {"namespace": namespace, "name": name}, "status": {}})
    home.paths.work.mkdir()
    checkpoints = a_store(home.paths.work, sealed=sealed)
    for step in steps:
        checkpoints.save(step, a_state(step), {})
    return home.paths.work

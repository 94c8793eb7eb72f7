"""Places on volumes of the job's namespace."""

from pathlib import PurePosixPath
from typing import Annotated, ClassVar

from pydantic import Field

from deepseek_trainer.contract.rules import Model, Rule

DnsName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]


RelativePath = Annotated[str, Field(max_length=1024)]


def stays_inside(path: str) -> bool:
    """Whether a relative path can only name something below the directory it starts from."""
    parts = PurePosixPath(path).parts
    return not path.startswith("/") and ".." not in parts


class VolumePath(Model):
    """A file or directory on an existing PersistentVolumeClaim of the job's namespace."""

    claim_name: Annotated[
        DnsName, Field(description="PersistentVolumeClaim in the job's namespace; mounted read-only.")
    ]
    path: Annotated[RelativePath, Field(description="File or directory inside the volume.")] = ""

    rules: ClassVar = (
        Rule(
            "!self.path.startsWith('/') && !self.path.split('/').exists(p, p == '..')",
            "path must be relative and must not contain '..'",
            lambda self: stays_inside(self.path),
        ),
    )

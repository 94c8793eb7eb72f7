"""`python tests/helm/readme.py [--check]`: write the table of values of the chart's README from values.yaml.

Each value's description is the comment above it that starts with `# --`.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

CHART: Final = Path(__file__).resolve().parents[2] / "helm" / "deepseek-operator"
README: Final = CHART / "README.md"
HEAD: Final = "| value | default | meaning |\n| --- | --- | --- |\n"


def described(text: str) -> Iterator[tuple[str, str]]:
    """Path and description of each described value, in the file's order."""
    parents: list[str] = []
    description = ""
    for line in text.splitlines():
        indent, body = len(line) - len(line.lstrip()), line.strip()
        if body.startswith("# -- "):
            description = body.removeprefix("# -- ")
        elif found := re.match(r"([A-Za-z]\w*):", body):
            parents[indent // 2 :] = [found[1]]
            if description:
                yield ".".join(parents), description
            description = ""


def default(values: Any, path: str) -> Any:
    for name in path.split("."):
        values = values[name]
    return values


def table(text: str) -> str:
    values = yaml.safe_load(text)
    rows = (f"| `{path}` | `{json.dumps(default(values, path))}` | {words} |" for path, words in described(text))
    return HEAD + "\n".join(rows) + "\n"


def wanted() -> str:
    """The README with the table as it should be."""
    before, rest = README.read_text().split(HEAD)
    after = rest[rest.index("\n\n") + 1 :]
    return before + table((CHART / "values.yaml").read_text()) + after


def main() -> int:
    if README.read_text() == wanted():
        return 0
    if "--check" in sys.argv:
        sys.stderr.write(f"{README} is stale: run `make docs` and read the diff\n")
        return 1
    README.write_text(wanted())
    return 0


if __name__ == "__main__":
    sys.exit(main())

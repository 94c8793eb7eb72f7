"""Which reader reads a file, by its suffix; and which files beside the records are known not to be any."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from deepseek_trainer.contract.data import Encoding
from deepseek_trainer.data.formats.delimited import COMMA, TAB, delimited
from deepseek_trainer.data.formats.jsons import json_file
from deepseek_trainer.data.formats.parquet import parquet_table
from deepseek_trainer.data.formats.text import whole_text
from deepseek_trainer.data.formats.unpacking import PACKED
from deepseek_trainer.data.reading import Reader

TEXT: Final = ".txt"
ALIAS: Final = ".ndjson"  # of .jsonl, which messages speak of
_DESCRIBE: Final = re.compile(
    r"(readme|licen[cs]e|notice|copying|authors|citation|changelog|datasheet)(\.(txt|html?|bib|cff|ya?ml|pdf))?"
    r"|.*\.(md|rst|sha256|sha512|md5)|(sha256|sha512|md5)sums?(\.txt)?"
    r"|dataset_infos?\.json|dataset_dict\.json|_success",
    re.IGNORECASE,
)

_CONVERSIONS: Final = {
    (".zip", ".tar", ".tgz", ".7z", ".rar"): "unpack the archive",
    (".bz2", ".xz", ".lz4"): "unpack it, or pack it with gzip or zstd",
    (".xls", ".xlsx", ".ods"): "export the sheet as CSV",
    (".arrow", ".feather"): "write it as Parquet, for example by datasets' to_parquet()",
    (".pdf", ".doc", ".docx", ".html", ".htm", ".xml", ".epub"): "extract the texts, into .txt or JSON Lines",
    (".yaml", ".yml", ".pkl", ".npy", ".npz", ".avro", ".orc", ".db", ".sqlite"): "write it as JSON Lines or Parquet",
}


def by_suffix(encoding: Encoding, text_field: str | None) -> dict[str, Reader]:
    """The readers of texts by suffix, each packed as well.  `text_field`: of records that are a file each."""
    objects = json_file(encoding)
    plain: dict[str, Reader] = {
        ".jsonl": objects,
        ".json": objects,
        ".csv": delimited(COMMA, encoding),
        ".tsv": delimited(TAB, encoding),
        ".parquet": parquet_table,
    }
    if text_field is not None:
        plain[TEXT] = whole_text(text_field, encoding)
    plain[ALIAS] = objects
    return plain | packed(plain)


def packed(plain: Mapping[str, Reader]) -> dict[str, Reader]:
    return {suffix + pack: reader for suffix, reader in plain.items() for pack in PACKED}


def describes(file: Path) -> bool:
    """Whether a file is one of those that come with data and hold no records, by its name."""
    return _DESCRIBE.fullmatch(file.name) is not None


def conversion(names: Iterable[str]) -> str:
    """How files that are not read become such that are; empty where nobody knows."""
    suffixes = {Path(name).suffix.lower() for name in names}
    return next((how for known, how in _CONVERSIONS.items() if suffixes & {*known}), "")

"""How good a model's choices among labels are.

Shapes: P prompts or images, L labels.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Json = dict[str, Any]
Scores = npt.NDArray[np.float64]

HEADLINES: Final = ("total", "accuracy", "macroF1", "rocAuc")  # of a classification; the last may be missing


def classification(truth: Sequence[str], scores: Sequence[Sequence[float]], labels: Sequence[str]) -> Json:
    """How good the labels with the highest scores are.  `truth`: the right label for each of P >= 1 prompts.

    {"labels", "total", "accuracy", "macroF1", "rocAuc", "perClass", "confusion"}.  Macro F1 is over the labels that
    are right or chosen for a prompt.  `confusion[i][j]`: prompts of label i for which j was chosen.  "rocAuc" is the
    second of two labels', or the mean of each label against the rest; it is left out where only one label occurs.
    """
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score  # noqa: PLC0415 for the jobs with labels

    scores_PL = np.array(scores)
    right_P = np.array([labels.index(label) for label in truth])
    chosen_P = scores_PL.argmax(axis=1)
    area = _roc_auc(right_P, scores_PL)
    return {
        "labels": list(labels),
        "total": len(truth),
        "accuracy": float(accuracy_score(right_P, chosen_P)),
        "macroF1": float(f1_score(right_P, chosen_P, average="macro", zero_division=0)),
        **({} if area is None else {"rocAuc": area}),
        "perClass": _per_class(right_P, chosen_P, len(labels)),
        "confusion": confusion_matrix(right_P, chosen_P, labels=range(len(labels))).tolist(),
    }


def _per_class(right_P: npt.NDArray[Any], chosen_P: npt.NDArray[Any], count: int) -> list[Json]:
    """The figures of each label, in order; 0 where nothing can be divided."""
    from sklearn.metrics import precision_recall_fscore_support  # noqa: PLC0415 as above

    columns = precision_recall_fscore_support(right_P, chosen_P, labels=range(count), zero_division=0)
    names = ("precision", "recall", "f1", "support")
    return [dict(zip(names, row, strict=True)) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _roc_auc(right_P: npt.NDArray[Any], scores_PL: Scores) -> float | None:
    """None if no label has prompts on both sides, or a diverged model gives scores that are no numbers."""
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415 as above

    if not np.isfinite(scores_PL).all():
        return None
    count = scores_PL.shape[1]
    labels = [1] if count == 2 else range(count)
    areas = [
        roc_auc_score(right_P == label, _log_odds(scores_PL, label))
        for label in labels
        if 0 < (right_P == label).sum() < len(right_P)
    ]
    return float(np.mean(areas)) if areas else None


def _log_odds(scores_PL: Scores, label: int) -> Scores:
    """Log-odds of `label` against all others, shape P.  They order as its probability, even where that rounds to 1."""
    others_P: Scores = np.logaddexp.reduce(np.delete(scores_PL, label, axis=1), axis=1)
    return scores_PL[:, label] - others_P

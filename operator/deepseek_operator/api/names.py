"""Names: those of the API and its kinds, and the operator's own."""

from typing import Final

GROUP: Final = "training.dstj.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "DeepSeekTrainingJob"
PLURAL: Final = "deepseektrainingjobs"
PROFILE_KIND: Final = "TrainingProfile"
PROFILE_PLURAL: Final = "trainingprofiles"

# The operator as a field manager, as the source of events, as the holder of its Lease, and in the label
# app.kubernetes.io/managed-by of what it makes.
OPERATOR: Final = "deepseek-operator"

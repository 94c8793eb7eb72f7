"""The names of the API and of its kinds, and the name of the operator itself."""

from typing import Final

GROUP: Final = "training.dstj.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "DeepSeekTrainingJob"
PLURAL: Final = "deepseektrainingjobs"
PROFILE_KIND: Final = "TrainingProfile"
PROFILE_PLURAL: Final = "trainingprofiles"

# The operator's name as a field manager and as the source of events, of its Lease, and in the label
# app.kubernetes.io/managed-by of everything that it makes.
OPERATOR: Final = "deepseek-operator"

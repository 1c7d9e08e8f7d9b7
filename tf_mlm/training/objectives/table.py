"""The objectives by name. To add one, add its file and its entry."""

from tf_mlm.training.objectives.base import Objective
from tf_mlm.training.objectives.labels import Labels
from tf_mlm.training.objectives.masked import Masked

OBJECTIVES: dict[str, Objective] = {
    "masked": Masked(),
    "classification": Labels("classification", headline="accuracy"),
    "token_classification": Labels("token_classification", headline="entity_f1"),
}
"""By the values of `objective.name`."""

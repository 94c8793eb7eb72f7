"""Which machines the pods of a profile may use, in the shapes of core/v1."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from deepseek_operator.jobs.resources import LabelValue, QualifiedName
from deepseek_trainer.contract.rules import Model, Rule


class Toleration(Model):
    """As in core/v1."""

    key: Annotated[str | None, Field(max_length=317, description="Taint key.")] = None
    operator: Annotated[str | None, Field(pattern=r"^(Exists|Equal)$", description="Exists or Equal.")] = None
    value: Annotated[LabelValue | None, Field(description="Taint value.")] = None
    effect: Annotated[
        str | None, Field(pattern=r"^(NoSchedule|PreferNoSchedule|NoExecute)$", description="Taint effect.")
    ] = None


class LabelOperator(StrEnum):
    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"
    GT = "Gt"
    LT = "Lt"


class NodeRequirement(Model):
    """A requirement on a label of the machine."""

    key: Annotated[QualifiedName, Field(description="Label of the machine.")]
    operator: Annotated[LabelOperator, Field(description="How the label is compared with the values.")]
    values: Annotated[
        tuple[LabelValue, ...] | None,
        Field(max_length=64, description="For In and NotIn one or more, for Gt and Lt one integer, else none."),
    ] = None

    rules: ClassVar = (
        Rule(
            "self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0"
            " : self.operator in ['Gt', 'Lt'] ? has(self.values) && size(self.values) == 1"
            " && self.values[0].matches('^[0-9]+$') : !has(self.values) || size(self.values) == 0",
            "operator In and NotIn need values, Gt and Lt one integer in values, Exists and DoesNotExist no values",
            lambda self: self._fits,
        ),
    )

    @property
    def _fits(self) -> bool:
        values = self.values or ()
        if self.operator in {LabelOperator.IN, LabelOperator.NOT_IN}:
            return bool(values)
        if self.operator in {LabelOperator.GT, LabelOperator.LT}:
            return len(values) == 1 and values[0].isascii() and values[0].isdigit()
        return not values


class NodeTerm(Model):
    """Requirements that hold together."""

    match_expressions: Annotated[
        tuple[NodeRequirement, ...], Field(min_length=1, max_length=16, description="All of them must hold.")
    ]


class NodeTerms(Model):
    """Terms of which one must hold."""

    node_selector_terms: Annotated[
        tuple[NodeTerm, ...], Field(min_length=1, max_length=8, description="One of them must hold.")
    ]


class PreferredNodes(Model):
    """Machines that are preferred."""

    weight: Annotated[int, Field(ge=1, le=100, description="How much.")]
    preference: Annotated[NodeTerm, Field(description="Which machines.")]


class NodeAffinity(Model):
    """As in core/v1, by labels of machines."""

    required_during_scheduling_ignored_during_execution: Annotated[
        NodeTerms | None, Field(description="Machines that may be used.")
    ] = None
    preferred_during_scheduling_ignored_during_execution: Annotated[
        tuple[PreferredNodes, ...] | None, Field(max_length=8, description="Machines that are preferred.")
    ] = None


class Affinity(Model):
    """As in core/v1, for machines.  Pods of a job are spread, or kept together, by the operator."""

    node_affinity: Annotated[NodeAffinity | None, Field(description="Machines that may be used or are preferred.")] = (
        None
    )


class Unsatisfiable(StrEnum):
    SCHEDULE_ANYWAY = "ScheduleAnyway"
    DO_NOT_SCHEDULE = "DoNotSchedule"


class SpreadConstraint(Model):
    """How the pods of an attempt spread, as in core/v1."""

    topology_key: Annotated[
        QualifiedName, Field(description="Label of machines, such as kubernetes.io/hostname or one of a rack.")
    ]
    when_unsatisfiable: Annotated[
        Unsatisfiable, Field(description="Whether pods wait rather than spread less evenly.")
    ] = Unsatisfiable.SCHEDULE_ANYWAY
    max_skew: Annotated[int, Field(ge=1, le=1000, description="How many pods more than elsewhere there may be.")] = 1

"""Classifying images: how records become pixels, how pixels vary, which models are made from scratch."""

from typing import Annotated, ClassVar, Final

from pydantic import Field

from deepseek_trainer.contract.rules import Model, Rule

MAX_SIDE: Final = 2048  # [pixels] of an image as the model sees it
GROUPS: Final = (1, 2, 4, 8, 16, 32)

FieldName = Annotated[str, Field(min_length=1, max_length=63)]
Side = Annotated[int, Field(ge=8, le=MAX_SIDE)]


class Augmentation(Model):
    """How training images vary.  What is not given is left out; evaluation sees images as they are."""

    rotation_degrees: Annotated[
        float | None, Field(gt=0, le=180, description="Turned by up to this angle, in either direction.")
    ] = None
    crop: Annotated[
        float | None,
        Field(ge=0.1, lt=1, description="A part is enlarged to the whole: at least this share of both sides is kept."),
    ] = None
    shift: Annotated[
        float | None, Field(gt=0, le=0.5, description="Moved by up to this share of each side; edges are repeated.")
    ] = None
    brightness: Annotated[
        float | None, Field(gt=0, le=1, description="All values are multiplied by 1 - this to 1 + this.")
    ] = None
    contrast: Annotated[
        float | None,
        Field(gt=0, le=1, description="Distances from the image's mean are multiplied by 1 - this to 1 + this."),
    ] = None
    mix_up_alpha: Annotated[
        float | None,
        Field(
            gt=0,
            le=16,
            description="MixUp (arXiv:1710.09412): an image and its classes are blended with another one of the "
            "batch, by a share from Beta(alpha, alpha).",
        ),
    ] = None
    cut_mix_alpha: Annotated[
        float | None,
        Field(
            gt=0,
            le=16,
            description="CutMix (arXiv:1905.04899): a box is taken from another image of the batch, its area from "
            "Beta(alpha, alpha). With mixUpAlpha, each image gets one of the two, by equal chance.",
        ),
    ] = None


class ImagesSpec(Model):
    """How images are read: PNG and JPEG files in a folder for each class, or Parquet tables."""

    height: Annotated[Side, Field(description="Rows of pixels; every image is resized, whatever its proportions.")]
    width: Annotated[Side, Field(description="Columns of pixels.")]
    channels: Annotated[int, Field(ge=1, le=3, description="1: grey; 3: red, green and blue.")] = 3
    image_field: Annotated[FieldName, Field(description="Column of a table with the bytes of a PNG or JPEG file.")] = (
        "image"
    )
    label_field: Annotated[
        FieldName,
        Field(description="Column with the class; of a file its folder, the first below train, stands for it."),
    ] = "label"
    augmentation: Annotated[Augmentation | None, Field(description="How training images vary. Default: not.")] = None

    rules: ClassVar = (
        Rule(
            "self.channels != 2",
            "channels must be 1 (grey) or 3 (colour)",
            lambda self: self.channels != 2,
        ),
        Rule(
            "self.imageField != self.labelField",
            "imageField and labelField must differ: one has the picture, the other its class",
            lambda self: self.image_field != self.label_field,
        ),
    )


class Stage(Model):
    """Residual blocks that see images of one size."""

    width: Annotated[int, Field(ge=8, le=8192, description="Channels between blocks; inside a block, a quarter.")]
    blocks: Annotated[int, Field(ge=1, le=128, description="Blocks of three convolutions.")]


class ResNet(Model):
    """A residual network with group normalisation, BiT (arXiv:1912.11370); its stem makes a quarter of each side."""

    stem_width: Annotated[int, Field(ge=8, le=1024, description="Channels of the first convolution.")]
    stages: Annotated[
        tuple[Stage, ...],
        Field(min_length=1, max_length=8, description="Each but the first begins with half of each side."),
    ]
    groups: Annotated[int, Field(ge=1, le=32, description="Groups of channels that are normalised together.")] = 32

    rules: ClassVar = (
        Rule(
            "self.groups in [1, 2, 4, 8, 16, 32]",
            "groups must be a power of two",
            lambda self: self.groups in GROUPS,
        ),
        Rule(
            "self.stemWidth % self.groups == 0 && self.stages.all(s, s.width % (4 * self.groups) == 0)",
            "stemWidth must be a multiple of groups, and each width of stages one of 4 x groups",
            lambda self: (
                self.stem_width % self.groups == 0
                and all(stage.width % (4 * self.groups) == 0 for stage in self.stages)
            ),
        ),
    )


class VisionTransformer(Model):
    """A Vision Transformer, ViT (arXiv:2010.11929)."""

    patch_size: Annotated[int, Field(ge=2, le=256, description="Side of the squares that an image is cut into.")]
    hidden_size: Annotated[int, Field(ge=8, le=8192, description="Width of the residual stream.")]
    num_layers: Annotated[int, Field(ge=1, le=256, description="Encoder layers.")]
    num_heads: Annotated[int, Field(ge=1, le=256, description="Attention heads; hiddenSize is a multiple of it.")]
    intermediate_size: Annotated[int, Field(ge=8, le=65536, description="Width of the feed-forward layers.")]

    rules: ClassVar = (
        Rule(
            "self.hiddenSize % self.numHeads == 0",
            "hiddenSize must be a multiple of numHeads",
            lambda self: self.hidden_size % self.num_heads == 0,
        ),
    )


class Vision(Model):
    """An image classifier trained from scratch."""

    resnet: Annotated[ResNet | None, Field(description="A residual network.")] = None
    vit: Annotated[VisionTransformer | None, Field(description="A Vision Transformer.")] = None

    rules: ClassVar = (
        Rule(
            "has(self.resnet) != has(self.vit)",
            "give exactly one of resnet and vit",
            lambda self: (self.resnet is None) != (self.vit is None),
        ),
    )


# Of a job as a whole, which the models above cannot see.
JOB_RULES: Final = (
    Rule(
        "self.data.format == 'Images' ? !has(self.model.architecture) : !has(self.model.vision)",
        "data.format Images trains model.vision or model.base, every other one model.architecture or model.base",
        lambda self: (self.model.architecture if self.data.format == "Images" else self.model.vision) is None,
    ),
    Rule(
        "!has(self.model.vision) || !has(self.model.vision.vit) || !has(self.data.images)"
        " || (self.data.images.height % self.model.vision.vit.patchSize == 0"
        " && self.data.images.width % self.model.vision.vit.patchSize == 0)",
        "data.images.height and data.images.width must be multiples of model.vision.vit.patchSize",
        lambda self: _fits_patches(self.data.images, self.model.vision),
    ),
    Rule(
        "self.data.format != 'Images' || !has(self.model.chatTemplate)",
        "model.chatTemplate is of language models: drop it with data.format Images",
        lambda self: self.data.format != "Images" or self.model.chat_template is None,
    ),
    Rule(
        "self.data.format != 'Images' || (self.method.type == 'Full' && !has(self.method.frozenLayers))",
        "data.format Images trains all weights: set method.type: Full and drop method.frozenLayers",
        lambda self: self.data.format != "Images" or (self.method.type == "Full" and self.method.frozen_layers is None),
    ),
    Rule(
        "self.data.format != 'Images'"
        " || (self.optimization.strategy in ['DDP', 'FSDP'] && self.optimization.optimizer != 'Muon')",
        "data.format Images is trained with optimization.strategy DDP or FSDP, and without optimization.optimizer Muon",
        lambda self: (
            self.data.format != "Images"
            or (self.optimization.strategy in ("DDP", "FSDP") and self.optimization.optimizer != "Muon")
        ),
    ),
    Rule(
        "self.data.format != 'Images' || (self.optimization.dropout == 0.0 && !self.optimization.compile"
        " && self.optimization.logitsMebibytes == 256)",
        "optimization.dropout, compile and logitsMebibytes are of language models: drop them with data.format Images",
        lambda self: (
            self.data.format != "Images"
            or not (self.optimization.dropout or self.optimization.compile or self.optimization.logits_mebibytes != 256)
        ),
    ),
    Rule(
        "self.data.format != 'Images' || (self.evaluation.generations == 4 && self.evaluation.maxNewTokens == 48)",
        "evaluation.generations and maxNewTokens are of language models: drop them with data.format Images",
        lambda self: (
            self.data.format != "Images" or (self.evaluation.generations == 4 and self.evaluation.max_new_tokens == 48)
        ),
    ),
)


def _fits_patches(images: ImagesSpec | None, vision: Vision | None) -> bool:
    if images is None or vision is None or vision.vit is None:
        return True
    return images.height % vision.vit.patch_size == 0 and images.width % vision.vit.patch_size == 0

"""What other trainers call the fields of a job file and their values.

From transformers' TrainingArguments, TRL, peft, DeepSpeed, LLaMA-Factory and axolotl.  A name stands here without case,
'_' and '-'.
"""

from collections.abc import Iterable
from typing import Final

_ROWS = "optimization.microBatchSize (rows of a process at once; optimization.globalBatchSize are those of a step)"
_STEP = "optimization.globalBatchSize (all rows of a step, however many processes and micro-batches there are)"
_PRECISION = "optimization.precision: BF16, FP16 or FP32"
_TYPE = "method.type: LoRA, QLoRA or Full"
_TARGETS = "method.lora.targetModules"
_STRATEGY = "optimization.strategy: FSDP, ZeRO1, ZeRO2 or ZeRO3"
_BASE = "model.base (claimName and path of a volume; nothing is downloaded)"
_DATA = "data.train (claimName and path of a volume; nothing is downloaded)"
_EVALUATION = "evaluation.intervalSteps"
_SAVES = "checkpoint.interval.steps"
_TELEMETRY = "nothing: events, TensorBoard files and metrics are always written, and nothing is sent out"
_PACKING = "nothing: records are always packed into rows of data.sequenceLength tokens"
_WORKERS = "nothing: batches are made ahead by themselves"
_PLACE = "checkpoint.volume (the result lies there below export/)"
_ADAMW = "nothing: AdamW's betas are 0.9 and 0.95, its epsilon is torch's"
_ADAPTER = "model.adapter (claimName and path of a volume; it is added to model.base)"
_FROZEN = "method.frozenLayers"
_NO_KTO = "nothing: KTO is not learned, method.preference.loss has DPO and ORPO, which learn from pairs"
_NO_REWARDS = "nothing: a model does not learn from rewards, method.preference learns from pairs of given answers"
_ODDS = "method.preference.oddsRatioWeight (with method.preference.loss: ORPO)"
_SAMPLES = "evaluation.generations and evaluation.maxNewTokens"
_TEMPLATE = "model.chatTemplate (Jinja text; by default the base model's tokenizer brings it)"

# Each reads on after "give", unless it begins with "nothing".
FIELDS: Final = {
    "adambeta1": _ADAMW,
    "adambeta2": _ADAMW,
    "adamepsilon": _ADAMW,
    "adapter": _TYPE,
    "adaptermodel": _ADAPTER,
    "adapternameorpath": _ADAPTER,
    "basemodel": _BASE,
    "batchsize": _STEP,
    "beta": "method.preference.beta (of ORPO method.preference.oddsRatioWeight)",
    "bf16": _PRECISION,
    "chattemplate": _TEMPLATE,
    "cutofflen": "data.sequenceLength",
    "dataloadernumworkers": _WORKERS,
    "dataloaderpinmemory": _WORKERS,
    "dataset": _DATA,
    "datasetdir": _DATA,
    "datasetname": _DATA,
    "datasetnumproc": _WORKERS,
    "datasets": _DATA,
    "datasettextfield": "data.textField",
    "dataseed": "optimization.seed",
    "ddpfindunusedparameters": "nothing: DDP finds out by itself",
    "deepspeed": _STRATEGY,
    "desirableweight": _NO_KTO,
    "doeval": "data.validation or data.validationFraction",
    "dora": "method.lora.dora",
    "dotrain": "nothing: a job always trains",
    "dpobeta": "method.preference.beta",
    "earlystoppingpatience": "optimization.earlyStopping.patience",
    "epoch": "optimization.epochs",
    "evaldataset": "data.validation",
    "evalsamples": "evaluation.maxRows",
    "evalsteps": _EVALUATION,
    "evalstrategy": _EVALUATION,
    "evaluationstrategy": _EVALUATION,
    "finetuningtype": _TYPE,
    "flashattention": "nothing: attention over packed rows is chosen by itself",
    "flashattn": "nothing: attention over packed rows is chosen by itself",
    "fp16": _PRECISION,
    "freezelayers": _FROZEN,
    "freezetrainablelayers": _FROZEN,
    "fsdp": "optimization.strategy: FSDP",
    "fsdpconfig": "optimization.strategy: FSDP",
    "gradientaccumulation": _STEP,
    "gradientaccumulationsteps": _STEP,
    "gradientcheckpointing": "optimization.recompute: Full or Selective",
    "gradientcheckpointingkwargs": "optimization.recompute: Full or Selective",
    "gradientclipping": "optimization.maxGradNorm",
    "gradaccumulation": _STEP,
    "gradclip": "optimization.maxGradNorm",
    "groupbylength": _PACKING,
    "grpo": _NO_REWARDS,
    "hubmodelid": "nothing: nothing leaves the cluster",
    "hubtoken": "nothing: nothing leaves the cluster",
    "klcoef": _NO_REWARDS,
    "ktochosenweight": _NO_KTO,
    "ktorejectedweight": _NO_KTO,
    "labelsmoothingfactor": "optimization.labelSmoothing",
    "loadbestmodelatend": "checkpoint.retention.keepBest",
    "loadin4bit": "method.type: QLoRA",
    "loadin8bit": "method.type: QLoRA (4 bits; there is no base in 8)",
    "loggingdir": _TELEMETRY,
    "loggingsteps": _TELEMETRY,
    "loggingstrategy": _TELEMETRY,
    "loramodeldir": _ADAPTER,
    "loraalpha": "method.lora.alpha",
    "loradropout": "method.lora.dropout",
    "lorar": "method.lora.rank",
    "lorarank": "method.lora.rank",
    "loratarget": _TARGETS,
    "loratargetlinear": "method.lora.targetModules: [all-linear]",
    "loratargetmodules": _TARGETS,
    "losstype": "method.preference.loss: DPO or ORPO",
    "lr": "optimization.learningRate",
    "lrscheduler": "optimization.schedule",
    "lrschedulerkwargs": "optimization.schedule (with cycles or decayFraction)",
    "lrschedulertype": "optimization.schedule",
    "lrwarmupsteps": "optimization.warmupSteps",
    "maxevalsamples": "evaluation.maxRows",
    "maxlength": "data.sequenceLength",
    "maxnorm": "optimization.maxGradNorm",
    "maxpromptlength": "data.sequenceLength",
    "maxseqlen": "data.sequenceLength",
    "maxseqlength": "data.sequenceLength",
    "modulestosave": "nothing: adapters leave the base as it is; method.type: Full trains its embedding",
    "metricforbestmodel": "nothing: the best step has the lowest held-out loss",
    "microbatchsize": _ROWS,
    "mixedprecision": _PRECISION,
    "model": _BASE,
    "modelid": _BASE,
    "modelname": _BASE,
    "modelnameorpath": _BASE,
    "neftunenoisealpha": "nothing: there is no noise on embeddings",
    "nepochs": "optimization.epochs",
    "nprocpernode": "trainer.numProcPerNode",
    "numepochs": "optimization.epochs",
    "numgenerations": _NO_REWARDS,
    "numgpus": "trainer.numProcPerNode",
    "numsteps": "optimization.maxSteps",
    "numtrainepochs": "optimization.epochs",
    "numworkers": _WORKERS,
    "optim": "optimization.optimizer: AdamW, AdamW8bit or Muon",
    "orpoalpha": _ODDS,
    "orpobeta": _ODDS,
    "orpolambda": _ODDS,
    "outputdir": _PLACE,
    "overwriteoutputdir": "checkpoint.resumeFrom: None",
    "packing": _PACKING,
    "padtosequencelen": _PACKING,
    "peftconfig": "method.lora",
    "perdeviceevalbatchsize": _ROWS,
    "perdevicetrainbatchsize": _ROWS,
    "ppo": _NO_REWARDS,
    "ppoepochs": _NO_REWARDS,
    "predictwithgenerate": _SAMPLES,
    "prefbeta": "method.preference.beta (of ORPO method.preference.oddsRatioWeight)",
    "prefloss": "method.preference.loss: DPO or ORPO",
    "preprocessingnumworkers": _WORKERS,
    "pushtohub": "nothing: nothing leaves the cluster",
    "quantizationbit": "method.type: QLoRA",
    "r": "method.lora.rank",
    "recompute": "optimization.recompute",
    "reportto": _TELEMETRY,
    "resumefromcheckpoint": "checkpoint.resumeFrom",
    "rewardfuncs": _NO_REWARDS,
    "rewardmodel": _NO_REWARDS,
    "rewardmodelpath": _NO_REWARDS,
    "rewardweights": _NO_REWARDS,
    "rlhf": _NO_REWARDS,
    "runname": "metadata.name",
    "samplepacking": _PACKING,
    "savestrategy": _SAVES,
    "savesteps": _SAVES,
    "savetotallimit": "checkpoint.retention.keepLast",
    "scheduler": "optimization.schedule",
    "sequencelen": "data.sequenceLength",
    "stage": "data.format: Text, Instruction or Preference",
    "targetmodules": _TARGETS,
    "template": _TEMPLATE,
    "testsize": "data.validationFraction",
    "tf32": _PRECISION,
    "tokenizer": "nothing: the base model brings it",
    "tokenizername": "nothing: the base model brings it",
    "torchcompile": "optimization.compile",
    "torchdtype": _PRECISION,
    "totalsteps": "optimization.maxSteps",
    "trainbatchsize": _STEP,
    "traindataset": _DATA,
    "trainfile": _DATA,
    "trustremotecode": "nothing: no code of a model is ever run",
    "undesirableweight": _NO_KTO,
    "usedora": "method.lora.dora",
    "usepeft": _TYPE,
    "userslora": "method.lora.rankStabilized",
    "valsetsize": "data.validationFraction",
    "valsize": "data.validationFraction",
    "wandbproject": _TELEMETRY,
    "warmup": "optimization.warmupSteps or optimization.warmupFraction",
    "warmupproportion": "optimization.warmupFraction",
    "warmupratio": "optimization.warmupFraction",
    "wd": "optimization.weightDecay",
    "zerostage": _STRATEGY,
}

VALUES: Final = {
    "adamw8bit": "AdamW8bit",
    "adamwbnb8bit": "AdamW8bit",
    "adamwtorch": "AdamW",
    "adamwtorchfused": "AdamW",
    "alpaca": "Instruction",
    "bfloat16": "BF16",
    "chat": "Instruction",
    "chatml": "Instruction",
    "constantwithwarmup": "Constant",
    "cosinewithrestarts": "CosineRestarts",
    "cosinewithminlr": "Cosine",
    "ddp": "DDP",
    "deepspeed": "ZeRO3",
    "dpo": "Preference",
    "orpo": "Preference",
    "sigmoid": "DPO",
    "fft": "Full",
    "float16": "FP16",
    "float32": "FP32",
    "fullfinetuning": "Full",
    "fullshard": "FSDP",
    "half": "FP16",
    "image": "Images",
    "messages": "Instruction",
    "pagedadamw8bit": "AdamW8bit",
    "pretrain": "Text",
    "pt": "Text",
    "raw": "Text",
    "reducelronplateau": "Plateau",
    "safetensors": "Merged",
    "sft": "Instruction",
    "sharegpt": "Instruction",
    "warmupstabledecay": "WSD",
    "zero": "ZeRO3",
}


def plain(name: str) -> str:
    """`name` without case, '_' and '-'."""
    return name.lower().replace("_", "").replace("-", "")


def field_for(name: str) -> str | None:
    """What to do for what another trainer calls `name`: `give optimization.epochs`.  None if nobody calls it so."""
    known = FIELDS.get(plain(name))
    return known and (known if known.startswith("nothing") else f"give {known}")


def value_for(value: object, known: Iterable[str]) -> str | None:
    """The one of `known` that is spelt like `value`, or that another trainer calls so."""
    if not isinstance(value, str):
        return None
    by_plain = {plain(each): each for each in known}
    wanted = plain(value)
    return by_plain.get(wanted) or by_plain.get(plain(VALUES.get(wanted, "")))

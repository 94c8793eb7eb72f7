"""The peak learning rate of a job that gives none, by what is trained and how.

- All weights: the default of transformers' TrainingArguments.
- Adapters: QLoRA, arXiv:2305.14314, appendix B; TRL's guide to peft. Ten times what all weights take or less, for their
  updates begin at zero and are small: https://thinkingmachines.ai/blog/lora.
- Preferences: arXiv:2305.18290, appendix B, and TRL's DPOConfig. Steps as long as those of learning answers lead the
  model away from all that it could say. Adapters again ten times that.
"""

from typing import Final

FULL: Final = 5e-5
ADAPTERS: Final = 2e-4
FULL_PREFERENCE: Final = 1e-6
ADAPTERS_PREFERENCE: Final = 1e-5


def default_rate(*, adapters: bool, preference: bool) -> float:
    if preference:
        return ADAPTERS_PREFERENCE if adapters else FULL_PREFERENCE
    return ADAPTERS if adapters else FULL


def described_rates() -> str:
    return (
        f"Full {FULL:g}, LoRA and QLoRA {ADAPTERS:g}; with data.format Preference Full {FULL_PREFERENCE:g}, LoRA and "
        f"QLoRA {ADAPTERS_PREFERENCE:g}"
    )

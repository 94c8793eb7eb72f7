"""The peak learning rate of a job that gives none, by what is trained and how.

- All weights: the default of transformers' TrainingArguments.
- Adapters: QLoRA, arXiv:2305.14314, appendix B; TRL's guide to peft. Ten times what all weights take or less, for their
  updates begin at zero and are small: https://thinkingmachines.ai/blog/lora.
- DPO: arXiv:2305.18290, appendix B, and TRL's DPOConfig. Steps as long as those of learning answers lead the model away
  from all that it could say. Adapters again ten times that.
- ORPO: arXiv:2403.07691, section 5. It learns the chosen answers, too, and takes longer steps.
"""

from typing import Final

from deepseek_trainer.contract.method import PreferenceLoss

FULL: Final = 5e-5
ADAPTERS: Final = 2e-4
OF_PREFERENCES: Final = {PreferenceLoss.DPO: (1e-6, 1e-5), PreferenceLoss.ORPO: (8e-6, 8e-5)}  # full, adapters


def default_rate(*, adapters: bool, preference: PreferenceLoss | None) -> float:
    full, of_adapters = (FULL, ADAPTERS) if preference is None else OF_PREFERENCES[preference]
    return of_adapters if adapters else full


def described_rates() -> str:
    preferences = (
        f"; by {loss} Full {full:g}, LoRA and QLoRA {adapters:g}" for loss, (full, adapters) in OF_PREFERENCES.items()
    )
    return f"Full {FULL:g}, LoRA and QLoRA {ADAPTERS:g}{''.join(preferences)}"

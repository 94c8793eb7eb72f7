import numpy as np
import torch

from deepseek_trainer.tasks.language.labels import label_scores
from deepseek_trainer.tasks.language.prompts import Prompt
from deepseek_trainer.tasks.language.tokenizer import encoded, prompt_ids
from support.builders.model import a_tokenizer, tiny_model


def test_a_label_scores_the_sum_of_its_tokens_log_probabilities_and_of_the_end_of_text():
    model, tokenizer, labels = tiny_model(), a_tokenizer(), ["the pump", "a valve is no pump", "12"]
    prompts = ["what runs at 12 bar?", "pump?"]
    found = label_scores(model, tokenizer, [Prompt(prompt, "") for prompt in prompts], labels, batch_size=4)
    expected = [[alone(model, tokenizer, prompt, label) for label in labels] for prompt in prompts]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def alone(model, tokenizer, prompt, label):
    """Without a batch, padding or a mask."""
    question, response = prompt_ids(tokenizer, prompt), [*encoded(tokenizer, [label])[0], tokenizer.eos_token_id]
    assert response[-1] == tokenizer.eos_token_id
    with torch.no_grad():
        logits_TV = model(input_ids=torch.tensor([question + response])).logits[0].double()
    return sum(float(logits_TV[len(question) - 1 + i].log_softmax(-1)[token]) for i, token in enumerate(response))


def test_scoring_leaves_the_model_in_training_mode():
    model = tiny_model().train()
    assert label_scores(model, a_tokenizer(), [], ["a", "b"], batch_size=4) == []
    label_scores(model, a_tokenizer(), [Prompt("pump?", "")], ["a", "b"], batch_size=1)
    assert model.training

"""Learning: data with masks, prompts drawn from them, losses, and the training of the models that ship."""

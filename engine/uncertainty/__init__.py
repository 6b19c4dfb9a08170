"""How unsure a model is of a mask."""

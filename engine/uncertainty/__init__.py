"""Why a model is unsure of a mask."""

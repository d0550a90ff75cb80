"""Training and models as one uses them in a notebook: `load` and `train`, which `ict_backends` exports."""

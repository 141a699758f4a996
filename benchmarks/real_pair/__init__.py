"""Two real pretrained models of different families: SmolLM2-135M-Instruct and Gemma 3 270M."""

"""The sub-commands of ``siamcuda`` that work on files of embeddings, one module each."""

"""Chat models: by a LiteLLM name, embedded, or your own."""

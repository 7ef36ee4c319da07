"""Chat models: any that LiteLLM knows, and one that runs in the process."""

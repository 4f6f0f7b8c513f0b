"""What only a GPU can show. Each proof also runs its logic on the CPU where that has a meaning, so that it runs."""

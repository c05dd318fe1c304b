"""Long work: workers and what they do."""

"""The HTTP doors; the only folder that speaks Flask."""

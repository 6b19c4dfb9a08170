"""Pictures of what the store holds."""

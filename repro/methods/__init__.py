"""What several papers share beside their idea."""

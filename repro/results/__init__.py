"""From result files to claims, tables, figures and pages."""

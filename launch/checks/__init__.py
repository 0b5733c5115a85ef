"""What `ringmark doctor` checks: one file for each family of checks."""

"""What tests of several files share: toy spaces, cases, and scripts run in this process."""

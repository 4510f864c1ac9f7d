"""Published tables that ship with the package."""

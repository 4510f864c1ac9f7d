"""What an exported model.py does beyond building its network.

The functions of `weights` and of `classify` or `detect` are copied into model.py; `runner` loads an export in a process
of its own. The modules import the standard library and torch only, and nothing of this project except each other.
"""

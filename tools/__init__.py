"""The scripts of this project, installed as `supernet_tools` behind the command `supernet`.

Each file on this floor is one command with its flags; what commands share is in `pipeline`, and `benchmarks` holds the
commands behind docs/benchmarks. Everything here may import everything else of the project; nothing imports from here.
"""

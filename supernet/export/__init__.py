"""Networks as folders that need only torch.

`expression` and `source` write readable code, `folder` writes and checks the folder, `parity` compares each artefact
with the trained network. It imports `supernet.chain` and `supernet.config`.
"""

from supernet.export.folder import check_parity, export, load_exported

__all__ = ["check_parity", "export", "load_exported"]

"""Networks as folders that need only torch.

`expression` and `source` write readable code, `runtime` holds the code that every export runs, `folder` writes the
folder, and `parity` compares each artefact with the trained network. The package imports torch, `supernet.chain`,
`supernet.space`, `supernet.config`, how `supernet.data` opens image files, and ground modules of `supernet`.
"""

from supernet.export.folder import check_parity, export, load_exported

__all__ = ["check_parity", "export", "load_exported"]

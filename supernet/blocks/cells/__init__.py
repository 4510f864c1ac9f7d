"""Cells of NASNet, PNASNet and AmoebaNet.

`graph` describes a cell without torch, `ops` lists its operations, `plain` holds the ordinary modules and `searchable`
the cells that share weights. It imports what `supernet.blocks` may import.
"""

"""Searchable blocks and the ordinary modules that they become.

`plain` holds ordinary modules that an export writes out as source; `choice`, `elastic`, `sum_cell` and `cells` hold
their searchable counterparts. It imports torch, `supernet.chain`, `supernet.space`, `supernet.checked` and
`supernet.errors`.
"""

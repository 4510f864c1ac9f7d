"""Published tables of trained networks, compressed CSV files read by `supernet.spaces.nasbench_macro`."""

"""The models of the quality benchmark: factories, and the scripts that train where weights count.

Every file has ``example_inputs()`` and one or more factories that return a module in eval mode and
give the same weights in every process. What takes long is kept in benchmarks/.cache.
"""

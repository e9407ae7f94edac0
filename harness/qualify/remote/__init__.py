"""Cells on other machines, through Dask: the executor, what it sends, and what a worker does with it.

Only here is ``distributed`` imported: it is an extra (``pip install -e '.[dask]'``).
"""

"""Commands as modules: `python -m recsys.compare` is `recsys compare`.

`recsys.__path__` has this folder, so that these names work without modules of their own at the top of the package.
"""
